"""kill -9 of the archive's process and of the engine, at known points and at any: the result is exact."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
import redis

from clickhouse.client import ClickHouse
from core import keys
from core.local.child import python_environment
from core.local.services import environment
from core.redis_client import connect
from core.settings import Settings
from tests.consumers.archive_child import POINTS
from tests.support.archive_log import SHARDS, ArchiveLog
from tests.support.clickhouse_server import ClickHouseServer, running_clickhouse
from tests.support.migrated import Schema
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.redis, pytest.mark.clickhouse, pytest.mark.crash]

MONTH_US = 31 * 24 * 3600 * 1_000_000
PLANNED = {"after plan", "in insert", "between inserts", "before commit", "redo inserted"}
"""Points at which the plan is in flight."""


class Archiver:
    """An archive process that dies at a point, or never by itself."""

    def __init__(self, settings: Settings, point: str = "never", *options: str) -> None:
        environ = python_environment(environment(settings, os.environ))
        command = [sys.executable, "-m", "tests.consumers.archive_child", point, *options]
        self.process = subprocess.Popen(command, env=environ, cwd=Path.cwd(), stderr=subprocess.DEVNULL)

    async def dies(self) -> int:
        """Its exit code."""
        return await asyncio.to_thread(self.process.wait, 60.0)

    def end(self, number: signal.Signals = signal.SIGKILL) -> int:
        """End it; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(20.0)


@pytest.fixture
def crash_settings(archive_settings: Settings) -> Settings:
    return msgspec.structs.replace(
        archive_settings, archive_batch_max=200, archive_linger_s=0.01, lease_ttl_s=0.5, shards=SHARDS
    )


@pytest.fixture
def started() -> Iterator[list[Archiver]]:
    """Archivers to be ended whatever happens."""
    archivers: list[Archiver] = []
    yield archivers
    for archiver in archivers:
        if archiver.process.poll() is None:
            archiver.end()


def fill(log: ArchiveLog, count: int) -> None:
    """Votes of two months, so that a batch has two partitions and an insert can be torn, and some events."""
    for _ in range(count // 20):
        log.vote(10)
        log.vote(10, received_us=int(time.time() * 1e6) - MONTH_US)
    log.log_writer.event("m1", "1", "round_end", {})


async def drained(log: ArchiveLog, timeout_s: float = 30.0) -> None:
    entries = log.sync.xlen(keys.events(0))
    await wait_until(lambda: log.state().get("entries") == str(entries), timeout_s, f"{entries} entries archived")


@pytest.mark.parametrize("point", POINTS)
async def test_killed_at_any_step_it_is_exact_after_its_successor(
    log: ArchiveLog, crash_settings: Settings, started: list[Archiver], point: str
) -> None:
    fill(log, 600)
    if point == "redo inserted":  # something to redo
        started.append(Archiver(crash_settings, "before commit"))
        assert await started[-1].dies() == -signal.SIGKILL
    started.append(Archiver(crash_settings, point))
    assert await started[-1].dies() == -signal.SIGKILL
    assert ("inflight" in log.state()) == (point in PLANNED), "the kill fell into its window"
    started.append(Archiver(crash_settings))
    await drained(log)
    assert started[-1].end(signal.SIGTERM) == 0
    await log.assert_exact()
    assert await log.rows("SELECT count() FROM match_events") == [(1,)]


async def test_without_deduplication_the_same_kill_is_not_exact(
    log: ArchiveLog, crash_settings: Settings, started: list[Archiver]
) -> None:
    """Negative control of the test above."""
    fill(log, 600)
    started.append(Archiver(crash_settings, "before commit", "careless"))
    assert await started[-1].dies() == -signal.SIGKILL
    started.append(Archiver(crash_settings, "never", "careless"))
    await drained(log)
    with pytest.raises(AssertionError):
        await log.assert_exact()


@pytest.fixture
async def own_engine(
    redis_url: str, tmp_path: Path, schema: Schema
) -> AsyncIterator[tuple[ClickHouseServer, ArchiveLog, str]]:
    """An engine to be killed, with a migrated database; a log on it; its URL."""
    with running_clickhouse(tmp_path / "clickhouse") as server, redis.Redis.from_url(redis_url) as sync:
        url = server.target()
        schema.make(server)
        client, clickhouse = connect(Settings(redis_url=redis_url)), ClickHouse(url)
        yield server, ArchiveLog(sync, client, clickhouse), url
        await clickhouse.close()
        await client.aclose()


async def test_random_kills_of_engine_and_archive_under_load_leave_everything_exact(
    own_engine: tuple[ClickHouseServer, ArchiveLog, str], crash_settings: Settings, started: list[Archiver]
) -> None:
    server, log, url = own_engine
    settings = msgspec.structs.replace(crash_settings, clickhouse_url=url)
    chance = random.Random(7)
    started.append(Archiver(settings))
    caught = 0
    for kill in range(6):
        fill(log, 400)
        await wait_until(lambda: "inflight" in log.state(), 20.0, "a batch is in flight")
        await asyncio.sleep(chance.uniform(0, 0.02))
        if kill % 2:
            started[-1].end()
        else:
            server.kill9()
        caught += "inflight" in log.state()
        if kill % 2:
            started.append(Archiver(settings))
        else:
            server.start()
    fill(log, 200)
    await drained(log)
    assert caught >= 2, "some kills fell into a batch"
    assert started[-1].end(signal.SIGTERM) == 0
    await log.assert_exact()


async def test_a_stop_while_waiting_for_redis_is_a_stop(
    crash_settings: Settings, tmp_path: Path, started: list[Archiver]
) -> None:
    nowhere = msgspec.structs.replace(crash_settings, redis_url=f"unix://{tmp_path}/nobody.sock")
    started.append(Archiver(nowhere))
    await asyncio.sleep(0)
    await wait_until(lambda: Path(f"/proc/{started[-1].process.pid}/task").exists(), 5.0)
    await wait_until(lambda: _handles_sigterm(started[-1].process.pid), 20.0, "it handles signals")
    assert started[-1].end(signal.SIGTERM) == 0


def _handles_sigterm(pid: int) -> bool:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) & 1 << (signal.SIGTERM - 1))
    return False
