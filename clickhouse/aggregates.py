"""Which views keep aggregates of the raw tables, and which part of one a batch of raw rows can have touched. Pure.

What a batch touches is a *scope*: the rows of the target that are deleted and computed anew from the raw rows of the
same scope, when the writer cannot rely on its tokens (see `repair`). A scope belongs to one writer of one shard, so
nobody else adds to it meanwhile. Every materialized view of the schema must stand here; a test compares.
"""

from collections.abc import Iterator, Sequence

from msgspec import Struct

from clickhouse.tables import APPLIED_BATCHES, MAP_STATES, MATCH_EVENTS, ROUNDS, VOTES, Row, Table
from core.names import is_id

IDS_AT_ONCE = 100
"""Polls or matches in one statement: their ids travel in a setting, which is part of the request's URL."""

_MINUTE_MS = 60_000
_DATETIME_MAX_S = 2**32 - 1


class Scope(Struct, frozen=True):
    """A part of an aggregate: a condition on its target, and the same on the raw table. Plain SQL of ours."""

    target: str
    raw: str


class Aggregate(Struct, frozen=True):
    """A materialized view: `feed` reads `raw` and fills `target`."""

    feed: str
    target: str
    raw: Table
    owner: str = ""
    """Column of both that belongs to one shard: a poll's or a match's id. Without it scopes are by shard and time."""
    time: str = ""
    """Column of the target with the beginning of the minute or second of `received_at`; "" = no such column."""
    kind: str = ""
    """Value of `kind` where several feeds fill one target."""
    replaces: bool = False
    """The newest version of a row counts: nothing is deleted, running the feed once more changes nothing."""

    def scopes(self, shard: int, rows: Sequence[Row]) -> Iterator[Scope]:
        """What raw rows of a shard can have touched. `rows` must not be empty."""
        if self.replaces:
            first, last = self._bounds("stream_ms", rows)
            yield Scope("", f"shard = {shard:d} AND stream_ms BETWEEN {first:d} AND {last:d}")
            return
        target, raw = [], []
        if self.time:
            first, last = self._bounds("received_at", rows)
            first, last = first // _MINUTE_MS * _MINUTE_MS, last // _MINUTE_MS * _MINUTE_MS + _MINUTE_MS
            since, until = (min(max(ms // 1000, 0), _DATETIME_MAX_S) for ms in (first, last))
            target.append(f"{self.time} >= toDateTime({since:d}, 'UTC') AND {self.time} < toDateTime({until:d}, 'UTC')")
            raw.append(
                f"received_at >= fromUnixTimestamp64Milli({first:d}) AND "
                f"received_at < fromUnixTimestamp64Milli({last:d})"
            )
        if self.kind:
            target.append(f"kind = '{self.kind}'")
        if not self.owner:
            target.append(f"shard = {shard:d}")
            raw.append(f"shard = {shard:d}")
            yield Scope(" AND ".join(target), " AND ".join(raw))
            return
        at = self.raw.columns.index(self.owner)
        owners = sorted({str(row[at]) for row in rows})
        assert all(map(is_id, owners))  # so they hold nothing that needs a quote
        for start in range(0, len(owners), IDS_AT_ONCE):
            names = ", ".join(f"'{owner}'" for owner in owners[start : start + IDS_AT_ONCE])
            condition = f"{self.owner} IN ({names})"
            yield Scope(" AND ".join([condition, *target]), " AND ".join([condition, *raw]))

    def since(self, shard: int, received_ms: int) -> Scope:
        """Everything of a shard from the minute on in which something was received. Of an aggregate with a time and
        without an owner."""
        assert self.time
        assert not self.owner
        since_ms = max(0, min(received_ms // _MINUTE_MS * _MINUTE_MS, _DATETIME_MAX_S * 1000))
        target = f"shard = {shard:d} AND {self.time} >= toDateTime({since_ms // 1000:d}, 'UTC')"
        if self.kind:
            target += f" AND kind = '{self.kind}'"
        return Scope(target, f"shard = {shard:d} AND received_at >= fromUnixTimestamp64Milli({since_ms:d})")

    def _bounds(self, column: str, rows: Sequence[Row]) -> tuple[int, int]:
        at = self.raw.columns.index(column)
        values = [int(str(row[at])) for row in rows]
        return min(values), max(values)


AGGREGATES = (
    Aggregate("votes_per_minute_feed", "votes_per_minute_store", VOTES, owner="poll_id", time="minute"),
    Aggregate("votes_per_second_feed", "votes_per_second_store", VOTES, owner="poll_id", time="second"),
    Aggregate("votes_latency_feed", "latency_store", VOTES, time="minute", kind="vote"),
    Aggregate("event_counts_feed", "event_counts_store", MATCH_EVENTS, owner="match_id"),
    Aggregate("events_latency_feed", "latency_store", MATCH_EVENTS, time="minute", kind="event"),
    Aggregate("batches_latency_feed", "latency_store", APPLIED_BATCHES, time="minute", kind="batch"),
    Aggregate("round_metrics_feed", "round_metrics_store", ROUNDS, replaces=True),
    Aggregate("map_metrics_feed", "map_metrics_store", MAP_STATES, replaces=True),
)
"""Aggregates of what the writer inserts."""
