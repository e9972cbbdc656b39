"""Where everything that is sent comes from: the output log and hot state of one log, and the archive behind them.

`Source` is the seam between the gateway's logic and its servers. The tests run the whole logic against a log in memory,
under a virtual clock, with trimming, rollbacks and outages at will; `RedisSource` is tested against real servers.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from clickhouse import past
from clickhouse.client import ClickHouse
from clickhouse.past import PastEvent
from core import keys
from core.errors import Poison, Retry
from core.position import ZERO, EntryId, parse_entry_id
from core.redis_client import Redis, call
from core.redis_wire import WireConnection
from core.updates import Outlined, Update, decode_update, outline_update
from gateway import hot_state
from gateway.hot_state import HotState

PAST_TIMEOUT_S = 5.0
"""Bound of one question to the archive: a reader who waits to join is asked to come back after ten."""

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

    async def archived(self, shard: int) -> EntryId:
        """All events up to here are in the archive and have been published, as of one moment."""

    async def past(
        self, shard: int, match_id: str, first: EntryId, rows: int, bytes_max: int
    ) -> tuple[list[PastEvent], bool]:
        """See `clickhouse.past.past_events`. May raise Fatal, too."""

    async def kept_since_ms(self, now_ms: int) -> int:
        """See `clickhouse.past.kept_since_ms`. May raise Fatal, too."""


class RedisSource:
    """The log in Redis, and its past in ClickHouse where there is one."""

    def __init__(self, client: Redis, clickhouse: ClickHouse | None = None) -> None:
        self._client = client
        self._followers: dict[int, WireConnection] = {}
        self._clickhouse = clickhouse

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

    async def archived(self, shard: int) -> EntryId:
        """See `Source`."""
        pipe = self._client.pipeline(transaction=True)
        pipe.hget(keys.archive(shard, "events"), "committed")
        pipe.hget(keys.progress(shard), "last_id")
        committed, applied = (parse_entry_id(raw) if raw else ZERO for raw in await call(pipe.execute()))
        return min(committed, applied)

    async def past(
        self, shard: int, match_id: str, first: EntryId, rows: int, bytes_max: int
    ) -> tuple[list[PastEvent], bool]:
        """See `Source`."""
        return await past.past_events(
            self._archive(), shard, match_id, first, rows=rows, bytes_max=bytes_max, timeout_s=PAST_TIMEOUT_S
        )

    async def kept_since_ms(self, now_ms: int) -> int:
        """See `Source`."""
        return await past.kept_since_ms(self._archive(), now_ms, timeout_s=PAST_TIMEOUT_S)

    def _archive(self) -> ClickHouse:
        if self._clickhouse is None:
            raise Retry("there is no archive")
        return self._clickhouse


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
