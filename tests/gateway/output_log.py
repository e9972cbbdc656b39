"""Write the output log and hot state the way the state consumer's apply script does, for tests of the read side.

Synchronous, so that a test's thread of events is its own. Only the layout of `core.keys` and `core.updates` is shared.
"""

import time
from typing import Any

import msgspec
import redis

from core import keys
from core.clock import now_us
from core.names import shard_of
from core.position import EntryId
from core.updates import Message, Update, encode_update

SHARDS = 4


class OutputLog:
    """The consumer side of one Redis."""

    def __init__(self, url: str, shards: int = SHARDS) -> None:
        self.client = redis.Redis.from_url(url)
        self.shards = shards
        self._last: dict[int, EntryId] = {}
        self._previous: dict[int, EntryId] = {}
        self.client.hset(keys.LOG, mapping={"id": "testlog", "shards": shards, "created_ms": 0})
        for shard in range(shards):
            self.client.hset(keys.epochs(shard), mapping={"run": "x", "now": 1, "1": "0-1"})

    def close(self) -> None:
        self.client.close()

    def new_epoch(self, shard: int, epoch: int, first: EntryId) -> None:
        """What the first writer does after a restart of the server."""
        self.client.hset(keys.epochs(shard), mapping={"now": epoch, str(epoch): str(first)})

    def next_id(self, shard: int) -> EntryId:
        """An id for the next input."""
        last = self._last.get(shard, EntryId(0, 0))
        ms = max(int(time.time() * 1000), last.ms)
        self._last[shard] = last.next if ms == last.ms else EntryId(ms, 0)
        return self._last[shard]

    def apply(
        self, *inputs: tuple[str, list[tuple[str, bool, Any]], Any], epoch: int = 1, received_us: int | None = None
    ) -> list[EntryId]:
        """Apply one batch. Each input: topic, its messages (kind, is_state, data), and the topic's new snapshot.

        All inputs must be of one shard. Returns their ids.
        """
        shard = shard_of(inputs[0][0], self.shards)
        ids: list[EntryId] = []
        messages: list[Message] = []
        pipe = self.client.pipeline(transaction=True)
        now = received_us or now_us()
        for topic, parts, snapshot in inputs:
            assert shard_of(topic, self.shards) == shard
            entry = self.next_id(shard)
            ids.append(entry)
            for k, (kind, is_state, data) in enumerate(parts, 1):
                encoded = data if isinstance(data, bytes) else msgspec.json.encode(data)
                messages.append(Message(topic, kind, is_state, entry.ms, entry.seq, k, encoded, now, "test"))
            pos = f"{epoch}.{entry.ms}.{entry.seq}"
            pipe.hset(keys.state(shard, topic), mapping={"pos": pos, "data": msgspec.json.encode(snapshot)})
            pipe.zadd(keys.topics(shard), {topic: entry.ms})
            if topic.startswith("match."):
                _, match_id, map_id = topic.split(".")
                pipe.sadd(keys.maps(shard, match_id), map_id)
        progress = {"last_id": str(ids[-1])}
        if messages:
            previous = self._previous.get(shard, EntryId(0, 0))
            update = Update(epoch, ids[0], previous, now_us(), messages, [])
            pipe.xadd(keys.updates(shard), {"u": encode_update(update)}, id=str(ids[-1]))
            progress["updates_id"] = str(ids[-1])
            self._previous[shard] = ids[-1]
        pipe.hset(keys.progress(shard), mapping=progress)  # type: ignore[arg-type]
        pipe.execute()
        return ids

    def tally(self, poll_id: str, n: int, **more: Any) -> EntryId:
        """A poll's tally with `n` votes."""
        data = {"poll_id": poll_id, "status": "open", "options": {"a": n}, "total": n, "applied": n, **more}
        return self.apply((f"poll.{poll_id}", [("tally", True, data)], {"title": poll_id, **data}))[0]

    def event(self, match_id: str, map_id: str, n: int, kind: str = "round_end") -> EntryId:
        """A match event: the event itself, the state after it, a prediction."""
        topic = f"match.{match_id}.{map_id}"
        state = {"match_id": match_id, "map_id": map_id, "status": "live", "round_no": n}
        parts = [
            (kind, False, {"match_id": match_id, "map_id": map_id, "type": kind, "n": n}),
            ("state", True, state),
            ("prediction", True, {"round_no": n, "p_team1": 0.5}),
        ]
        return self.apply((topic, parts, {**state, "prediction": None}))[0]

    def silent(self, topic: str) -> EntryId:
        """An input that gives no output."""
        shard = shard_of(topic, self.shards)
        entry = self.next_id(shard)
        self.client.hset(keys.progress(shard), "last_id", str(entry))
        return entry

    def trim(self, topic: str, first_kept: EntryId) -> None:
        """Drop the entries of a topic's shard before one."""
        self.client.xtrim(keys.updates(shard_of(topic, self.shards)), minid=str(first_kept), approximate=False)
