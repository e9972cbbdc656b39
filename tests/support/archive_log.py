"""A writer on a log, for tests that go through the protocol step by step."""

from collections.abc import Callable
from typing import Any

import msgspec
import redis

from clickhouse.client import ClickHouse
from clickhouse.reading import Limits, Log
from clickhouse.segments import Shelf
from clickhouse.writer import Batch, Plan, Writer, writer_sources
from core import keys
from core.digest import MASK, vote_hash
from core.events import header
from core.position import EntryId
from core.redis_client import Redis, Scripts, lua
from core.updates import Fact, Update, encode_update
from tests.support.log_writer import LogWriter

SHARDS = 2
EVERYTHING = Limits(1000, 2**30)


class ArchiveLog:
    """One shard's logs and writers for them."""

    def __init__(self, sync: redis.Redis, client: Redis, clickhouse: ClickHouse) -> None:
        self.sync: Any = sync  # the stubs know neither bytes nor streams well enough
        self.client = client
        self.clickhouse = clickhouse
        self.log_writer = LogWriter(sync, shards=1)  # everything in shard 0
        self.digest = 0
        self.votes = 0
        self.scripts = Scripts(client, SHARDS, writer_sources())
        self.shelf: Shelf | None = None

    def vote(self, count: int = 1, poll_id: str = "p1", received_us: int | None = None) -> None:
        """Append votes for alternating options by ever new voters."""
        for _ in range(count):
            event_id, option = f"e{self.votes}", "ab"[self.votes % 2]
            body = {
                "event_id": event_id, "poll_id": poll_id, "option": option, "voter": f"{self.votes:016x}",
                "source": "load",
            }  # fmt: skip
            self.log_writer.append("vote", f"poll.{poll_id}", body, received_us=received_us)
            self.digest = (self.digest + vote_hash(event_id, option)) & MASK
            self.votes += 1

    def update(self, last: str, *facts: Fact, epoch: int = 1) -> None:
        """Append an entry of the output log."""
        encoded = encode_update(Update(epoch, EntryId(0, 1), EntryId(0, 0), 0, [], list(facts)))
        self.sync.xadd(keys.updates(0), {"u": encoded}, id=last)

    def append_garbage(self) -> str:
        """Append what no decoder takes; returns its id."""
        raw = self.sync.xadd(keys.events(0), {"h": header("vote", "poll.p1", 1, "c") + " 1", "d": "{nonsense"})
        return str(raw.decode())

    def own(self) -> int:
        """A new fencing token, as a lease draws it; the old one is worth nothing any more."""
        return int(self.sync.incr(keys.fence(0, "archive")))

    def writer(self, log: Log = "events", kind: Callable[..., Writer] = Writer, token: int | None = None) -> Writer:
        """A writer that owns shard 0."""
        number = self.own() if token is None else token
        return kind(self.client, self.scripts, self.clickhouse, SHARDS, 0, log, number, self.shelf)

    async def taken_over(self) -> tuple[Writer, Batch]:
        """A writer that has taken the input log over, and the batch that it would write."""
        writer = self.writer()
        await writer.take_over()
        batch = await writer.read(EVERYTHING)
        assert batch is not None, "there is nothing to archive"
        return writer, batch

    def plan(self) -> Plan:
        """The plan in flight of the input log."""
        return msgspec.json.decode(self.state()["inflight"], type=Plan)

    async def archive(self, log: Log = "events", limits: Limits = EVERYTHING) -> Writer:
        """Take a log over and write all there is."""
        writer = self.writer(log)
        await writer.take_over()
        while (batch := await writer.read(limits)) is not None:
            await writer.write(batch)
        return writer

    def trim(self) -> int:
        """Trim the input log as a state consumer does that has applied everything, to the entry; how many went."""
        last = self.sync.xinfo_stream(keys.events(0))["last-generated-id"]
        self.sync.hset(keys.progress(0), "last_id", last)
        names = [
            keys.events(0), keys.updates(0), keys.progress(0), keys.archive(0, "events"), keys.archive(0, "updates")
        ]  # fmt: skip
        exact = lua("consumers", "trim").replace("'~'", "'='")
        return int(self.sync.eval(exact, len(names), *names, 2**45, 2**45)[0])

    def state(self, log: str = "events") -> dict[str, str]:
        """The archive's hash."""
        found = self.sync.hgetall(keys.archive(0, log))
        return {name.decode(): value.decode() for name, value in found.items()}

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of a query."""
        return [tuple(row) for row in await self.clickhouse.query(sql)]

    async def assert_exact(self) -> None:
        """Raw, distinct positions and aggregate all equal what was appended, in number and digest."""
        raw = await self.rows(
            "SELECT count(), uniqExact(shard, stream_epoch, stream_ms, stream_seq), sum(vote_hash) FROM votes"
        )
        assert raw == [(self.votes, self.votes, self.digest)]
        minutes = await self.rows("SELECT sum(votes), sum(digest), sum(weight), sum(voters) FROM votes_per_minute")
        assert minutes == [(self.votes, self.digest, self.votes, self.votes)]
