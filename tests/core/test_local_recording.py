"""Recordings: the same bytes, in the same order, when they are due."""

import json

import msgspec
import pytest

from core.errors import Fatal
from core.local.demo import recorded_map
from core.local.recording import BATCH_MAX_ITEMS, JSON, NDJSON, Request, requests

VOTE = {"event_id": "e1", "poll_id": "p1", "option": "a", "voter": "v"}
EVENT = {"event_id": "e2", "match_id": "m1", "map_id": "1", "type": "round_end"}


def read(*lines: object) -> list[Request]:
    return list(requests((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines))


def test_request_is_sent_byte_for_byte() -> None:
    body = b'{"a" : 1e2,"b":"\\u00e4", "c":"\xc3\xa4"}'
    (request,) = read(b'{"at_ms": 1500, "method": "PUT", "path": "/hooks/x", "body": ' + body + b"}")
    assert (request.due_ms, request.method, request.path) == (1500, "PUT", "/hooks/x")
    assert (request.content_type, request.body) == (JSON, body)


def test_method_is_post_and_a_body_may_be_missing() -> None:
    (request,) = read({"path": "/api/v1/polls/p1/close"})
    assert (request.method, request.body, request.due_ms) == ("POST", b"", 0)


def test_items_go_where_the_contract_wants_them() -> None:
    votes, events = read(VOTE, EVENT)
    assert (votes.path, votes.content_type, votes.body) == ("/api/v1/votes", NDJSON, json.dumps(VOTE).encode() + b"\n")
    assert (events.path, events.content_type) == ("/api/v1/events", NDJSON)


def test_items_due_together_share_a_body_and_order_is_kept() -> None:
    lines = [VOTE | {"at_ms": at} for at in (0, 10, 20, 21, 100)] + [EVENT | {"at_ms": 100}, VOTE | {"at_ms": 100}]
    found = [(request.path[-5:], request.due_ms, request.body.count(b"\n")) for request in read(*lines)]
    assert found == [("votes", 0, 3), ("votes", 21, 1), ("votes", 100, 1), ("vents", 100, 1), ("votes", 100, 1)]


def test_body_has_a_bound() -> None:
    sizes = [request.body.count(b"\n") for request in read(*[VOTE] * (BATCH_MAX_ITEMS + 1))]
    assert sizes == [BATCH_MAX_ITEMS, 1]


def test_item_without_a_moment_is_due_at_its_time_since_the_first() -> None:
    times = ["2026-01-01T10:00:00Z", "2026-01-01T11:00:01.5+01:00"]
    assert [request.due_ms for request in read(*(VOTE | {"ts": ts} for ts in times))] == [0, 1500]


def test_item_without_any_time_is_due_with_the_line_before_it() -> None:
    found = read({"at_ms": 700, "path": "/x"}, VOTE)
    assert [request.due_ms for request in found] == [700, 700]


def test_empty_lines_are_skipped_and_every_byte_is_accounted_for() -> None:
    data = b"\n" + json.dumps(VOTE).encode() + b"\n  \n" + b'{"path":"/x"}\n'
    found = list(requests(data.splitlines(keepends=True)))
    assert sum(request.read_bytes for request in found) == len(data)


@pytest.mark.parametrize("line", [b"{", b"[]", b"{}", b'{"path":"x"}', b'{"path":"/x","method":"DELETE"}', b"\xff"])
def test_line_that_is_nothing_is_named_by_its_number(line: bytes) -> None:
    with pytest.raises(Fatal, match="line 2 of the recording"):
        read(VOTE, line)


def test_recorded_map_is_a_whole_map_in_order() -> None:
    bodies = [msgspec.json.decode(request.body) for request in recorded_map()]
    kinds = [body["event"] for body in bodies]
    assert (kinds[0], kinds[-2:], kinds.count("round_end")) == ("series_start", ["map_result", "series_end"], 22)
    assert [r.due_ms for r in recorded_map()] == sorted(r.due_ms for r in recorded_map())
    assert (bodies[-2]["team1"]["score"], bodies[-2]["team2"]["score"]) == (13, 9)
    assert recorded_map()[kinds.index("round_end")].due_ms < 30_000, "the page moves within a minute"
