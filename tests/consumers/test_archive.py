"""The archive's process: it follows both logs, slows down with ClickHouse, says what is wrong, and stops in order."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import msgspec
import pytest
import redis
from prometheus_client import REGISTRY

from clickhouse import comparison, mending
from clickhouse.client import ClickHouse
from clickhouse.reading import Limits
from clickhouse.writer import Batch, Plan, Writer
from consumers import archive as module
from consumers import archive_follower
from consumers.archive import Archive
from core import keys
from core.errors import Retry
from core.position import EntryId
from core.redis_client import connect
from core.settings import Settings
from core.updates import Prediction
from tests.support.archive_log import SHARDS, ArchiveLog
from tests.support.clickhouse_server import running_clickhouse
from tests.support.migrated import Schema
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.redis, pytest.mark.clickhouse]


@asynccontextmanager
async def archiving(settings: Settings, clickhouse: ClickHouse | None = None) -> AsyncIterator[Archive]:
    """A running archive; it stops in order at the end."""
    client = connect(settings, connections_max=20)
    own = clickhouse or ClickHouse(settings.clickhouse_target, timeout_s=5.0)
    archive, stop = Archive(client, own, settings, SHARDS), asyncio.Event()
    task = asyncio.create_task(archive.run(stop))
    try:
        yield archive
    finally:
        stop.set()
        await asyncio.wait_for(task, 10.0)
        if clickhouse is None:
            await own.close()
        await client.aclose()


async def archived(log: ArchiveLog, entries: int, name: str = "events", timeout_s: float = 30.0) -> None:
    """Wait until so many entries are committed."""
    await wait_until(
        lambda: int(log.state(name).get("entries", 0)) == entries, timeout_s, f"{entries} entries archived"
    )


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_both_logs_are_archived_as_they_grow(log: ArchiveLog, archive_settings: Settings) -> None:
    rows = metric("archive_rows_total", table="votes")
    inserts = metric("archive_insert_seconds_count")
    async with archiving(archive_settings):
        log.vote(10)
        await archived(log, 10)
        log.update("5-0", Prediction(5, 0, 3, "m", "1", 1, 0.5, "mr12", 5))
        await archived(log, 1, "updates")
        log.vote(10)
        await archived(log, 20)
    await log.assert_exact()
    assert await log.rows("SELECT count() FROM predictions") == [(1,)]
    assert metric("archive_rows_total", table="votes") == rows + 20
    assert metric("archive_insert_seconds_count") >= inserts + 3


async def test_a_stop_finishes_the_batch_in_flight_and_gives_the_leases_up(
    log: ArchiveLog, archive_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = asyncio.Event()

    class Slow(Writer):
        async def _insert_all(self, plan: Plan, batch: Batch) -> None:
            planned.set()
            await asyncio.sleep(0.2)
            await super()._insert_all(plan, batch)

    monkeypatch.setattr(module, "Writer", Slow)
    log.vote(10)
    async with archiving(archive_settings):
        await asyncio.wait_for(planned.wait(), 10.0)
        assert log.sync.exists(keys.lease(0, "archive"))
    assert log.state()["entries"] == "10"
    assert "inflight" not in log.state()
    assert not any(log.sync.exists(keys.lease(shard, "archive")) for shard in range(SHARDS))


async def test_a_backlog_is_drained_without_lingering(log: ArchiveLog, archive_settings: Settings) -> None:
    log.vote(1000)
    settings = msgspec.structs.replace(archive_settings, archive_batch_max=50, archive_linger_s=5.0)
    async with archiving(settings):
        await archived(log, 1000, timeout_s=60.0)  # twenty times five seconds of lingering would be late
    await log.assert_exact()
    assert log.state()["batches"] == "20"


async def test_entries_that_come_together_are_written_together(log: ArchiveLog, archive_settings: Settings) -> None:
    settings = msgspec.structs.replace(archive_settings, archive_linger_s=3.0)  # the votes below may take a while
    async with archiving(settings):
        for _ in range(5):
            log.vote(1)
            await asyncio.sleep(0.01)
        await archived(log, 5)
    assert log.state()["batches"] == "1"


async def test_clickhouse_away_and_back_loses_and_repeats_nothing(
    redis_url: str, tmp_path: Path, archive_settings: Settings, schema: Schema
) -> None:
    with running_clickhouse(tmp_path / "clickhouse") as server, redis.Redis.from_url(redis_url) as sync:
        settings = msgspec.structs.replace(archive_settings, clickhouse_url=server.target())
        schema.make(server)
        client, clickhouse = connect(settings), ClickHouse(settings.clickhouse_url)
        log = ArchiveLog(sync, client, clickhouse)
        async with archiving(settings) as archive:
            log.vote(50)
            await archived(log, 50)
            server.kill9()
            errors = metric("loop_errors_total", loop="archive")
            log.vote(100)
            await wait_until(lambda: metric("loop_errors_total", loop="archive") > errors + 1, 10.0, "it noticed")
            await wait_until(lambda: metric("stream_lag_entries", group="archive") == 100, 10.0, "the lag shows")
            await wait_until(lambda: metric("stream_lag_seconds", group="archive") > 0, 10.0, "its age shows")
            assert await archive._clickhouse.check() != ""
            assert len(log.state().get("inflight", "")) < 1000  # what waits, waits in Redis and not in memory
            server.start()
            await archived(log, 150, timeout_s=20.0)
            await wait_until(lambda: metric("stream_lag_entries", group="archive") == 0, 10.0, "the lag is gone")
        await log.assert_exact()
        await clickhouse.close()
        await client.aclose()


async def test_readiness_and_metrics_are_served(
    log: ArchiveLog, archive_settings: Settings, free_port: Callable[[], int]
) -> None:
    settings = msgspec.structs.replace(archive_settings, archive_metrics_port=free_port())
    async with archiving(settings) as archive, httpx.AsyncClient() as http:
        url = f"http://127.0.0.1:{settings.archive_metrics_port}"
        log.vote(1)
        await archived(log, 1)
        answer = await http.get(f"{url}/readyz")
        assert answer.json() == {"status": "ready", "checks": {"redis": "ok", "clickhouse": "ok", "archive": "ok"}}
        text = (await http.get(f"{url}/metrics")).text
        for name in ("votes", "match_events", "predictions", "rounds", "map_states", "poll_states"):
            assert f'archive_rows_total{{table="{name}"}}' in text
        archive._followers[0, "events"].stuck = "needs you"
        answer = await http.get(f"{url}/readyz")
        assert answer.status_code == 503
        assert answer.json()["checks"]["archive"] == "shard 0 events: needs you"


async def test_a_stuck_log_is_told_and_the_others_go_on(
    log: ArchiveLog, archive_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_follower, "STUCK_S", 0.05)
    log.vote(5)
    writer = log.writer()
    await writer.take_over()
    batch = await writer._plan(Plan("0-0", "1-0", "2-0", 2, 0, 1, 1, 0))
    log.update("5-0", Prediction(5, 0, 3, "m", "1", 1, 0.5, "mr12", 5))
    async with archiving(archive_settings) as archive:
        reason = await wait_until(archive._check_followers, 10.0, "it is told")
        assert reason.startswith("shard 0 events: the plan in flight, 1-0 to 2-0, had 2 entries")
        await archived(log, 1, "updates")
        assert log.sync.hget(keys.archive(0, "events"), "inflight") == batch
        log.sync.hdel(keys.archive(0, "events"), "inflight")  # the operator has looked into it
        await archived(log, 5)
        await wait_until(lambda: not archive._followers[0, "events"].stuck, 10.0, "it is well again")
    await log.assert_exact()


async def test_an_unexpected_failure_is_counted_and_survived(
    log: ArchiveLog, archive_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([RuntimeError("a bug"), ZeroDivisionError("another")])
    read = Writer.read

    async def failing(self: Writer, *args: object) -> Batch | None:
        for failure in failures:
            raise failure
        return await read(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Writer, "read", failing)
    before = metric("loop_errors_total", loop="archive")
    log.vote(5)
    async with archiving(archive_settings):
        await archived(log, 5)
    assert metric("loop_errors_total", loop="archive") == before + 2
    await log.assert_exact()


async def test_dead_letters_are_counted(log: ArchiveLog, archive_settings: Settings) -> None:
    before = metric("dead_letters_total", group="archive")
    log.append_garbage()
    log.vote(1)
    async with archiving(archive_settings):
        await archived(log, 2)
    assert metric("dead_letters_total", group="archive") == before + 1


async def test_two_processes_share_the_shards_and_one_takes_over_from_the_other(
    log: ArchiveLog, archive_settings: Settings
) -> None:
    async with archiving(archive_settings) as first:
        async with archiving(archive_settings) as second:
            await wait_until(
                lambda: sorted(first._leases.owned + second._leases.owned) == [0, 1], 10.0, "each shard has an owner"
            )
            log.vote(20)
            await archived(log, 20)
        await wait_until(lambda: first._leases.owned == [0, 1], 10.0, "the other took over")
        log.vote(20)
        await archived(log, 40)
    await log.assert_exact()


async def test_no_more_batches_than_slots_are_held_at_once(
    log: ArchiveLog, archive_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Back-pressure: while inserts are slow, nothing more is read."""
    holding, most = 0, 0
    release = asyncio.Event()

    class Held(Writer):
        async def read(self, *args: object) -> Batch | None:
            nonlocal holding, most
            holding += 1
            most = max(most, holding)
            return await super().read(*args)  # type: ignore[arg-type]

        async def write(self, batch: Batch) -> None:
            nonlocal holding
            await release.wait()
            await super().write(batch)
            holding -= 1

    monkeypatch.setattr(module, "Writer", Held)
    monkeypatch.setattr(module, "INSERTS_AT_ONCE", 1)
    log.vote(10)
    log.update("5-0", Prediction(5, 0, 3, "m", "1", 1, 0.5, "mr12", 5))
    async with archiving(archive_settings) as archive:
        await wait_until(lambda: holding == 1, 10.0, "one batch is held")
        await wait_until(lambda: len(archive._slots._waiters or ()) > 0, 10.0, "the other log waits for a slot")
        assert (holding, most) == (1, 1)
        release.set()
        await archived(log, 10)
        await archived(log, 1, "updates")
    assert most == 1


async def test_in_a_backlog_the_next_batch_is_read_while_one_is_written(
    log: ArchiveLog, archive_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[EntryId | None] = []
    release = asyncio.Event()

    class Held(Writer):
        async def read(self, limits: Limits, after: EntryId | None = None) -> Batch | None:
            reads.append(after)
            return await super().read(limits, after)

        async def write(self, batch: Batch) -> None:
            await release.wait()
            await super().write(batch)

    monkeypatch.setattr(module, "Writer", Held)
    log.vote(95)
    async with archiving(msgspec.structs.replace(archive_settings, archive_batch_max=10)):
        await wait_until(lambda: len(reads) >= 2, 10.0, "the second is read before the first is written")
        await asyncio.sleep(0.05)
        assert len(reads) == 2, "and no third"
        assert reads[0] is None
        assert reads[1] is not None
        assert log.state() == {}
        release.set()
        await archived(log, 95)
    await log.assert_exact()


async def test_a_failure_with_the_next_batch_in_hand_starts_over_from_what_is_committed(
    log: ArchiveLog, archive_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([Retry("once"), None, Retry("twice")])

    class Failing(Writer):
        async def _plan(self, plan: Plan) -> bytes:
            text = await super()._plan(plan)
            if error := next(failures, None):
                raise error
            return text

    monkeypatch.setattr(module, "Writer", Failing)
    log.vote(95)
    async with archiving(msgspec.structs.replace(archive_settings, archive_batch_max=10)):
        await archived(log, 95)
    await log.assert_exact()


async def test_an_aggregate_that_cannot_be_computed_anew_is_given_up_and_the_archive_goes_on(
    log: ArchiveLog, archive_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mending, "_PAUSE_MIN_S", 0.01)
    monkeypatch.setattr(module, "GAUGES_S", 0.05)
    monkeypatch.setattr(archive_follower, "BACKOFF_MAX_S", 0.05)
    for sql in (
        """CREATE TABLE bad_store (match_id LowCardinality(String), events SimpleAggregateFunction(sum, UInt64))
           ENGINE = AggregatingMergeTree ORDER BY match_id""",
        """CREATE MATERIALIZED VIEW bad_feed TO bad_store AS
           SELECT match_id, count() AS events FROM match_events WHERE throwIf(true) = 0 GROUP BY match_id""",
    ):
        await log.clickhouse.command(sql)
    log.vote(20)
    await log.archive()
    # What the view cannot take came before it was there.
    await log.clickhouse.command(
        "INSERT INTO match_events (match_id) VALUES ('m1')", settings={"materialized_views_ignore_errors": 1}
    )
    await log.clickhouse.command("TRUNCATE TABLE votes_per_minute_store")
    known = {one.name: one for one in await comparison.discover(log.clickhouse)}
    await mending.ask(log.client, 0, known["bad_store"], ["m1", "m2"])
    await mending.ask(log.client, 0, known["votes_per_minute_store"], ["p1"])
    async with archiving(archive_settings):
        for entries in (30, 40):
            log.vote(10)
            await archived(log, entries)
        given_up = await mending.wait_done(log.client, [0], 20.0)
        await wait_until(lambda: metric("archive_parked_mends") == 1, 10.0, "the metric says so")
        log.vote(10)
        await archived(log, 50)
        await log.assert_exact()
        assert given_up.keys() == {(0, "bad_store m1")}
        assert "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO" in given_up[0, "bad_store m1"]
        await log.clickhouse.command("DROP VIEW bad_feed")
        await log.clickhouse.command(
            """CREATE MATERIALIZED VIEW bad_feed TO bad_store AS
               SELECT match_id, count() AS events FROM match_events GROUP BY match_id"""
        )
        await mending.ask(log.client, 0, known["bad_store"], ["m1"])
        assert await mending.wait_done(log.client, [0], 20.0) == {}
    assert await log.rows("SELECT match_id, sum(events) FROM bad_store GROUP BY 1") == [("m1", 1)]
