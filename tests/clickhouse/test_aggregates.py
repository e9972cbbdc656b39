"""Aggregates: right after inserts, after what only a repair can mend, and none unknown to the repair."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from clickhouse.aggregates import AGGREGATES, IDS_AT_ONCE, Aggregate
from clickhouse.client import ClickHouse
from clickhouse.reading import Limits
from clickhouse.tables import VOTES, Row
from core import keys
from core.position import EntryId
from core.updates import Fact, MapState, Message, PollState, Round, SeriesState, Update, encode_update
from tests.support.archive_log import ArchiveLog

pytestmark = [pytest.mark.redis, pytest.mark.clickhouse]

MINUTE_US = 60_000_000
FILLED_BY_OTHERS = {"elo_ratings_feed"}
"""By `arenacast elo`, which has its own way of mending."""


async def fill(log: ArchiveLog) -> None:
    """Votes of two polls over three minutes, events of two matches, and what the state consumer makes of them."""
    now_us = int(time.time() * 1e6)
    for age in (2, 1, 0):
        log.vote(7, "p1", received_us=now_us - age * MINUTE_US)
        log.vote(4, "p2", received_us=now_us - age * MINUTE_US)
        for match in ("m1", "m2"):
            log.log_writer.event(match, "0", "round_end", {}, received_us=None)
    messages = [Message("poll.p1", "tally", True, 7, 0, 1, b"{}", now_us - 5000, "c")]
    facts: list[Fact] = [
        Round(5, 0, 2, "m1", "0", 1, "team1", "bomb", 1, 0, False, 5),
        Round(6, 0, 2, "m1", "0", 1, "team2", "defuse", 0, 1, False, 6),
        MapState(5, 0, 2, "m1", "0", "de_dust2", "live", "", 1, "A", "B", 1, 0, 5),
        MapState(6, 0, 2, "m1", "0", "de_dust2", "finished", "team2", 1, "A", "B", 0, 1, 6),
        SeriesState(6, 0, 4, "m1", "live", "", 3, "A", "B", 0, 1, 6),
        PollState(7, 0, 1, "p1", "open", "T", "first", "", {"a": "A"}, 7),
    ]
    encoded = encode_update(Update(1, EntryId(0, 1), EntryId(0, 0), now_us, messages, facts))
    log.sync.xadd(keys.updates(0), {"u": encoded}, id="7-0")
    await log.archive("events")
    await log.archive("updates")


async def everything(log: ArchiveLog) -> dict[str, list[tuple[Any, ...]]]:
    """What the public views say, rows in order. Quantiles are as computed: their order of merging is free."""
    found = {}
    for view, columns in {
        "votes_per_minute": "*",
        "votes_per_second": "*",
        "poll_totals": "*",
        "event_counts": "*",
        "latency": "kind, stage, source, minute, events, p50_ms, worst_ms",
        "source_health": "kind, source, minute, events, last_at, delay_p50_ms",
        "round_metrics": "*",
        "map_metrics": "*",
        "matches": "*",
        "match_metrics": "*",
        "polls": "*",
    }.items():
        found[view] = await log.rows(f"SELECT {columns} FROM {view} ORDER BY ALL")
        assert found[view], view
    return found


async def test_every_materialized_view_is_known_to_the_repair(clickhouse: ClickHouse) -> None:
    found = {
        row[0]
        for row in await clickhouse.query(
            "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine = 'MaterializedView'"
        )
    }
    assert found == {aggregate.feed for aggregate in AGGREGATES} | FILLED_BY_OTHERS


async def test_each_is_what_its_definition_says(clickhouse: ClickHouse) -> None:
    rows = await clickhouse.query(
        "SELECT name, create_table_query FROM system.tables "
        "WHERE database = currentDatabase() AND engine = 'MaterializedView'"
    )
    texts: dict[str, str] = dict(map(tuple, rows))
    for aggregate in AGGREGATES:
        assert f".{aggregate.target} " in texts[aggregate.feed]
        assert (
            f".{aggregate.raw.name}\n" in texts[aggregate.feed] + "\n"
            or f".{aggregate.raw.name} " in texts[aggregate.feed]
        ), aggregate


async def forget(log: ArchiveLog) -> None:
    """Redis lost both positions, so every row has to be looked for."""
    for name in ("events", "updates"):
        log.sync.delete(keys.archive(0, name))
    await log.archive("events", Limits(5, 2**30))
    await log.archive("updates", Limits(5, 2**30))


Damage = Callable[[ArchiveLog, Aggregate], Awaitable[None]]


async def empty(log: ArchiveLog, aggregate: Aggregate) -> None:
    await log.clickhouse.command(f"TRUNCATE TABLE {aggregate.target}")


async def double(log: ArchiveLog, aggregate: Aggregate) -> None:
    await log.clickhouse.command(
        f"INSERT INTO {aggregate.target} SELECT * FROM {aggregate.target}",
        settings={"async_insert": 0, "insert_deduplication_token": "damage"},
    )


@pytest.mark.parametrize("damage", [empty, double])
async def test_every_aggregate_is_computed_anew_where_deduplication_cannot_help(
    log: ArchiveLog, damage: Damage
) -> None:
    await fill(log)
    before = await everything(log)
    for target in {aggregate.target: aggregate for aggregate in AGGREGATES}.values():
        await damage(log, target)
    await forget(log)
    assert await everything(log) == before


async def test_what_others_wrote_into_the_same_table_is_left_alone(log: ArchiveLog) -> None:
    """Latency of another shard, and a poll's other minutes."""
    await fill(log)
    for sql in (
        "INSERT INTO latency_store (kind, stage, source, minute, shard, events) "
        "SELECT kind, stage, source, minute, 1, 1000 FROM latency_store GROUP BY ALL",
        "INSERT INTO votes_per_minute_store (poll_id, option_id, source, minute, votes) VALUES "
        "('p1', 'a', 'load', toDateTime('2020-01-01 00:00:00', 'UTC'), 77)",
    ):
        await log.clickhouse.command(sql, settings={"async_insert": 0, "insert_deduplication_token": sql[:40]})
    before = await everything(log)
    await forget(log)
    assert await everything(log) == before


def test_a_scope_names_only_what_the_rows_touch() -> None:
    at = {name: VOTES.columns.index(name) for name in ("poll_id", "received_at")}

    def row(poll: str, received_ms: int) -> Row:
        values: list[object] = [0] * len(VOTES.columns)
        values[at["poll_id"]], values[at["received_at"]] = poll, received_ms
        return tuple(values)

    (scope,) = AGGREGATES[0].scopes(3, [row("p1", 120_500), row("p2", 60_000)])
    assert (
        scope.target
        == "poll_id IN ('p1', 'p2') AND minute >= toDateTime(60, 'UTC') AND minute < toDateTime(180, 'UTC')"
    )
    assert "fromUnixTimestamp64Milli(60000)" in scope.raw
    many = [row(f"p{number}", 0) for number in range(IDS_AT_ONCE + 1)]
    assert len(list(AGGREGATES[0].scopes(3, many))) == 2
    with pytest.raises(AssertionError):
        list(AGGREGATES[0].scopes(3, [row("p') OR 1 --", 0)]))


@pytest.mark.parametrize("count", [1000, 32_000])
async def test_voters_are_exact_for_ordinary_polls(log: ArchiveLog, count: int) -> None:
    await _insert_voters(log, count)
    assert await log.rows("SELECT sum(voters), max(voters) FROM poll_totals") == [(count, count)]


async def test_voters_of_a_large_poll_are_nearly_right(log: ArchiveLog) -> None:
    await _insert_voters(log, 2_000_000)
    ((voters,),) = await log.rows("SELECT voters FROM poll_totals")
    assert abs(voters - 2_000_000) < 2_000_000 * 0.005


async def _insert_voters(log: ArchiveLog, count: int) -> None:
    """Each votes twice, in different minutes."""
    await log.clickhouse.command(
        "INSERT INTO votes (poll_id, option_id, voter_hash, source, received_at) "
        "SELECT 'p', 'a', sipHash64(number % {count:UInt64}), 'api', toDateTime64('2026-11-21 18:00:00', 3, 'UTC') "
        "+ intDiv(number, 1000) FROM numbers({count:UInt64} * 2)",
        {"count": count},
        settings={"async_insert": 0, "insert_deduplication_token": str(count)},
    )
