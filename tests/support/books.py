"""Log, state consumer and archive in this process, on real servers: what reconciling, erasing and repairing work on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import redis

from clickhouse.client import ClickHouse
from consumers.archive import Archive
from consumers.reconciliation import Report, run_once
from consumers.state import StateConsumer
from core import keys
from core.names import poll_topic, shard_of
from core.position import parse_entry_id
from core.redis_client import Redis, connect
from core.settings import Settings
from tests.support.log_writer import LogWriter
from tests.support.waiting import wait_until

SHARDS = 2


class Books:
    """A small installation without its doors: entries are appended as ingest would."""

    def __init__(self, settings: Settings, clickhouse: ClickHouse) -> None:
        self.settings = settings = msgspec.structs.replace(settings, lease_ttl_s=20.0)  # busy machine: no takeovers
        self.clickhouse = clickhouse
        self.sync: Any = redis.Redis.from_url(settings.redis_url)
        self.client: Redis = connect(settings, connections_max=60)
        self.log = LogWriter(self.sync, SHARDS)
        self.sync.hset(keys.LOG, mapping={"id": "test", "shards": SHARDS, "created_ms": 1})
        self._number = 0

    def votes(self, poll_id: str, count: int, voters: int = 1_000_000) -> None:
        """Votes for alternating options."""
        for _ in range(count):
            self._number += 1
            self.log.vote(poll_id, f"e{self._number}", "ab"[self._number % 2], f"v{self._number % voters}")

    @asynccontextmanager
    async def consuming(self, *, state: bool = True, archive: bool = True) -> AsyncIterator[None]:
        """Run the consumers."""
        stop = asyncio.Event()
        tasks = []
        if state:
            tasks.append(asyncio.create_task(StateConsumer(self.client, self.settings, SHARDS).run(stop)))
        if archive:
            consumer = Archive(self.client, self.clickhouse, self.settings, SHARDS)
            tasks.append(asyncio.create_task(consumer.run(stop)))
        try:
            yield
        finally:
            stop.set()
            await asyncio.wait_for(asyncio.gather(*tasks), 30)

    async def settled(self, *, archive: bool = True) -> None:
        """Wait until everything appended is applied and archived."""

        def is_settled() -> bool:
            for shard in range(SHARDS):
                for stream, name, field in self._committed(shard, archive=archive):
                    newest = self.sync.xrevrange(stream, count=1)
                    done = parse_entry_id(self.sync.hget(name, field) or b"0-0")
                    if newest and parse_entry_id(newest[0][0]) > done:
                        return False
            return True

        await wait_until(is_settled, 40, "everything is applied and archived")

    def _committed(self, shard: int, *, archive: bool) -> list[tuple[str, str, str]]:
        found = [(keys.events(shard), keys.progress(shard), "last_id")]
        if archive:
            found.append((keys.events(shard), keys.archive(shard, "events"), "committed"))
            found.append((keys.updates(shard), keys.archive(shard, "updates"), "committed"))
        return found

    async def reconcile(self, since_ms: int = 0, wait_s: float = 5.0, retention_s: float = 1e9) -> Report:
        """One thorough reconciliation."""
        return await run_once(
            self.client, self.clickhouse, SHARDS, since_ms=since_ms, wait_s=wait_s, retention_ms=int(retention_s * 1000)
        )

    def state_key(self, poll_id: str) -> str:
        """Of a poll's hot state."""
        return keys.state(self.shard(poll_id), poll_topic(poll_id))

    def shard(self, poll_id: str) -> int:
        """Of a poll."""
        return shard_of(poll_topic(poll_id), SHARDS)

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of a query."""
        return [tuple(row) for row in await self.clickhouse.query(sql)]

    async def change(self, sql: str) -> None:
        """Damage a table, and wait until it is done."""
        await self.clickhouse.command(sql, settings={"mutations_sync": 2, "lightweight_deletes_sync": 2})

    async def close(self) -> None:
        """Let go of the servers."""
        await self.client.aclose()
        self.sync.close()
