"""Aggregates are computed anew by one owner at a time, and what cannot be done holds nobody up."""

import asyncio
from typing import Any

import pytest

from clickhouse import comparison, mending
from clickhouse.client import ClickHouse
from clickhouse.writer import BATCHES_SAFE, Writer
from core import keys
from core.errors import Fenced, Retry
from tests.support.archive_log import EVERYTHING, SHARDS, ArchiveLog
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.redis, pytest.mark.clickhouse]

MINUTES = "votes_per_minute_store"


class Crash(Exception):
    """Ends a writer where a kill would."""


class Halting(ClickHouse):
    """Stops before the first statement of a kind, for as long as it is told to; ends before one of another kind."""

    def __init__(self, url: str, halts_at: str, dies_at: str) -> None:
        super().__init__(url)
        self._halts_at, self._dies_at = halts_at, dies_at
        self.halted, self.goes_on = asyncio.Event(), asyncio.Event()

    async def command(self, sql: str, *args: Any, **options: Any) -> None:
        if self._halts_at and sql.startswith(self._halts_at):
            self.halted.set()
            await self.goes_on.wait()
        if self._dies_at and sql.startswith(self._dies_at):
            raise Crash
        await super().command(sql, *args, **options)


async def ask(log: ArchiveLog, aggregate: str, *ids: str) -> None:
    (found,) = [one for one in await comparison.discover(log.clickhouse) if one.name == aggregate]
    await mending.ask(log.client, 0, found, ids)


async def write(log: ArchiveLog, writer: Writer) -> None:
    while (batch := await writer.read(EVERYTHING)) is not None:
        await writer.write(batch)


async def mend_all(log: ArchiveLog, writer: Writer) -> None:
    while log.sync.exists(keys.mend(0, writer.log)):
        await writer.mend()


@pytest.mark.parametrize(("halts_at", "dies_at"), [("DELETE", "INSERT"), ("INSERT", "")])
async def test_a_former_owner_that_wakes_up_neither_takes_away_nor_counts_twice(
    log: ArchiveLog, database_url: str, halts_at: str, dies_at: str
) -> None:
    log.vote(20)
    await log.archive()
    halting = Halting(database_url, halts_at, dies_at)
    former = Writer(log.client, log.scripts, halting, SHARDS, 0, "events", log.own())
    await former.take_over()
    await ask(log, MINUTES, "p1")
    mending_ = asyncio.create_task(former.mend())
    await halting.halted.wait()
    owner = log.writer()
    await owner.take_over()
    await mend_all(log, owner)
    log.vote(10)
    await write(log, owner)
    halting.goes_on.set()
    with pytest.raises(Crash if dies_at else Fenced):
        await mending_
    await log.assert_exact()
    await halting.close()


@pytest.mark.parametrize("halts_at", ["DELETE", "INSERT"])
async def test_a_former_owner_that_archives_by_looking_is_kept_out_too(
    log: ArchiveLog, database_url: str, halts_at: str
) -> None:
    log.vote(20)
    await log.archive()
    log.sync.delete(keys.archive(0, "events"))  # Redis lost the position: every row is looked for
    halting = Halting(database_url, halts_at, "" if halts_at == "INSERT" else "INSERT")
    former = Writer(log.client, log.scripts, halting, SHARDS, 0, "events", log.own())
    await former.take_over()
    batch = await former.read(EVERYTHING)
    assert batch is not None
    writing = asyncio.create_task(former.write(batch))
    await halting.halted.wait()
    owner = log.writer()
    await owner.take_over()
    log.vote(10)
    await write(log, owner)
    halting.goes_on.set()
    with pytest.raises((Crash, Fenced)):
        await writing
    await log.assert_exact()
    await halting.close()


SLOW = (
    """CREATE TABLE slow_store (poll_id LowCardinality(String), votes SimpleAggregateFunction(sum, UInt64))
       ENGINE = AggregatingMergeTree ORDER BY poll_id SETTINGS non_replicated_deduplication_window = 100""",
    """CREATE MATERIALIZED VIEW slow_feed TO slow_store AS
       SELECT poll_id, count() AS votes FROM votes WHERE sleep(0.7) = 0 GROUP BY poll_id""",
)


async def test_a_statement_that_runs_on_after_its_connection_broke_counts_nothing_twice(
    log: ArchiveLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.vote(20)
    writer = await log.archive()
    for sql in SLOW:
        await log.clickhouse.command(sql)
    await ask(log, "slow_store", "p1")
    with monkeypatch.context() as patched:
        patched.setattr(comparison, "STATEMENT_S", 0.3)
        with pytest.raises(Retry):
            await writer.mend()
    monkeypatch.setattr(mending, "_PAUSE_MIN_S", 0.0)
    writer = log.writer(token=int(log.sync.get(keys.fence(0, "archive"))))
    await writer.take_over()
    await mend_all(log, writer)
    log.vote(10)
    await write(log, writer)
    assert await log.rows("SELECT sum(votes) FROM slow_store") == [(30,)]
    assert "rebuild" not in log.state()


async def test_nothing_is_looked_for_while_an_earlier_insert_is_running(log: ArchiveLog) -> None:
    """Its owner died, and so many batches have passed that its token counts for nothing."""
    for sql in SLOW:
        await log.clickhouse.command(sql)
    log.vote(20)
    former = log.writer()
    await former.take_over()
    batch = await former.read(EVERYTHING)
    assert batch is not None
    writing = asyncio.create_task(former.write(batch))
    running = (
        "SELECT count() FROM system.processes WHERE Settings['insert_deduplication_token'] LIKE 'votes:events:0:%'"
    )

    async def is_running() -> bool:
        return bool((await log.rows(running))[0][0])

    await wait_until(is_running, 10, "the insert runs")
    writing.cancel()
    await asyncio.wait([writing])
    log.sync.hset(keys.archive(1, "events"), "batches", BATCHES_SAFE + 1)
    owner = log.writer()
    await owner.take_over()
    await log.assert_exact()
    assert await log.rows("SELECT sum(votes) FROM slow_store") == [(20,)]


async def test_attempts_go_on_after_redis_was_set_back_behind_a_fence(log: ArchiveLog) -> None:
    log.vote(20)
    writer = await log.archive()
    await log.clickhouse.command("INSERT INTO rebuild_fences VALUES (0, 'events', 1000), (1, 'events', 2000)")
    await log.clickhouse.command(f"TRUNCATE TABLE {MINUTES}")
    await ask(log, MINUTES, "p1")
    await writer.mend()
    assert log.state()["rebuilds"] == "1001"
    await log.assert_exact()


async def test_an_attempt_does_not_begin_while_another_has_not_ended(log: ArchiveLog) -> None:
    log.vote(20)
    writer = await log.archive()
    log.sync.hset(keys.archive(0, "events"), mapping={"rebuild": 4, "rebuilds": 4})
    await ask(log, MINUTES, "p1")
    with pytest.raises(Retry, match="attempt 4 at aggregates has not ended"):
        await writer.mend()
    await writer.take_over()
    assert "rebuild" not in log.state()
    assert await log.rows("SELECT * FROM rebuild_fences") == [(0, "events", 5)]
