"""Votes for many polls over several shards and months, in the log and in the sender's own books."""

import random
import time
from typing import Any

import redis

from clickhouse.client import ClickHouse
from core import keys
from core.digest import MASK, vote_hash
from core.events import header
from core.names import poll_topic, shard_of

MONTH_US = 31 * 24 * 3600 * 1_000_000
POLLS = 24
MONTHS = 12


class ArchiveLoad:
    """Appends as ingest lays it out, in pipelines; received in any month of a year, so that a batch has rows in
    many partitions of every table that is partitioned by time, and storing it takes long enough to be torn."""

    def __init__(self, sync: redis.Redis, shards: int, seed: int) -> None:
        self._sync: Any = sync
        self._shards = shards
        self._chance = random.Random(seed)
        self._ordinals = dict.fromkeys(range(shards), 0)
        self.per_poll = dict.fromkeys((f"p{number}" for number in range(POLLS)), 0)
        self.votes = 0
        self.digest = 0

    def append(self, count: int) -> None:
        """So many votes."""
        pipe = self._sync.pipeline(transaction=False)
        now_us = time.time_ns() // 1000
        for _ in range(count):
            poll_id = f"p{self._chance.randrange(POLLS)}"
            topic = poll_topic(poll_id)
            shard = shard_of(topic, self._shards)
            self._ordinals[shard] += 1
            event_id, option = f"e{self.votes}", "abc"[self.votes % 3]
            received_us = now_us - self._chance.randrange(MONTHS) * MONTH_US
            body = (
                f'{{"event_id":"{event_id}","poll_id":"{poll_id}","option":"{option}","voter":"{self.votes:016x}",'
                f'"ts":null,"source":"load"}}'
            )
            head = f"{header('vote', topic, received_us, 'soak')} {self._ordinals[shard]}"
            pipe.xadd(keys.events(shard), {"h": head, "d": body})
            self.votes += 1
            self.per_poll[poll_id] += 1
            self.digest = (self.digest + vote_hash(event_id, option)) & MASK
        pipe.execute()

    def archived(self) -> int:
        """Entries committed so far, by all shards."""
        counts = (self._sync.hget(keys.archive(shard, "events"), "entries") for shard in range(self._shards))
        return sum(int(count or 0) for count in counts)

    def plans(self) -> dict[int, bytes]:
        """Plans in flight by shard."""
        found = {shard: self._sync.hget(keys.archive(shard, "events"), "inflight") for shard in range(self._shards)}
        return {shard: plan for shard, plan in found.items() if plan}

    async def assert_exact(self, clickhouse: ClickHouse) -> None:
        """Raw, distinct positions and every aggregate equal what was appended, in number and digest, poll by poll."""
        raw = await clickhouse.query(
            "SELECT count(), uniqExact(shard, stream_epoch, stream_ms, stream_seq), sum(vote_hash) FROM votes"
        )
        assert [tuple(row) for row in raw] == [(self.votes, self.votes, self.digest)]
        wanted = {poll_id: count for poll_id, count in self.per_poll.items() if count}
        polls = await clickhouse.query("SELECT poll_id, sum(votes), sum(voters) FROM votes_per_minute GROUP BY poll_id")
        assert {poll_id: (votes, voters) for poll_id, votes, voters in polls} == {
            poll_id: (count, count) for poll_id, count in wanted.items()
        }
        seconds = await clickhouse.query("SELECT poll_id, sum(votes) FROM votes_per_second GROUP BY poll_id")
        assert dict(map(tuple, seconds)) == wanted
        sums = await clickhouse.query("SELECT sum(digest) FROM votes_per_minute")
        assert sums[0][0] == self.digest
