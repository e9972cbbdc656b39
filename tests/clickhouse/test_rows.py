"""Entries become the same rows every time, and nothing a source sends makes a row that ClickHouse would refuse."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clickhouse import rows as module
from clickhouse.instants import MS_MAX, MS_MIN, to_ms
from clickhouse.rows import DEAD_MAX, RawEntry, from_events, from_updates
from clickhouse.tables import MAP_STATES, MATCH_EVENTS, ROUNDS, TABLES, VOTES, Table
from core.digest import event_hash, vote_hash
from core.events import EntryKind, MatchEvent, Vote, header
from core.position import EntryId
from core.updates import Fact, MapState, Message, PollState, Prediction, Round, SeriesState, Update, encode_update

RECEIVED_US = 1_795_300_000_123_456
ALL_TABLES = {table.name: table for group in TABLES.values() for table in group}


def entry(kind: EntryKind, body: Any, at: str = "1795300000123-0", received_us: int = RECEIVED_US) -> RawEntry:
    encoded = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return at.encode(), {b"h": f"{header(kind, 'topic', received_us, 'c')} 1".encode(), b"d": encoded}


def vote(**changes: Any) -> dict[str, Any]:
    body = {"event_id": "e1", "poll_id": "p1", "option": "a", "voter": "00000000000000ff", "source": "api"}
    return body | changes


def as_dict(table: Table, row: tuple[object, ...]) -> dict[str, object]:
    return dict(zip(table.columns, row, strict=True))


def test_a_vote_becomes_a_row_with_its_position_and_hashes() -> None:
    found = from_events(3, 2, [entry("vote", vote(ts="2026-11-21T18:00:00.123Z"))])
    assert as_dict(VOTES, found.tables["votes"][0]) == {
        "shard": 3,
        "stream_epoch": 2,
        "stream_ms": 1795300000123,
        "stream_seq": 0,
        "poll_id": "p1",
        "option_id": "a",
        "voter_hash": 255,
        "event_hash": event_hash("e1"),
        "vote_hash": vote_hash("e1", "a"),
        "weight": 1,
        "source": "api",
        "ts": to_ms(datetime(2026, 11, 21, 18, 0, 0, 123_000, UTC)),
        "received_at": 1_795_300_000_123,
    }


def test_an_event_without_time_or_round_gets_the_time_of_receipt_and_round_0() -> None:
    body = {"event_id": "e", "match_id": "m", "map_id": "series", "type": "series_start", "data": {"x": 1.50}}
    raw = b'{"event_id":"e","match_id":"m","map_id":"series","type":"series_start","data":{"x":1.50}}'
    row = as_dict(MATCH_EVENTS, from_events(0, 1, [entry("match", raw)]).tables["match_events"][0])
    assert (row["ts"], row["received_at"]) == (1_795_300_000_123, 1_795_300_000_123)
    assert row["round_no"] == 0
    assert row["payload"] == raw  # as streamed, 1.50 and not 1.5
    assert body["type"] == row["type"]


def test_changes_of_polls_and_timers_leave_no_raw_row() -> None:
    change = {"reason": "timer", "due_ms": 1}
    kinds: list[EntryKind] = ["poll", "open", "close", "idle"]
    found = from_events(0, 1, [entry(kind, change) for kind in kinds])
    assert (found.tables, found.dead, found.used) == ({}, [], 4)


@pytest.mark.parametrize(
    "broken",
    [
        (b"1-0", {b"h": b"vote poll.p1 1 c", b"d": b"{}"}),
        (b"1-0", {b"d": b"{}"}),
        entry("vote", b"{"),
        entry("vote", {"event_id": "e"}),
        entry("vote", vote(voter="xyz")),
        entry("vote", vote(voter="00 00 00 00 00 00 00 ff 00")),
        entry("vote", vote(voter="00ff")),
        entry("vote", vote(voter="-000000000000001")),
        entry("match", {"event_id": "e", "match_id": "m", "map_id": "1", "type": "Bad Type"}),
        entry("match", b"\xff\xfe"),
    ],
)
def test_what_is_no_entry_is_dead_and_the_rest_is_kept(broken: RawEntry) -> None:
    found = from_events(0, 1, [entry("vote", vote()), broken, entry("vote", vote(event_id="e2"))])
    assert len(found.tables["votes"]) == 2
    assert [raw_id for raw_id, _ in found.dead] == [broken[0]]
    assert found.dead[0][1]


def test_an_undecodable_update_is_dead() -> None:
    found = from_updates(0, [(b"1-0", {b"u": b"\xc1"}), (b"2-0", {})])
    assert [raw_id for raw_id, _ in found.dead] == [b"1-0", b"2-0"]


def test_a_batch_ends_at_its_last_permitted_dead_letter() -> None:
    entries = [entry("vote", b"x")] * (DEAD_MAX + 10)
    found = from_events(0, 1, entries)
    assert (len(found.dead), found.used) == (DEAD_MAX, DEAD_MAX)


@pytest.mark.parametrize("ts", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999Z", "1969-12-31T23:59:59.999999Z"])
def test_any_time_a_source_may_give_fits(ts: str) -> None:
    found = from_events(0, 1, [entry("vote", vote(ts=ts), received_us=-(10**18))])
    row = as_dict(VOTES, found.tables["votes"][0])
    assert MS_MIN <= int(str(row["ts"])) <= MS_MAX
    assert row["received_at"] == MS_MIN
    VOTES.encode(found.tables["votes"])


@given(st.datetimes(min_value=datetime(1900, 1, 1), max_value=datetime(2299, 12, 31), timezones=st.just(UTC)))  # noqa: DTZ001
def test_milliseconds_are_exact(moment: datetime) -> None:
    text = moment.isoformat(timespec="milliseconds")
    cut = datetime.fromisoformat(text)
    ms = to_ms(moment)
    assert ms == to_ms(cut)
    assert ms % 1000 == cut.microsecond // 1000


PRINTABLE = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=128)


@given(
    st.builds(
        Vote,
        event_id=PRINTABLE,
        poll_id=st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True),
        option=st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True),
        voter=st.binary(min_size=8, max_size=8).map(bytes.hex),
        ts=st.none() | st.datetimes(timezones=st.just(UTC)),
    ),
    st.builds(
        MatchEvent,
        event_id=PRINTABLE,
        match_id=st.just("m"),
        map_id=st.just("1"),
        type=st.just("round_end"),
        round_no=st.none() | st.integers(0, 10_000),
        ts=st.none() | st.datetimes(timezones=st.just(UTC)),
        data=st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers() | st.floats(allow_nan=False)),
    ),
)
def test_every_valid_event_can_be_encoded_and_the_same_twice(a_vote: Vote, an_event: MatchEvent) -> None:
    entries = [entry("vote", a_vote), entry("match", an_event)]
    once, twice = from_events(1, 1, entries), from_events(1, 1, entries)
    assert not once.dead
    for name, rows in once.tables.items():
        body = ALL_TABLES[name].encode(rows)
        assert body == ALL_TABLES[name].encode(twice.tables[name])
        with pa.ipc.open_file(body) as file:
            assert file.read_all().num_rows == 1


def update(*facts: Fact, epoch: int = 1) -> RawEntry:
    return b"9-0", {b"u": encode_update(Update(epoch, EntryId(1, 0), EntryId(0, 0), 0, [], list(facts)))}


def test_facts_go_to_their_tables_with_their_own_positions() -> None:
    found = from_updates(
        2,
        [
            update(
                PollState(5, 1, 1, "p", "open", "T", "first", "", {"a": "A", "b": "B"}, 5),
                Round(6, 0, 2, "m", "1", 1, "team1", "x", 1, 0, False, 6),
                MapState(6, 0, 2, "m", "1", "de_dust2", "live", "", 1, "A", "B", 1, 0, 6),
                Prediction(6, 0, 3, "m", "1", 1, 0.625, "mr12", 6),
                SeriesState(6, 0, 4, "m", "live", "", 3, "A", "B", 1, 0, 6),
                epoch=4,
            )
        ],
    )
    assert {name: rows[0][:5] for name, rows in found.tables.items()} == {
        "poll_states": (2, 4, 5, 1, 1),
        "rounds": (2, 4, 6, 0, 2),
        "map_states": (2, 4, 6, 0, 2),
        "predictions": (2, 4, 6, 0, 3),
        "match_states": (2, 4, 6, 0, 4),
    }
    for name, rows in found.tables.items():
        with pa.ipc.open_file(ALL_TABLES[name].encode(rows)) as file:
            assert file.read_all().num_rows == 1


def test_a_batch_with_messages_says_how_long_it_took() -> None:
    messages = [Message("poll.p", "tally", True, 8, 0, 1, b"{}", us, "c") for us in (7_000_999, 6_000_000)]
    encoded = encode_update(Update(4, EntryId(1, 0), EntryId(0, 0), 9_500_000, messages, []))
    found = from_updates(2, [(b"9-1", {b"u": encoded}), update()])
    assert found.tables == {"applied_batches": [(2, 4, 9, 1, 2, 6_000, 9_500)]}


def test_absurd_numbers_are_held_within_their_columns() -> None:
    found = from_updates(
        0,
        [
            update(
                Round(6, 0, 2, "m", "1", -1, "team1", "x", 10**12, -5, False, 6),
                MapState(6, 0, 2, "m", "1", "", "live", "", 99999, "A", "B", 70000, -1, 10**18),
                SeriesState(6, 0, 4, "m", "live", "", 300, "A", "B", 70000, -1, 10**18),
            )
        ],
    )
    a_round, a_map = (as_dict(table, found.tables[table.name][0]) for table in (ROUNDS, MAP_STATES))
    assert (a_round["round_no"], a_round["score_team1"], a_round["score_team2"]) == (0, 65535, 0)
    assert (a_map["round_no"], a_map["score_team1"], a_map["score_team2"]) == (65535, 65535, 0)
    for name, rows in found.tables.items():
        ALL_TABLES[name].encode(rows)


def test_keys_of_derived_facts_do_not_depend_on_the_epoch() -> None:
    fact = Prediction(6, 0, 3, "m", "1", 1, 0.625, "mr12", 6)
    keys = {
        ALL_TABLES["predictions"].key_of(from_updates(0, [update(fact, epoch=epoch)]).tables["predictions"][0])
        for epoch in (1, 2)
    }
    assert keys == {(6, 0, 3)}


def test_every_kind_of_fact_has_a_table() -> None:
    assert set(module._FACTS) == {Prediction, Round, MapState, SeriesState, PollState}
