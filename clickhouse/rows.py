"""Log entries → rows of the raw tables: pure, and the same for the same entries, today and at a redo.

Entry by entry, which is plain and exact; votes, of which there are most, go through their fast twin (`vote_columns`)
unless something about a batch is unusual.

Nothing that a source sent may make a row that ClickHouse refuses, because a batch is repeated until it is stored:
what an entry cannot be is found here and becomes a dead letter, and numbers are held within their columns.
"""

from collections.abc import Callable, Mapping, Sequence

from msgspec import UNSET, Struct

from clickhouse.instants import clamp_ms, to_ms
from clickhouse.tables import (
    APPLIED_BATCHES,
    AUDIT,
    MAP_STATES,
    MATCH_EVENTS,
    MATCH_STATES,
    POLL_STATES,
    PREDICTIONS,
    ROUNDS,
    TABLES,
    VOTES,
    Block,
    Row,
)
from clickhouse.vote_columns import vote_columns
from core.audit import decode_record
from core.digest import event_hash, vote_hash
from core.errors import Poison
from core.events import Entry, decode_match_event, decode_vote, parse_entry
from core.position import parse_entry_id
from core.updates import Fact, MapState, PollState, Prediction, Round, SeriesState, Update, decode_update

SCHEMA = 1
"""Goes up when the same entry gives other rows than before; a plan of another version is not redone (see `writer`)."""

RawEntry = tuple[bytes, dict[bytes, bytes]]
"""Entry id and fields, as Redis gives them."""

DEAD_MAX = 500
"""Dead letters of one batch, which ends after that many: they are written by one script, and more than a few mean
that something is wrong with us rather than with them."""

_FAST_FROM = 100
"""Votes of a batch from which on columns pay."""

_U8_MAX, _U16_MAX, _U32_MAX = 255, 65_535, 2**32 - 1
_WEIGHT = 1


class Rows(Struct):
    """What a batch of entries becomes: rows by table, tables without rows absent, and entries that become none."""

    tables: Mapping[str, Block]
    dead: list[tuple[bytes, str]]
    """(entry id, reason)."""
    used: int
    """How many of the entries were used: all, or those up to the `DEAD_MAX`th dead one."""


def from_events(shard: int, epoch: int, entries: Sequence[RawEntry]) -> Rows:
    """Rows of `events:{s}`. All entries belong to `epoch`. Changes of polls leave no row here but in `poll_states`."""
    votes = [entry for entry in entries if entry[1].get(b"h", b"").startswith(b"vote ")]
    columns = vote_columns(shard, epoch, votes, _WEIGHT) if len(votes) >= _FAST_FROM else None
    if columns is None:
        return plainly_from_events(shard, epoch, entries)
    others = [entry for entry in entries if not entry[1].get(b"h", b"").startswith(b"vote ")]
    rows = plainly_from_events(shard, epoch, others)
    if rows.used < len(others):  # so many dead letters that the batch ends early
        return plainly_from_events(shard, epoch, entries)
    return Rows({VOTES.name: columns, **rows.tables}, rows.dead, len(entries))


def plainly_from_events(shard: int, epoch: int, entries: Sequence[RawEntry]) -> Rows:
    """The same, entry by entry."""
    votes: list[Row] = []
    events: list[Row] = []

    def add(raw_id: bytes, fields: dict[bytes, bytes]) -> None:
        entry = parse_entry(raw_id, fields)
        if entry.kind == "vote":
            votes.append(_vote(shard, epoch, entry))
        elif entry.kind == "match":
            events.append(_match_event(shard, epoch, entry))

    dead, used = _each(entries, add)
    return _rows({VOTES.name: votes, MATCH_EVENTS.name: events}, dead, used)


def from_updates(shard: int, entries: Sequence[RawEntry]) -> Rows:
    """Rows of `updates:{s}`: its facts, and how long the batch took. Each carries the epoch of its update."""
    tables: dict[str, list[Row]] = {table.name: [] for table in TABLES["updates"]}

    def add(raw_id: bytes, fields: dict[bytes, bytes]) -> None:
        update = decode_update(fields)
        if update.messages:
            tables[APPLIED_BATCHES.name].append(_applied_batch(shard, raw_id, update))
        for fact in update.facts:
            name, values = _FACTS[type(fact)](fact)
            tables[name].append((shard, update.epoch, fact.ms, fact.seq, fact.k, *values, clamp_ms(fact.ts_ms)))

    dead, used = _each(entries, add)
    return _rows(tables, dead, used)


def from_audit(shard: int, epoch: int, entries: Sequence[RawEntry]) -> Rows:
    """Rows of `audit:{s}`. All entries belong to `epoch`."""
    records: list[Row] = []

    def add(raw_id: bytes, fields: dict[bytes, bytes]) -> None:
        record, entry = decode_record(fields), parse_entry_id(raw_id)
        records.append((
            shard, epoch, entry.ms, entry.seq, record.subject, record.action, record.actor,
            max(0, min(_U32_MAX, record.requests)), max(0, min(_U32_MAX, record.events)), record.after, record.last,
            record.correlation, record.detail, clamp_ms(record.at_ms),
        ))  # fmt: skip

    dead, used = _each(entries, add)
    return _rows({AUDIT.name: records}, dead, used)


def _each(
    entries: Sequence[RawEntry], add: Callable[[bytes, dict[bytes, bytes]], None]
) -> tuple[list[tuple[bytes, str]], int]:
    dead: list[tuple[bytes, str]] = []
    for used, (raw_id, fields) in enumerate(entries, 1):
        try:
            add(raw_id, fields)
        except (Poison, ValueError) as error:  # msgspec's errors are ValueErrors
            dead.append((raw_id, str(error)[:300]))
            if len(dead) == DEAD_MAX:
                return dead, used
    return dead, len(entries)


def _rows(tables: dict[str, list[Row]], dead: list[tuple[bytes, str]], used: int) -> Rows:
    return Rows({name: rows for name, rows in tables.items() if rows}, dead, used)


def _vote(shard: int, epoch: int, entry: Entry) -> Row:
    vote = decode_vote(entry.body)
    voter = bytes.fromhex(vote.voter)
    if len(voter) != 8:
        raise Poison("voter is no hash of 16 hex digits")
    received_ms = clamp_ms(entry.received_us // 1000)
    return (
        shard, epoch, entry.id.ms, entry.id.seq, vote.poll_id, vote.option, int.from_bytes(voter),
        event_hash(vote.event_id), vote_hash(vote.event_id, vote.option), _WEIGHT, vote.source,
        received_ms if vote.ts is None else to_ms(vote.ts), received_ms,
    )  # fmt: skip


def _match_event(shard: int, epoch: int, entry: Entry) -> Row:
    event = decode_match_event(entry.body)
    received_ms = clamp_ms(entry.received_us // 1000)
    return (
        shard, epoch, entry.id.ms, entry.id.seq, event.event_id, event.match_id, event.map_id, event.round_no or 0,
        event.type, event.version, event.source, received_ms if event.ts is None else to_ms(event.ts), received_ms,
        entry.body, "" if event.corrects is UNSET else event.corrects, entry.correlation,
    )  # fmt: skip


def _applied_batch(shard: int, raw_id: bytes, update: Update) -> Row:
    ms, seq = parse_entry_id(raw_id)
    received_us = min(message.received_us for message in update.messages)
    return (
        shard, update.epoch, ms, seq, len(update.messages), clamp_ms(received_us // 1000),
        clamp_ms(update.applied_us // 1000),
    )  # fmt: skip


def _u16(number: int) -> int:
    return max(0, min(_U16_MAX, number))


def _u8(number: int) -> int:
    return max(0, min(_U8_MAX, number))


def _prediction(fact: Prediction) -> tuple[str, Row]:
    return PREDICTIONS.name, (fact.match_id, fact.map_id, _u16(fact.round_no), fact.p_team1, fact.model)


def _round(fact: Round) -> tuple[str, Row]:
    return ROUNDS.name, (
        fact.match_id, fact.map_id, _u16(fact.round_no), fact.winner, fact.reason, _u16(fact.score_team1),
        _u16(fact.score_team2), fact.is_void,
    )  # fmt: skip


def _map_state(fact: MapState) -> tuple[str, Row]:
    return MAP_STATES.name, (
        fact.match_id, fact.map_id, fact.map_name, fact.status, fact.winner, _u16(fact.round_no), fact.team1,
        fact.team2, _u16(fact.score_team1), _u16(fact.score_team2),
    )  # fmt: skip


def _match_state(fact: SeriesState) -> tuple[str, Row]:
    return MATCH_STATES.name, (
        fact.match_id, fact.status, fact.winner, _u8(fact.num_maps), fact.team1, fact.team2, _u16(fact.maps_team1),
        _u16(fact.maps_team2),
    )  # fmt: skip


def _poll_state(fact: PollState) -> tuple[str, Row]:
    return POLL_STATES.name, (
        fact.poll_id, fact.status, fact.title, fact.voting, fact.match_id, list(fact.options.items())
    )  # fmt: skip


_FACTS: dict[type[Fact], Callable[..., tuple[str, Row]]] = {
    Prediction: _prediction,
    Round: _round,
    MapState: _map_state,
    SeriesState: _match_state,
    PollState: _poll_state,
}
