"""Bodies to items: every bad body is a Problem, every error in it is told."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.events import EVENT_MAX_BYTES, MatchEvent, Vote
from core.problem import Problem
from ingest import decode
from tests.ingest.conftest import event, vote

NOW = datetime(2026, 11, 21, 18, tzinfo=UTC)


def votes(body: object, media: decode.Media = "json") -> tuple[list[Vote], bool]:
    return decode.votes(body if isinstance(body, bytes) else json.dumps(body).encode(), media, NOW)


def refused(body: object, media: decode.Media = "json") -> Problem:
    with pytest.raises(Problem) as caught:
        votes(body, media)
    return caught.value


def faults(problem: Problem) -> list[tuple[int, str]]:
    return [(error.index, error.path) for error in problem.errors]


def test_one_object_an_array_and_ndjson_give_the_same_votes() -> None:
    one = msgspec.convert(vote("e1"), Vote)
    assert votes(vote("e1")) == ([one], False)
    assert votes([vote("e1"), vote("e1")]) == ([one, one], True)
    line = json.dumps(vote("e1")).encode()
    assert votes(line + b"\r\n\n  \n" + line, "ndjson") == ([one, one], True)
    assert votes(b"  \n [" + line + b"]") == ([one], True)


def test_empty_lists_are_no_error() -> None:
    assert votes(b"[]") == ([], True)
    assert votes(b"", "ndjson") == ([], True)
    assert votes(b"\n\n", "ndjson") == ([], True)


def test_unknown_keys_are_ignored_and_of_duplicate_keys_the_last_wins() -> None:
    text = json.dumps(vote("e1", colour={"deep": [1]}))[:-1] + ', "event_id": "e2"}'
    assert votes(text.encode())[0][0].event_id == "e2"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b"{} {}",
        b"[1,",
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        b'{"event_id": "\xff"}',
        json.dumps(vote("e1"))[:-1].encode() + b', "unknown": "\xff"}',
        b'{"event_id": "\\ud800", "poll_id": "p1", "option": "a", "voter": "v"}',
        b'{"event_id": "\\udc00\\ud800"}',
        b'{"event_id": NaN}',
        b'{"event_id": Infinity}',
        b"[" * 100_000,
        b'{"x":' * 100_000,
        b'{"event_id": "e", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
@pytest.mark.parametrize("media", ["json", "ndjson"])
def test_unparseable_bodies_are_400(body: bytes, media: decode.Media) -> None:
    if body or media == "json":
        assert refused(body, media).status == 400


def test_an_unparseable_line_is_named() -> None:
    line = json.dumps(vote("e1")).encode()
    problem = refused(b"\n".join([line, b"", line, b"{broken", line]), "ndjson")
    assert (problem.status, problem.detail) == (400, "item 2 is not valid JSON")


def test_every_invalid_item_is_told_with_index_and_path() -> None:
    body = [vote("e0"), vote("e1", poll_id="p.1"), {}, vote("e3", option=7), 4, vote("e5", ts="2999-01-01T00:00:00Z")]
    problem = refused(body)
    assert problem.status == 422
    assert faults(problem) == [(1, "poll_id"), (2, ""), (3, "option"), (4, ""), (5, "ts")]
    lines = b"\n".join(json.dumps(item).encode() for item in body)
    assert refused(lines, "ndjson").errors == problem.errors


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"event_id": ""}, "event_id"),
        ({"event_id": "x" * 129}, "event_id"),
        ({"event_id": "a\nb"}, "event_id"),
        ({"event_id": "a\u2028b"}, "event_id"),
        ({"event_id": None}, "event_id"),
        ({"event_id": 5}, "event_id"),
        ({"poll_id": ""}, "poll_id"),
        ({"poll_id": "p1\n"}, "poll_id"),
        ({"poll_id": "x" * 65}, "poll_id"),
        ({"poll_id": "poll.p1"}, "poll_id"),
        ({"poll_id": "{s00}"}, "poll_id"),
        ({"option": "a b"}, "option"),
        ({"option": ["a"]}, "option"),
        ({"voter": ""}, "voter"),
        ({"voter": "tab\there"}, "voter"),
        ({"voter": "null\x00"}, "voter"),
        ({"source": "a b"}, "source"),
        ({"source": "x" * 33}, "source"),
        ({"ts": "yesterday"}, "ts"),
        ({"ts": 1700000000}, "ts"),
        ({"ts": "2026-11-21T18:00:00"}, "ts"),
        ({"ts": (NOW + timedelta(hours=24, seconds=1)).isoformat()}, "ts"),
        ({"ts": "9999-12-31T23:59:59-23:59"}, "ts"),
        ({"ts": "0001-01-01T00:00:00+23:59"}, "ts"),
        ({"ts": "1969-12-31T23:59:59Z"}, "ts"),
    ],
)
def test_a_bad_field_is_422_and_named(change: dict[str, object], path: str) -> None:
    problem = refused(vote("e1") | change)
    assert problem.status == 422
    assert faults(problem) == [(0, path)]
    assert problem.errors[0].reason


def test_reasons_are_written_for_people() -> None:
    def reason(change: dict[str, object]) -> str:
        return refused(vote("e1") | change).errors[0].reason

    assert reason({"poll_id": "p.1"}) == "must be 1 to 64 of A-Z a-z 0-9 _ -"
    assert reason({"source": "a b"}) == "must be 1 to 32 of A-Z a-z 0-9 _ . : -"
    assert reason({"voter": "\n"}) == "must be 1 to 128 printable characters"
    assert reason({"voter": ""}) == "must be 1 to 128 printable characters"


def test_a_reason_repeats_nothing_that_the_client_sent() -> None:
    for field in ("event_id", "poll_id", "option", "voter", "ts", "source"):
        for secret in ("s3cr3t\n", {"s3cr3t": 1}, 987654321):
            assert not any(text in repr(refused(vote("e") | {field: secret}).errors) for text in ("s3cr3t", "98765"))


def test_long_printable_names_in_any_script_are_fine() -> None:
    name = "Zuschauerin 🎮 観客"
    items, _ = votes(vote("é" * 128, voter=name, ts="2026-11-22T17:59:59+00:00", source="x"))
    assert (items[0].event_id, items[0].voter) == ("é" * 128, name)


@pytest.mark.parametrize("media", ["json", "ndjson"])
def test_more_than_10000_items_are_413_whether_valid_or_not(media: decode.Media) -> None:
    good, bad = json.dumps(vote("e")).encode(), b"1"
    for item in (good, bad):
        body = b"[" + b",".join([item] * 10_001) + b"]" if media == "json" else b"\n".join([item] * 10_001)
        assert refused(body, media).status == 413
    body = b"[" + b",".join([good] * 10_000) + b"]" if media == "json" else b"\n".join([good] * 10_000)
    assert len(votes(body, media)[0]) == 10_000


def test_the_largest_body_of_tiny_items_is_refused_and_not_worked_through() -> None:
    assert refused(b"[" + b"1," * 2_000_000 + b"1]").status == 413
    assert refused(b"1\n" * 2_000_000, "ndjson").status == 413


@pytest.mark.parametrize(
    ("content_type", "media"),
    [
        ("application/json", "json"),
        ("Application/JSON; charset=UTF-8", "json"),
        ('application/json;charset="utf-8"', "json"),
        ("application/x-ndjson", "ndjson"),
    ],
)
def test_content_types_that_are_understood(content_type: str, media: str) -> None:
    assert decode.media_type(content_type) == media


@pytest.mark.parametrize(
    "content_type", [None, "", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-16"]
)
def test_other_content_types_are_415(content_type: str | None) -> None:
    with pytest.raises(Problem) as caught:
        decode.media_type(content_type)
    assert caught.value.status == 415
    assert "application/json" in caught.value.detail


def events(body: object) -> list[MatchEvent]:
    return decode.match_events(json.dumps(body).encode(), "json", NOW)[0]


@pytest.mark.parametrize(
    "type_",
    [
        *(
            "snapshot",
            "poll",
            "tally",
            "state",
            "prediction",
            "welcome",
            "heartbeat",
            "bye",
            "open",
            "error",
            "message",
        ),
        *("", "Round_end", "1st", "_x", "a-b", "a b", "round_end\n", "a\r\ndata: forged", "a:b", "x" * 65, "é"),
    ],
)
def test_types_that_are_reserved_or_could_forge_a_stream_line_are_422(type_: str) -> None:
    with pytest.raises(Problem) as caught:
        events(event("e1", type=type_))
    assert (caught.value.status, faults(caught.value)) == (422, [(0, "type")])


@pytest.mark.parametrize("round_no", [-1, 10_001, 1.5, "3", True])
def test_round_numbers_out_of_bounds_are_422(round_no: object) -> None:
    with pytest.raises(Problem) as caught:
        events(event("e1", round_no=round_no))
    assert faults(caught.value) == [(0, "round_no")]


@pytest.mark.parametrize("data", [None, [], "text", 1])
def test_data_must_be_an_object(data: object) -> None:
    with pytest.raises(Problem) as caught:
        events(event("e1", data=data))
    assert faults(caught.value) == [(0, "data")]


def entry(**fields: Any) -> tuple[bytes, decode.Fault | None]:
    return decode.event_entry(events(event("e1", **fields))[0])


def test_an_entry_is_one_line_even_for_readers_that_break_lines_at_unicode_separators() -> None:
    encoded, fault = entry(data={"text": "a\nb\r\u2028\u2029\x85c", "é\u2028": 1})
    assert fault is None
    assert len(encoded.decode().splitlines()) == 1
    assert json.loads(encoded)["data"] == {"text": "a\nb\r\u2028\u2029\x85c", "é\u2028": 1}


def test_an_entry_keeps_numbers_exactly() -> None:
    data = {"big": 123456789012345678901234567890, "zero": -0.0, "small": 5e-324, "max": 1.7976931348623157e308}
    assert json.loads(entry(data=data)[0])["data"] == data


def test_an_event_over_its_size_or_depth_is_a_fault() -> None:
    assert entry(data={"text": "x" * (EVENT_MAX_BYTES - 200)})[1] is None
    assert (entry(data={"text": "x" * EVENT_MAX_BYTES})[1] or [""])[0] == "data"
    deep: object = 1
    for _ in range(62):
        deep = [deep]
    assert entry(data={"deep": deep})[1] is None
    for _ in range(300):
        deep = [deep]
    assert (entry(data={"deep": deep})[1] or [""])[0] == "data"
    assert entry(data={"wide": [{"n": i} for i in range(1000)]})[1] is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
fragments = st.sampled_from(
    [
        *(b'{"event_id":', b'"\\ud800"', b"NaN", b"1e999", b"[", b"]", b"{", b"}", b",", b":", b'"', b"\n", b"\xff"),
        *(json.dumps(vote("e1")).encode(), json.dumps(event("e1")).encode(), b"9" * 5000, b"-", b"\x00", b"null"),
    ]
)
bodies = (
    st.binary(max_size=200)
    | st.lists(fragments, max_size=12).map(b"".join)
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(st.sampled_from(sorted(vote("") | event("") | {"ts": 1, "data": 1})), json_values).map(
        lambda value: json.dumps([value]).encode()
    )
)


def judge(decoder: Callable[..., Any], body: object, media: str = "json") -> tuple[list[Any], Problem | None]:
    """Items or the problem, and nothing else."""
    try:
        return decoder(body if isinstance(body, bytes) else json.dumps(body).encode(), media, NOW)[0], None
    except Problem as problem:
        return [], problem


@settings(max_examples=600, deadline=None)
@given(body=bodies, media=st.sampled_from(["json", "ndjson"]))
def test_any_bytes_give_items_or_a_problem(body: bytes, media: str) -> None:
    for decoder in (decode.votes, decode.match_events):
        items, problem = judge(decoder, body, media)
        if problem is not None:
            assert problem.status in (400, 413, 422)
            assert json.loads(problem.body)["status"] == problem.status
        for item in items:
            assert isinstance(item, Vote) or len(decode.event_entry(item)[0].decode().splitlines()) <= 1


@settings(max_examples=300, deadline=None)
@given(
    items=st.lists(
        st.fixed_dictionaries(
            {"event_id": st.text(max_size=3), "poll_id": st.sampled_from(["p1", "p.1"]), "voter": st.text(max_size=3)},
            optional={"option": st.sampled_from(["a", "", 1])},
        ),
        max_size=5,
    )
)
def test_an_array_is_judged_like_each_of_its_items_alone(items: list[dict[str, object]]) -> None:
    """The fast path over a whole body and the slow one over single items say the same."""
    alone = [judge(decode.votes, item)[1] for item in items]
    accepted, together = judge(decode.votes, items)
    if not any(alone):
        assert len(accepted) == len(items)
    elif any(problem is not None and problem.status == 400 for problem in alone):
        assert together is not None
        assert together.status == 400
    else:
        assert together is not None
        told = {(error.index, error.path, error.reason) for error in together.errors}
        assert told
        assert told <= {
            (index, error.path, error.reason)
            for index, problem in enumerate(alone)
            if problem is not None
            for error in problem.errors
        }


def test_a_correction_is_an_event_that_names_another_one() -> None:
    corrected = events([event("e2", corrects="e1"), event("e3", corrects="e1", revision=3), event("e4")])
    assert [one.version for one in corrected] == [2, 3, 1]
    stored = [json.loads(decode.event_entry(one)[0]) for one in corrected]
    assert [one.get("corrects") for one in stored] == ["e1", "e1", None]
    assert [one.get("revision") for one in stored] == [None, 3, None]
    assert "corrects" not in stored[2]


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"corrects": "e1"}, "corrects"),
        ({"corrects": ""}, "corrects"),
        ({"corrects": "a\nb"}, "corrects"),
        ({"corrects": 7}, "corrects"),
        ({"corrects": "e0", "revision": 1}, "revision"),
        ({"corrects": "e0", "revision": 65_536}, "revision"),
        ({"revision": 2}, "revision"),
    ],
)
def test_corrections_of_nothing_are_422(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(Problem) as caught:
        events(event("e1", **fields))
    assert faults(caught.value) == [(0, path)]
