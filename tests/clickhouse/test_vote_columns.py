"""The fast way of votes gives what the plain way gives, whatever is in the log."""

from datetime import UTC, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clickhouse import rows as module
from clickhouse.rows import RawEntry, from_events, plainly_from_events
from clickhouse.tables import VOTES
from clickhouse.vote_columns import vote_columns
from core.events import Vote


def entry(number: int, body: bytes, header: bytes | None = None) -> RawEntry:
    plain = b"vote poll.p1 17957354770%05d c %d" % (number, number + 1)
    return b"1795735477%03d-%d" % (number // 7, number % 7), {b"h": plain if header is None else header, b"d": body}


def vote(number: int, **changes: Any) -> bytes:
    voter = f"{number:016x}"
    fields = {"event_id": f"e{number}", "poll_id": "p1", "option": "ab"[number % 2], "voter": voter, "source": "api"}
    return msgspec.json.encode(fields | changes)


def seen(entries: list[RawEntry], *, plain: bool) -> tuple[Any, ...]:
    found = (plainly_from_events if plain else from_events)(3, 1_795_735_477_000, entries)
    tables = {name: block if name != "votes" else VOTES.rows(block) for name, block in found.tables.items()}
    return tables, found.dead, found.used


def assert_same(entries: list[RawEntry]) -> None:
    assert seen(entries, plain=False) == seen(entries, plain=True)


@pytest.fixture(autouse=True)
def always_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FAST_FROM", 1)


ids = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
zones = st.sampled_from([UTC, timezone(timedelta(hours=2)), timezone(-timedelta(hours=9, minutes=30))])
votes = st.builds(
    Vote,
    event_id=st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=128),
    poll_id=ids,
    option=ids,
    voter=st.from_regex(r"[0-9a-f]{16}", fullmatch=True),
    ts=st.none() | st.datetimes(timezones=zones),
    source=st.from_regex(r"[A-Za-z0-9_.:-]{1,32}", fullmatch=True),
)


@given(st.lists(votes, min_size=1, max_size=30))
def test_what_ingest_writes_is_read_alike(found: list[Vote]) -> None:
    entries = [entry(number, msgspec.json.encode(item)) for number, item in enumerate(found)]
    assert vote_columns(3, 1, entries, 1) is not None, "none of these needs the plain way"
    assert_same(entries)


STRANGE = [
    b"",
    b" ",
    b"{",
    b"[]",
    b"null",
    b"{}",
    b"{}{}",
    b"\xff",
    vote(1) + vote(2),
    vote(1) + b"\n" + vote(2),
    b" " + vote(1),
    vote(1, poll_id="a b"),
    vote(1, poll_id=""),
    vote(1, option="ä"),
    vote(1, event_id=""),
    vote(1, event_id="x" * 129),
    vote(1, event_id="ä" * 128),
    vote(1, event_id=7),
    vote(1, event_id=None),
    vote(1, voter="0123456789abcde"),
    vote(1, voter="0123 4567 89ab cd"),
    vote(1, voter="x" * 16),
    vote(1, voter="0123456789ABCDEF"),
    vote(1, source=""),
    vote(1, source=None),
    vote(1, source="a b"),
    vote(1, ts=""),
    vote(1, ts="2026-11-21"),
    vote(1, ts=5),
    vote(1, ts=None),
    vote(1, ts="2026-11-21T18:00:00.123Z"),
    vote(1, ts="2026-11-21 18:00:00Z"),
    vote(1, ts="2026-11-21T18:00:00+02:00"),
    vote(1, ts="1969-12-31T23:59:59.999999Z"),
    vote(1, ts="2026-13-21T18:00:00Z"),
    vote(1, ts="2026-11-21T18:00:00Z "),
    vote(1, ts='"'),
    vote(1, more={"a": [1, 2]}),
    b'{"event_id":"a","event_id":"b","poll_id":"p","option":"a","voter":"' + b"0" * 16 + b'"}',
    vote(1, event_id="\u0000\ud7ff"),
    b'{"event_id":"a","poll_id":"p","option":"a","voter":"0123456789abcdef"}',
    b'{"event_id":"\\ud800","poll_id":"p"}',
    vote(1, weight=5),
]


@pytest.mark.parametrize("body", STRANGE)
def test_one_strange_body_changes_nothing_for_the_others(body: bytes) -> None:
    assert_same([entry(0, vote(0)), entry(1, body), entry(2, vote(2))])


@pytest.mark.parametrize(
    "header",
    [
        b"vote poll.p1 1 c",
        b"vote poll.p1 1 c 2 3",
        b"vote poll.p1 x c 2",
        b"vote poll.p1 1 c x",
        b"vote poll.p1 -1 c 2",
        b"vote poll.p1 0x10 c 2",
        b"vote poll.p1 9999999999999999999999 c 2",
        b"vote  1 c 2",
        b"vote \xff 1 c 2",
        b"vote ",
        b"vote poll.p1 +5 c 2",
        b"vote poll.p1 1_000 c 2",
        b"vote poll.p1 999999999999999999 c 2",
        b"votes poll.p1 1 c 2",
        "vote poll.p1 ٣ c 2".encode(),
    ],
)
def test_one_strange_header_changes_nothing_for_the_others(header: bytes) -> None:
    assert_same([entry(0, vote(0)), entry(1, vote(1), header), entry(2, vote(2))])


def test_an_empty_body_is_not_made_up_for_by_two_in_one() -> None:
    assert_same([entry(0, vote(0)), entry(1, b""), entry(2, vote(2) + vote(3)), entry(4, vote(4))])


def test_missing_fields_and_other_entries_are_read_alike() -> None:
    event = {"event_id": "x", "match_id": "m", "map_id": "1", "type": "round_end"}
    others: list[RawEntry] = [
        entry(3, msgspec.json.encode(event), b"match match.m.1 5 c 1"),
        entry(4, b"{}", b"poll poll.p1 5 c 2"),
        entry(5, b"{}", b"match match.m.1 5 c 3"),
        (b"1795735478000-0", {}),
        (b"1795735478001-0", {b"h": b"vote a 1 c 1"}),
    ]
    assert_same([entry(number, vote(number)) for number in range(3)] + others[:3])
    assert_same([entry(number, vote(number)) for number in range(3)] + others)


def test_a_batch_that_ends_early_for_its_dead_letters_ends_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEAD_MAX", 2)
    bad = [entry(number, b"{}", b"match match.m.1 5 c 3") for number in range(10, 14)]
    assert_same([entry(0, vote(0)), *bad, entry(20, vote(1))])


def test_columns_are_encoded_as_rows_are() -> None:
    entries = [entry(number, vote(number)) for number in range(50)]
    columns, plain = from_events(0, 1, entries), plainly_from_events(0, 1, entries)
    assert not isinstance(columns.tables["votes"], list)
    assert VOTES.encode(columns.tables["votes"]) == VOTES.encode(plain.tables["votes"])
