"""Which polls and matches there are, newest change first, in pages.

The order is (ms of the last change, name), both descending. A page's `next` names the last item shown, so pages do not
overlap; an item that changes between two pages moves to the front and is not shown twice behind.
"""

import asyncio
import time
from bisect import bisect_left
from typing import Literal

from core import keys
from core.names import is_id
from core.redis_client import Redis, call

Kind = Literal["poll", "match"]

FRESH_S = 1.0
"""An index is read at most this often, however many ask."""

TOPICS_MAX = 10_000
"""Topics read per shard: older ones are still there by name, but in no list."""

Key = tuple[int, str]


class Listing:
    """Ids of all polls and matches."""

    def __init__(self, client: Redis, shards: int) -> None:
        self._client = client
        self._shards = shards
        self._index: dict[Kind, list[Key]] = {}
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def page(self, kind: Kind, limit: int, after: Key | None) -> tuple[list[str], str | None]:
        """Ids of one page, and the `after` of the next one. Raises Retry when Redis is away."""
        async with self._reading:
            if time.monotonic() - self._read_at > FRESH_S:
                self._index = await self._read()
                self._read_at = time.monotonic()
        index = self._index[kind]  # ascending, so that a page is read from its end
        end = len(index) if after is None else bisect_left(index, after)
        shown = index[max(0, end - limit) : end]
        following = f"{shown[0][0]}.{shown[0][1]}" if end > limit else None
        return [name for _, name in reversed(shown)], following

    async def _read(self) -> dict[Kind, list[Key]]:
        newest: dict[Kind, dict[str, int]] = {"poll": {}, "match": {}}
        for shard in range(self._shards):
            found = await call(self._client.zrange(keys.topics(shard), 0, TOPICS_MAX - 1, desc=True, withscores=True))
            for topic, score in found:
                word, _, rest = topic.decode().partition(".")
                kind: Kind = "poll" if word == "poll" else "match"
                newest[kind].setdefault(rest.partition(".")[0], int(score))  # the first one seen is the newest
        return {kind: sorted((ms, name) for name, ms in ids.items()) for kind, ids in newest.items()}


def parse_after(text: str) -> Key:
    """The `next` of a page. Raises ValueError when it is not one."""
    ms, _, name = text.partition(".")
    if not (ms.isdecimal() and len(ms) <= 19 and is_id(name)):
        raise ValueError("after must be what a page gave as next")
    return int(ms), name
