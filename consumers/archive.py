"""The archive consumer's process: leases, two followers per owned shard, the books, and what is seen of it."""

import asyncio
import time
from collections.abc import Mapping
from functools import partial

import uvloop

from clickhouse.client import ClickHouse
from clickhouse.reading import Log
from clickhouse.rebuilding import parked
from clickhouse.segments import Shelf
from clickhouse.spill import JOB, parse_records
from clickhouse.tables import TABLES
from clickhouse.writer import Writer, writer_sources
from consumers.archive_follower import INSERTS_AT_ONCE, Follower
from consumers.lease import Leases, Ownership, lease_sources
from consumers.reconcile import watch
from consumers.state import unique_owner
from core import collector, http, keys, logs, redis_client
from core.metrics import (
    ARCHIVE_ROWS,
    ARCHIVE_STUCK,
    DEAD,
    LAG_ENTRIES,
    LAG_SECONDS,
    LOOP_ERRORS,
    MENDS_PARKED,
    SPILL_BUDGET,
    SPILL_BYTES,
    SPILL_SEGMENTS,
)
from core.position import parse_entry_id
from core.redis_client import Redis, Scripts, call
from core.settings import Settings

LOGS: tuple[Log, ...] = ("events", "updates", "audit")

GAUGES_S = 1.0

GC_THRESHOLD = 100_000
"""For `collector.relax`: a batch is hundreds of thousands of small objects that live and die together."""


def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. Raises Fatal when the settings contradict the log or name no usable ClickHouse."""
    logs.configure("archive", settings)
    collector.relax(GC_THRESHOLD)
    uvloop.run(_main(settings))


async def _main(settings: Settings) -> None:
    stop = http.stop_event()
    clickhouse = ClickHouse(settings.clickhouse_target, connections_max=INSERTS_AT_ONCE + 4)
    client = redis_client.connect(settings, connections_max=224)  # a blocking read per log of up to 64 shards
    try:
        found = await redis_client.find_log(client, settings, stop)
        if found is not None:
            await Archive(client, clickhouse, settings, found[1], open_shelf(settings, found[0])).run(stop)
    finally:
        await clickhouse.close()
        await client.aclose()


def open_shelf(settings: Settings, log_id: str) -> Shelf | None:
    """The spill directory, None when there is none. Without it the archive works, and cannot spill."""
    if settings.spill_max_mb == 0 and not settings.spill_path.exists():
        return None
    try:
        return Shelf(settings.spill_path, log_id, settings.spill_max_mb * 1024 * 1024)
    except OSError as error:
        logs.get().error("the spill directory cannot be used", path=str(settings.spill_path), error=str(error))
        return None


class Archive:
    """Everything of one archive process but its signals."""

    def __init__(
        self, client: Redis, clickhouse: ClickHouse, settings: Settings, shards: int, shelf: Shelf | None = None
    ) -> None:
        self._shelf = shelf
        self._spilling = asyncio.Lock()
        self._client = client
        self._clickhouse = clickhouse
        self._settings = settings
        self._shards = shards
        self._scripts = Scripts(client, shards, {**lease_sources(), **writer_sources()})
        owner = unique_owner() if shelf is None else f"{unique_owner()}@{shelf.store}"
        self._leases = Leases(self._scripts, JOB, shards, owner, settings.lease_ttl_s, self._homes)
        self._slots = asyncio.Semaphore(INSERTS_AT_ONCE)
        self._followers: dict[tuple[int, Log], Follower] = {}
        for log in LOGS:  # so that every series is there from the start
            for table in TABLES[log]:
                ARCHIVE_ROWS.labels(table.name)
        DEAD.labels(keys.ARCHIVE_GROUP)
        LOOP_ERRORS.labels(JOB)

    async def run(self, stop: asyncio.Event) -> None:
        """Archive what this process owns until `stop` is set, then finish the batches in flight."""
        checks: dict[str, http.Check] = {
            "redis": partial(redis_client.check, self._client),
            "clickhouse": self._clickhouse.check,
            "archive": self._check_followers,
        }
        settings = self._settings
        async with http.operations_server(checks, settings.metrics_host, settings.archive_metrics_port):
            gauges = asyncio.create_task(self._set_gauges())
            books = asyncio.create_task(
                watch(self._client, self._clickhouse, settings, self._shards, lambda: self._leases.owned)
            )
            try:
                await self._leases.run(self._work, stop)
            finally:
                gauges.cancel()
                books.cancel()

    async def _work(self, ownership: Ownership) -> None:
        """All logs of a shard; the end of one is the end of the others."""
        shard, token = ownership.shard, ownership.token
        followers = {}
        for log in LOGS:
            writer = Writer(self._client, self._scripts, self._clickhouse, self._shards, shard, log, token, self._shelf)
            followers[shard, log] = Follower(
                self._client, writer, self._settings, self._slots, self._spilling, ownership.stop
            )
        self._followers |= followers
        tasks = [asyncio.create_task(follower.run()) for follower in followers.values()]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for name in followers:
                self._followers.pop(name, None)

    async def _homes(self) -> Mapping[int, str]:
        """A shard with segment files belongs to those who have the directory they lie in, as long as there are any."""
        pipe = self._client.pipeline(transaction=False)
        wanted = [(shard, log) for shard in range(self._shards) for log in LOGS]
        for shard, log in wanted:
            pipe.lrange(keys.segments(shard, log), 0, 0)
        listed = zip(wanted, await call(pipe.execute()), strict=True)
        return {shard: f"@{record.store}" for (shard, _), texts in listed for record in parse_records(texts)}

    # -- seen from outside

    async def _check_followers(self) -> str:
        stuck = [f"shard {shard} {log}: {f.stuck}" for (shard, log), f in self._followers.items() if f.stuck]
        return "; ".join(stuck)

    async def _set_gauges(self) -> None:
        """Lag of the owned shards (entries of the input log not archived, age of the oldest entry of either log), and
        what lies on disk."""
        SPILL_BUDGET.set(self._settings.spill_max_mb * 1024 * 1024)
        while True:
            try:
                entries, oldest_s = 0, 0.0
                for name, follower in list(self._followers.items()):
                    count, age_s = await self._lag(follower)
                    entries += count if name[1] == "events" else 0
                    oldest_s = max(oldest_s, age_s)
                LAG_ENTRIES.labels(keys.ARCHIVE_GROUP).set(entries)
                LAG_SECONDS.labels(keys.ARCHIVE_GROUP).set(oldest_s)
                ARCHIVE_STUCK.set(sum(bool(follower.stuck) for follower in self._followers.values()))
                MENDS_PARKED.set(len(await parked(self._client, self._leases.owned, LOGS)))
                SPILL_SEGMENTS.set(sum(follower.segments for follower in self._followers.values()))
                if self._shelf is not None:
                    await asyncio.to_thread(self._shelf.expire)
                    SPILL_BYTES.set(await asyncio.to_thread(self._shelf.used_bytes))
            except Exception as error:
                LOOP_ERRORS.labels("archive_gauges").inc()
                logs.get().warning("lag unknown", error=str(error))
            await asyncio.sleep(GAUGES_S)

    async def _lag(self, follower: Follower) -> tuple[int, float]:
        stream, committed = follower.stream, follower.committed
        oldest = await call(self._client.xrange(stream, min=f"({committed}", count=1))
        if not oldest and not follower.segments:
            return 0, 0.0
        added = (await call(self._client.xinfo_stream(stream)))["entries-added"]
        archived = int(await call(self._client.hget(follower.state_key, "entries")) or 0)
        first_ms = follower.oldest_segment_ms or parse_entry_id(oldest[0][0]).ms
        return max(1, added - archived), max(0.0, time.time() - first_ms / 1000)
