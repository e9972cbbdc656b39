"""The archive under hours' worth of trouble in minutes: `make soak`.

Each run prints what it did, so that a run in which nothing fell into an insert shows as such.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
import redis

from clickhouse.client import ClickHouse
from clickhouse.migrate import migrate
from clickhouse.writer import Plan
from core import keys
from core.position import parse_entry_id
from core.redis_client import connect, identify
from core.settings import Settings
from tests.consumers.test_archive_crash import Archiver
from tests.support.archive_load import ArchiveLoad
from tests.support.clickhouse_server import ClickHouseServer, running_clickhouse
from tests.support.slow_link import SlowLink
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.soak, pytest.mark.redis, pytest.mark.clickhouse, pytest.mark.timeout(1800)]

SHARDS = 4
KILLS = 42
BATCH = 1500


class Site:
    """Servers, settings and the archive processes of one soak."""

    def __init__(self, server: ClickHouseServer, sync: redis.Redis, settings: Settings, clickhouse: ClickHouse) -> None:
        self.server = server
        self.settings = settings
        self.clickhouse = clickhouse
        self.load = ArchiveLoad(sync, SHARDS, seed=11)
        self.archivers: list[Archiver] = []

    def start(self, *options: str) -> None:
        """One more archive process."""
        self.archivers.append(Archiver(self.settings, "never", *options))

    async def drained(self, timeout_s: float = 600.0) -> None:
        """Wait until everything is committed."""
        await wait_until(lambda: self.load.archived() == self.load.votes, timeout_s, "everything is archived")

    async def torn(self, plans: dict[int, bytes]) -> int:
        """Plans that are half in ClickHouse, and 1 more when its tables do not agree with each other. Nobody may be
        writing."""
        found = 0
        for shard, text in plans.items():
            plan = msgspec.json.decode(text, type=Plan)
            after, last = parse_entry_id(plan.after), parse_entry_id(plan.last)
            rows = await self.clickhouse.query(
                "SELECT count() FROM votes WHERE shard = {shard:UInt8} AND (stream_ms, stream_seq) > "
                "({a:UInt64}, {b:UInt64}) AND (stream_ms, stream_seq) <= ({c:UInt64}, {d:UInt64})",
                {"shard": shard, "a": after.ms, "b": after.seq, "c": last.ms, "d": last.seq},
            )
            found += 0 < rows[0][0] < plan.count
        totals = await self.clickhouse.query(
            "SELECT (SELECT count() FROM votes), (SELECT sum(votes) FROM votes_per_minute), "
            "(SELECT sum(votes) FROM votes_per_second)"
        )
        return found + (len(set(totals[0])) > 1)


@pytest.fixture
async def site(redis_url: str, tmp_path: Path) -> AsyncIterator[Site]:
    """Everything but an archive process."""
    with running_clickhouse(tmp_path / "clickhouse") as server, redis.Redis.from_url(redis_url) as sync:
        settings = Settings(
            data_dir=tmp_path, redis_url=redis_url, clickhouse_url=server.target(), shards=SHARDS, lease_ttl_s=0.5,
            archive_batch_max=BATCH, archive_linger_s=0.01, archive_metrics_port=0, events_retention_s=1.0,
        )  # fmt: skip
        await migrate(settings)
        client, clickhouse = connect(settings), ClickHouse(settings.clickhouse_url)
        await identify(client, settings, proposal="soak", now_ms=0)
        place = Site(server, sync, settings, clickhouse)
        try:
            yield place
        finally:
            for archiver in place.archivers:
                if archiver.process.poll() is None:
                    archiver.end()
            await clickhouse.close()
            await client.aclose()


async def kill_again_and_again(site: Site, kills: int, *options: str) -> dict[str, int]:
    """Under load end archive, engine or both, at random moments of a batch in flight; what the kills fell into."""
    chance = random.Random(5)
    counts = dict.fromkeys(("kills", "in flight", "looked at", "torn"), 0)
    site.start(*options)
    for number in range(kills):
        site.load.append(2 * BATCH)
        done = site.load.archived()
        await wait_until(lambda done=done: site.load.archived() > done, 60.0, "it goes on")  # type: ignore[misc]
        await wait_until(lambda: bool(site.load.plans()), 60.0, "a batch is in flight")
        await asyncio.sleep(chance.uniform(0, 0.08))
        kind = ("archive", "engine", "both")[number % 3]
        if kind != "archive":
            site.server.kill9()
        if kind != "engine":
            site.archivers[-1].end()
        plans = site.load.plans()
        counts["kills"] += 1
        counts["in flight"] += len(plans)
        if kind != "archive":
            site.server.start()
        if kind == "both":
            counts["looked at"] += len(plans)
            counts["torn"] += await site.torn(plans)
        if kind != "engine":
            site.start(*options)
    return counts


async def test_after_forty_kills_of_archive_and_engine_every_vote_is_there_once(site: Site) -> None:
    counts = await kill_again_and_again(site, KILLS)
    await site.drained()
    print(f"\n{counts}, {site.load.votes} votes")
    assert counts["in flight"] >= KILLS // 4, "kills fell into batches"
    assert counts["torn"] >= 1, "and into inserts"
    await site.load.assert_exact(site.clickhouse)


async def test_without_deduplication_the_same_kills_leave_votes_twice(site: Site) -> None:
    """Negative control of the test above."""
    await kill_again_and_again(site, KILLS // 3, "careless")
    await site.drained()
    with pytest.raises(AssertionError):
        await site.load.assert_exact(site.clickhouse)


async def test_clickhouse_away_for_a_minute_at_5000_events_a_second(site: Site) -> None:
    """Ingest's place is taken by the load; what cannot be archived goes to disk, and comes back."""
    site.settings = msgspec.structs.replace(site.settings, spill_after_s=5.0, archive_batch_max=20_000)
    site.start()
    site.load.append(5000)
    await site.drained()
    site.server.kill9()
    began = time.monotonic()
    second = 0
    while second < 60:
        site.load.append(5000)
        second += 1
        await asyncio.sleep(max(0.0, began + second - time.monotonic()))
    spilled = sum(path.stat().st_size for path in site.settings.spill_path.rglob("*.seg"))
    assert spilled > 0, "some of it went to disk"
    site.server.start()
    back = time.monotonic()
    await site.drained()
    print(
        f"\n{site.load.votes} votes, {spilled} bytes on disk, drained {time.monotonic() - back:.1f} s after it was back"
    )
    await site.load.assert_exact(site.clickhouse)


@pytest.fixture
def link(site: Site) -> Iterator[SlowLink]:
    """A slow network before the engine."""
    with SlowLink(site.server.port, bytes_per_second=400_000) as slow:
        yield slow


async def test_a_slow_clickhouse_slows_the_archive_and_nothing_else(site: Site, link: SlowLink) -> None:
    url = site.settings.clickhouse_url.replace(f":{site.server.port}/", f":{link.port}/")
    site.settings = msgspec.structs.replace(site.settings, clickhouse_url=url)
    site.start()
    longest_s = 0.0
    for _ in range(20):
        began = time.monotonic()
        site.load.append(1000)
        longest_s = max(longest_s, time.monotonic() - began)
    behind = site.load.votes - site.load.archived()
    await site.drained()
    print(f"\nslowest append {longest_s:.2f} s, {behind} behind when the load ended")
    await site.load.assert_exact(site.clickhouse)


async def test_a_full_spill_disk_only_makes_the_log_longer(site: Site) -> None:
    site.settings = msgspec.structs.replace(site.settings, spill_after_s=1.0, spill_max_mb=1)
    site.start()
    site.load.append(1000)
    await site.drained()
    site.server.kill9()
    for _ in range(40):
        site.load.append(2000)
        await asyncio.sleep(0.2)
    held = sum(path.stat().st_size for path in site.settings.spill_path.rglob("*") if path.is_file())
    assert held <= 2**20
    site.server.start()
    await site.drained()
    await site.load.assert_exact(site.clickhouse)
    assert not any(site.load._sync.exists(keys.segments(shard, "events")) for shard in range(SHARDS))
