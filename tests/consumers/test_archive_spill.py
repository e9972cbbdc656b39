"""ClickHouse away for long: the log stays short, what it gave up is on disk, and everything arrives once."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import redis

from clickhouse.client import ClickHouse
from clickhouse.segments import Shelf
from consumers.archive import Archive, open_shelf
from core import keys
from core.redis_client import connect, identify
from core.settings import Settings
from tests.consumers.test_archive import archived, metric
from tests.consumers.test_archive_crash import Archiver, drained, fill
from tests.support.archive_log import SHARDS, ArchiveLog
from tests.support.clickhouse_server import ClickHouseServer, running_clickhouse
from tests.support.migrated import Schema
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.redis, pytest.mark.clickhouse]


@pytest.fixture
def spill_settings(archive_settings: Settings) -> Settings:
    """Hours as tenths of a second."""
    return msgspec.structs.replace(
        archive_settings,
        archive_batch_max=200,
        lease_ttl_s=0.5,
        shards=SHARDS,
        events_retention_s=0.2,
        updates_retention_s=0.2,
        spill_after_s=0.3,
    )


@pytest.fixture
async def outage(
    redis_url: str, tmp_path: Path, spill_settings: Settings, schema: Schema
) -> AsyncIterator[tuple[ClickHouseServer, ArchiveLog, Settings]]:
    """An engine that can be away, a log on it, settings for both."""
    with running_clickhouse(tmp_path / "clickhouse") as server, redis.Redis.from_url(redis_url) as sync:
        settings = msgspec.structs.replace(spill_settings, clickhouse_url=server.target())
        schema.make(server)
        client, clickhouse = connect(settings), ClickHouse(settings.clickhouse_url)
        yield server, ArchiveLog(sync, client, clickhouse), settings
        await clickhouse.close()
        await client.aclose()


@pytest.fixture
def started() -> Iterator[list[Archiver]]:
    """Archivers to be ended whatever happens."""
    archivers: list[Archiver] = []
    yield archivers
    for archiver in archivers:
        if archiver.process.poll() is None:
            archiver.end()


@asynccontextmanager
async def archiving(settings: Settings, shelf: Shelf | None) -> AsyncIterator[Archive]:
    """A running archive with a spill directory; it stops in order at the end."""
    client, clickhouse = connect(settings, connections_max=20), ClickHouse(settings.clickhouse_target, timeout_s=5.0)
    archive, stop = Archive(client, clickhouse, settings, SHARDS, shelf), asyncio.Event()
    task = asyncio.create_task(archive.run(stop))
    try:
        yield archive
    finally:
        stop.set()
        await asyncio.wait_for(task, 30.0)
        await clickhouse.close()
        await client.aclose()


def segments(log: ArchiveLog) -> int:
    return int(log.sync.llen(keys.segments(0, "events")))


def waiting(log: ArchiveLog) -> int:
    """Entries of the log that are neither archived nor on disk."""
    state = log.state()
    return len(log.sync.xrange(keys.events(0), min=f"({state.get('spilled', state.get('committed', '0-0'))}"))


async def test_killed_again_and_again_while_clickhouse_is_away_it_keeps_the_log_short_and_loses_nothing(
    outage: tuple[ClickHouseServer, ArchiveLog, Settings], started: list[Archiver]
) -> None:
    server, log, settings = outage
    chance = random.Random(3)
    started.append(Archiver(settings))
    fill(log, 200)
    await drained(log)
    server.kill9()
    longest = 0
    for _ in range(2):
        before = segments(log)
        for _ in range(3):
            fill(log, 400)
            await asyncio.sleep(chance.uniform(0, 0.1))
        await wait_until(lambda before=before: segments(log) > before, 20.0, "more went to disk")  # type: ignore[misc]
        started[-1].end()
        log.trim()
        longest = max(longest, log.sync.xlen(keys.events(0)))
        started.append(Archiver(settings))
    await wait_until(lambda: waiting(log) == 0, 20.0, "everything is on disk")
    log.trim()
    assert log.sync.xlen(keys.events(0)) <= 1, "nothing waits in Redis"
    assert longest < log.votes
    total = int(log.sync.xinfo_stream(keys.events(0))["entries-added"])
    server.start()
    await wait_until(lambda: segments(log) < 3, 30.0, "it is archived from disk")
    started[-1].end()
    started.append(Archiver(settings))
    log.vote(20)
    await archived(log, total + 20, timeout_s=30.0)
    assert started[-1].end(signal.SIGTERM) == 0
    await log.assert_exact()
    assert segments(log) == 0
    assert "spilled" not in log.state()


async def test_what_happens_on_disk_is_measured(outage: tuple[ClickHouseServer, ArchiveLog, Settings]) -> None:
    server, log, settings = outage
    shelf = open_shelf(settings, "log1")
    assert shelf is not None
    server.kill9()
    before = metric("archive_spilled_entries_total")
    log.vote(50)
    async with archiving(settings, shelf):
        await wait_until(lambda: metric("archive_spill_segments") > 0, 20.0, "segments are counted")
        await wait_until(lambda: metric("archive_spilled_entries_total") == before + 50, 20.0, "and their entries")
        log.trim()
        await wait_until(lambda: metric("archive_spill_bytes") > 100, 10.0, "and their bytes")
        assert metric("archive_spill_budget_bytes") == settings.spill_max_mb * 2**20
        await wait_until(lambda: metric("stream_lag_entries", group="archive") == 50, 10.0, "they still lag")
        await wait_until(lambda: metric("stream_lag_seconds", group="archive") > 0.3, 10.0, "and age")
        server.start()
        await archived(log, 50, timeout_s=30.0)
        await wait_until(lambda: metric("archive_spill_segments") == 0, 10.0, "nothing is left on disk")
        await wait_until(lambda: metric("stream_lag_seconds", group="archive") == 0, 10.0, "nothing lags")
    await log.assert_exact()


async def test_a_short_outage_and_a_backlog_of_a_stopped_archive_stay_in_the_log(
    log: ArchiveLog, spill_settings: Settings, tmp_path: Path
) -> None:
    """Old entries alone are no reason: ClickHouse takes them as fast from the log."""
    log.vote(600)
    await asyncio.sleep(0.5)
    shelf = Shelf(tmp_path / "spill", "log1", 2**30)
    before = metric("archive_spilled_entries_total")
    async with archiving(spill_settings, shelf):
        await archived(log, 600)
    assert metric("archive_spilled_entries_total") == before
    await log.assert_exact()


async def test_a_backlog_goes_to_disk_while_redis_is_short_of_memory(
    log: ArchiveLog, spill_settings: Settings, tmp_path: Path
) -> None:
    log.vote(600)
    await asyncio.sleep(0.5)
    before = metric("archive_spilled_entries_total")
    # More than a log writes in one turn, or it would never be behind.
    settings = msgspec.structs.replace(spill_settings, archive_batch_max=50, spill_memory_percent=0, spill_after_s=1e3)
    async with archiving(settings, Shelf(tmp_path / "spill", "log1", 2**30)):
        await archived(log, 600)
    assert metric("archive_spilled_entries_total") > before
    await log.assert_exact()


async def test_a_shard_follows_its_segments_to_the_machine_that_has_them(
    outage: tuple[ClickHouseServer, ArchiveLog, Settings], tmp_path: Path
) -> None:
    server, log, settings = outage
    one, two = (Shelf(tmp_path / name, "log1", 2**30) for name in ("one", "two"))
    server.kill9()
    log.vote(30)
    async with archiving(settings, one):
        await wait_until(lambda: segments(log) > 0 and waiting(log) == 0, 20.0, "it went to disk")
    log.trim()
    server.start()
    async with archiving(settings, two) as alone:
        reason = await wait_until(alone._check_followers, 20.0, "nobody else has the directory, and it is said")
        assert f"spill directory {one.store}, which is not mine" in reason
        assert await wait_until(lambda: metric("archive_stuck_logs") == 1, 10.0, "and counted")
        async with archiving(settings, one):
            await archived(log, 30, timeout_s=30.0)
    await log.assert_exact()


async def test_without_a_usable_directory_the_archive_works_and_says_so(
    log: ArchiveLog, spill_settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    settings = msgspec.structs.replace(spill_settings, spill_dir=str(tmp_path / "file" / "spill"))
    assert open_shelf(settings, "log1") is None
    assert "the spill directory cannot be used" in "".join(capsys.readouterr())
    log.vote(5)
    async with archiving(settings, None):
        await archived(log, 5)
    await log.assert_exact()


async def test_the_process_finds_the_directory_by_the_identity_of_the_log(
    outage: tuple[ClickHouseServer, ArchiveLog, Settings], started: list[Archiver]
) -> None:
    server, log, settings = outage
    log_id, _ = await identify(log.client, settings, proposal="thislog", now_ms=0)
    server.kill9()
    log.vote(30)
    started.append(Archiver(settings))
    await wait_until(lambda: segments(log) > 0, 20.0, "it went to disk")
    assert [path.name for path in settings.spill_path.iterdir() if path.is_dir()] == [log_id]


def test_no_budget_and_no_directory_is_no_spilling(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, spill_max_mb=0)
    assert open_shelf(settings, "log1") is None
    assert not settings.spill_path.exists()
    settings.spill_path.mkdir()  # of earlier times: what is in it is archived
    assert open_shelf(settings, "log1") is not None
