"""Reading the output log backwards of the ring: in chunks, each asked for once however many readers want it.

A reader that comes with a cursor the ring does not reach back to is served from `updates:{s}`. A crowd that lost its
connection at the same moment comes with nearly the same cursors, so a read starts at the full second before the
position wanted: everybody of that second shares it, and everybody who has used up a chunk asks for the same next one.

Chunks also know whether anything is missing: each entry names the one before it (`core.updates.Update.previous`), so
a reader at position p has lost nothing if the first entry at or after p follows on one that p had already passed.
"""

import asyncio
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable

from core import logs
from core.epochs import Epochs
from core.errors import Poison, Retry
from core.metrics import LOOP_ERRORS
from core.position import K_ALL, ZERO, EntryId, Position
from gateway import frames
from gateway.frames import Item
from gateway.source import Source

COUNT_MAX = 128
"""Entries of one read: a batch is at most a few hundred messages, and the event loop waits while they are decoded."""

CACHE_BYTES_MAX = 32 * 1024 * 1024
HEAD_FRESH_S = 0.2
"""A chunk that ends at the newest entry is shared this long; older ones never change."""

_Key = tuple[int, int, EntryId]


class Chunk:
    """Some consecutive entries of one shard's output log."""

    def __init__(
        self,
        entries: list[tuple[EntryId, EntryId]],
        items: list[Item],
        until: Position,
        newest: EntryId,
        *,
        is_full: bool,
    ) -> None:
        """`entries`: (id, previous) of each. `until`: everything up to here is in this chunk or before it. `newest`:
        the last entry the log ever had, there or trimmed. `is_full`: there may be more entries after this chunk's."""
        self._ids = [entry for entry, _ in entries]
        self._previous = [previous for _, previous in entries]
        self._newest = newest
        self.until = until
        self.is_full = is_full
        self.size = 200 + sum(item.size for item in items)
        self._by_topic: dict[str, list[Item]] = {}
        for item in items:
            self._by_topic.setdefault(item.topic, []).append(item)

    def is_whole_for(self, position: Position) -> bool:
        """Whether a reader at `position` gets everything after it from here on; else entries were trimmed."""
        index = bisect_left(self._ids, position.entry)
        if index < len(self._ids):
            return passed(position, self._previous[index])
        return passed(position, self._newest)

    def after(self, routes: Iterable[str], position: Position) -> list[Item]:
        """Messages of some topics and patterns after a position, in order."""
        found: list[Item] = []
        for route in routes:
            if route.endswith(".*"):
                prefix = route[:-1]
                for topic, items in self._by_topic.items():
                    if topic.startswith(prefix):
                        found.extend(items)
            else:
                found.extend(self._by_topic.get(route, ()))
        return sorted((item for item in found if item.position > position), key=lambda item: item.position)


def passed(position: Position, entry: EntryId) -> bool:
    """Whether a reader at `position` has everything that an entry with this id gave."""
    return entry < position.entry or (entry == position.entry and position.k >= K_ALL)


class Backlog:
    """Shared reads of the output logs."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._log = logs.get()
        self._chunks: OrderedDict[_Key, Chunk] = OrderedDict()
        self._reading: dict[_Key, asyncio.Task[Chunk]] = {}
        self._bytes = 0
        self.reads = 0
        """Reads of the log so far."""

    async def chunk(self, shard: int, position: Position, epochs: Epochs, edge: Position) -> Chunk:
        """Entries of a shard at and after `position`, as many as one read gives. Raises Retry when Redis is away, or
        when entries belong to a newer epoch than `epochs` knows: the tail is about to find out.

        `edge`: what was known to be published before the call; reading to the end of the log proves that much. A
        chunk whose `until` does not exceed `position` means that the log ends before it.
        """
        # After a whole entry the next reader up to here asks for the same start; elsewhere, start at the full second.
        entry = position.entry
        first = entry if position.k >= K_ALL else EntryId(entry.ms // 1000 * 1000, 0)
        chunk = await self._shared((shard, epochs.current, first), epochs, edge)
        while chunk.is_full and chunk.until.entry < entry:
            chunk = await self._shared((shard, epochs.current, chunk.until.entry), epochs, edge)
        if chunk.until > position:
            return chunk
        return await self._read(shard, entry, epochs, edge)  # somebody's read of the end, from before it got there

    async def _shared(self, key: _Key, epochs: Epochs, edge: Position) -> Chunk:
        found = self._chunks.get(key)
        if found is not None:
            self._chunks.move_to_end(key)
            return found
        task = self._reading.get(key)
        if task is None:
            task = asyncio.create_task(self._read(key[0], key[2], epochs, edge))
            self._reading[key] = task
            task.add_done_callback(lambda done: self._keep(key, done))
        return await asyncio.shield(task)  # a reader who leaves must not take the others' read along

    async def _read(self, shard: int, first: EntryId, epochs: Epochs, edge: Position) -> Chunk:
        self.reads += 1
        newest, found = await self._source.entries(shard, first, COUNT_MAX)
        entries: list[tuple[EntryId, EntryId]] = []
        items: list[Item] = []
        for entry, update in found:
            if update is None:
                entries.clear()  # whoever stands before it finds that the next entry follows on one it never had
                items.clear()
                self._log.error("unreadable entry", shard=shard, entry=str(entry))
                LOOP_ERRORS.labels("backlog").inc()
                continue
            if update.epoch > epochs.current:
                raise Retry(f"shard {shard} is in epoch {update.epoch}, which is not known here yet")
            if entries and update.previous > entries[-1][0]:
                entries.clear()
                items.clear()
            entries.append((entry, update.previous))
            for message in update.messages:
                epoch = epochs.of(EntryId(message.ms, message.seq))
                try:
                    items.append(frames.item(message, shard, epoch, update.applied_us))
                except Poison as error:
                    self._log.error("message left out", error=str(error))
        is_full = len(found) == COUNT_MAX
        until = epochs.at(found[-1][0] if found else ZERO)
        return Chunk(entries, items, until if is_full else max(until, edge), newest, is_full=is_full)

    def _keep(self, key: _Key, task: asyncio.Task[Chunk]) -> None:
        del self._reading[key]
        if task.cancelled() or task.exception() is not None:
            return
        chunk = task.result()
        self._chunks[key] = chunk
        self._bytes += chunk.size
        while self._bytes > CACHE_BYTES_MAX:
            self._bytes -= self._chunks.popitem(last=False)[1].size
        if not chunk.is_full:
            asyncio.get_running_loop().call_later(HEAD_FRESH_S, self._drop, key, chunk)

    def _drop(self, key: _Key, chunk: Chunk) -> None:
        if self._chunks.get(key) is chunk:
            del self._chunks[key]
            self._bytes -= chunk.size
