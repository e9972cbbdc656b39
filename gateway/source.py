"""Where everything that is sent comes from: the output log and hot state of one log, as the gateway reads them.

`Source` is the seam between the gateway's logic and Redis. The tests run the whole logic against a log in memory,
under a virtual clock, with trimming, rollbacks and outages at will; `RedisSource` is tested against a real server.
"""

from collections.abc import Sequence
from typing import Protocol

from core import keys
from core.errors import Poison
from core.position import ZERO, EntryId, parse_entry_id
from core.redis_client import Redis, call
from core.updates import Update, decode_update
from gateway import hot_state
from gateway.hot_state import HotState

Entries = list[tuple[EntryId, Update | None]]
"""Entries of an output log, in order; None for one that cannot be decoded."""


class Source(Protocol):
    """All methods raise Retry when the log cannot be read now."""

    async def state(self, shard: int, routes: Sequence[str] = ()) -> HotState:
        """Where a shard stands and the hot state of some topics, as of one moment."""

    async def entries(self, shard: int, first: EntryId, count: int) -> tuple[EntryId, Entries]:
        """The newest entry there ever was (perhaps trimmed), and up to `count` entries from `first` on, as of one
        moment."""

    async def follow(self, shard: int, after: EntryId, count: int, wait_s: float) -> Entries:
        """Up to `count` entries after one, waiting up to `wait_s` for the first."""


class RedisSource:
    """The log in Redis."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    async def state(self, shard: int, routes: Sequence[str] = ()) -> HotState:
        """See `Source`."""
        return await hot_state.read(self._client, shard, routes)

    async def entries(self, shard: int, first: EntryId, count: int) -> tuple[EntryId, Entries]:
        """See `Source`."""
        pipe = self._client.pipeline(transaction=True)
        pipe.hget(keys.progress(shard), "updates_id")
        pipe.xrange(keys.updates(shard), min=str(first), max="+", count=count)
        newest, reply = await call(pipe.execute())
        return parse_entry_id(newest) if newest else ZERO, _decoded(reply)

    async def follow(self, shard: int, after: EntryId, count: int, wait_s: float) -> Entries:
        """See `Source`."""
        read = self._client.xread({keys.updates(shard): str(after)}, count=count, block=max(1, int(wait_s * 1000)))
        reply = await call(read)
        return _decoded(reply[0][1]) if reply else []


def _decoded(reply: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> Entries:
    found: Entries = []
    for raw_id, fields in reply:
        try:
            update: Update | None = decode_update(fields)
        except Poison:
            update = None
        found.append((parse_entry_id(raw_id), update))
    return found
