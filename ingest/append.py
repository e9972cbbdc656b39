"""One append: groups of items of one shard become one call of `append.lua`. Hot path.

Measured with `loadtests.bench_ingest` (two quiet cores, Valkey 9.1, unix socket, AOF always, one ingest process, eight
connections): 145,000 to 160,000 votes/s in bodies of 500, 60,000 in bodies of 10, 8,000 one by one; of a vote in a body
of 500 ingest takes 3.8 µs and Redis 3.5 to 5 µs of processor time. Plain `XADD`s, ready-made: 560,000 to 630,000/s.

A group is a run of items of one topic and one request, in the order of its body. Its items are already in the shape
the script takes: event id, body, event id, body, …
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from core import keys
from core.names import shard_of
from core.redis_client import Argument, Scripts, lua

HOOK_SUPPRESSION_S = 30
"""An equal hook body within this time is a repeat, later a new event (CONTRACT "Repeats")."""

SCRIPTS = ("append", "put_poll", "close_poll")


def sources() -> dict[str, str]:
    """The writing scripts of ingest, for `core.redis_client.Scripts`."""
    return {name: lua("ingest", name) for name in SCRIPTS}


@dataclass(slots=True)
class Group:
    """Items of one topic and one request. `suppression` is set for a hook body: equal ones are repeats for 30 s."""

    kind: Literal["vote", "match"]
    topic: str
    header: str
    items: list[str | bytes] = field(default_factory=list)  # event id, body, event id, body, …
    sources: list[str] = field(default_factory=list)  # one per item, for the metrics
    suppression: str = ""

    def split(self, items_max: int) -> list["Group"]:
        """Groups of at most `items_max` items each, in order."""
        if len(self.sources) <= items_max:
            return [self]
        return [
            Group(
                self.kind,
                self.topic,
                self.header,
                self.items[2 * at : 2 * (at + items_max)],
                self.sources[at : at + items_max],
                self.suppression,
            )
            for at in range(0, len(self.sources), items_max)
        ]


class Appender:
    """Writes batches into the log, one script call each."""

    def __init__(self, scripts: Scripts, shards: int, window_s: int) -> None:
        """`window_s`: an event id of a vote is remembered at least this long."""
        self.shards = shards
        self._scripts = scripts
        self._window_s = window_s

    def shard_of(self, topic: str) -> int:
        """Shard that a topic's events go to."""
        return shard_of(topic, self.shards)

    async def append(self, shard: int, groups: Sequence[Group]) -> list[str]:
        """One text per group with a character per item: `1` appended, `0` duplicate, `?` no such poll.

        All groups must belong to `shard`. Raises Retry when the outcome is unknown or the log refuses; repeating the
        same items is harmless.
        """
        names = [keys.events(shard), keys.counters(shard)]
        args: list[Argument] = [self._window_s, HOOK_SUPPRESSION_S]
        for group in groups:
            if group.kind == "vote":
                names += (keys.definition(shard, group.topic), keys.seen(shard, group.topic))
            else:
                names += (keys.seen(shard, group.topic), keys.hook(shard, group.topic))
            args += (group.kind, len(group.sources), group.header, group.suppression)
            args += group.items
        replies: list[bytes] = await self._scripts.run("append", names, args)
        return [reply.decode() for reply in replies]
