"""Where everything that is sent comes from: the output log and hot state of one log, as the gateway reads them.

`Source` is the seam between the gateway's logic and Redis. The tests run the whole logic against a log in memory,
under a virtual clock, with trimming, rollbacks and outages at will; `RedisSource` is tested against a real server.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from core import keys
from core.errors import Poison
from core.position import ZERO, EntryId, parse_entry_id
from core.redis_client import Redis, call
from core.redis_wire import WireConnection
from core.updates import Outlined, Update, decode_update, outline_update
from gateway import hot_state
from gateway.hot_state import HotState

Entries = list[tuple[EntryId, Update | None]]
"""Entries of an output log, in order; None for one that cannot be decoded."""

News = Sequence[tuple[EntryId, Update | Outlined | None]]
"""Likewise, of large ones only the outline."""

U = TypeVar("U")


class Source(Protocol):
    """All methods raise Retry when the log cannot be read now."""

    async def state(self, shard: int, routes: Sequence[str] = ()) -> HotState:
        """Where a shard stands and the hot state of some topics, as of one moment."""

    async def entries(self, shard: int, first: EntryId, count: int) -> tuple[EntryId, Entries]:
        """The newest entry there ever was (perhaps trimmed), and up to `count` entries from `first` on, as of one
        moment."""

    async def follow(self, shard: int, after: EntryId, count: int, wait_s: float) -> News:
        """Up to `count` entries after one, waiting up to `wait_s` for the first."""

    def close(self) -> None:
        """Nobody follows any more."""


class RedisSource:
    """The log in Redis."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._followers: dict[int, WireConnection] = {}

    async def state(self, shard: int, routes: Sequence[str] = ()) -> HotState:
        """See `Source`."""
        return await hot_state.read(self._client, shard, routes)

    async def entries(self, shard: int, first: EntryId, count: int) -> tuple[EntryId, Entries]:
        """See `Source`."""
        pipe = self._client.pipeline(transaction=True)
        pipe.hget(keys.progress(shard), "updates_id")
        pipe.xrange(keys.updates(shard), min=str(first), max="+", count=count)
        newest, reply = await call(pipe.execute())
        return parse_entry_id(newest) if newest else ZERO, _decoded(reply, decode_update)

    async def follow(self, shard: int, after: EntryId, count: int, wait_s: float) -> News:
        """See `Source`. One call per shard at a time."""
        follower = self._followers.get(shard)
        if follower is None:
            follower = self._followers[shard] = WireConnection(self._client)
        block_ms = max(1, int(wait_s * 1000))
        reply = await follower.call(
            "XREAD", "COUNT", count, "BLOCK", block_ms, "STREAMS", keys.updates(shard), str(after), takes_s=wait_s
        )
        return _decoded(((raw_id, _pairs(flat)) for raw_id, flat in reply[0][1]), outline_update) if reply else []

    def close(self) -> None:
        """See `Source`."""
        for follower in self._followers.values():
            follower.close()


def _pairs(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _decoded(
    reply: Iterable[tuple[bytes, dict[bytes, bytes]]], decode: Callable[[dict[bytes, bytes]], U]
) -> list[tuple[EntryId, U | None]]:
    found: list[tuple[EntryId, U | None]] = []
    for raw_id, fields in reply:
        try:
            update: U | None = decode(fields)
        except Poison:
            update = None
        found.append((parse_entry_id(raw_id), update))
    return found
