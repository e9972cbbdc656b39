"""Reading the output log backwards of the ring: in chunks, each asked for once however many readers want it.

A reader that comes with a cursor the ring does not reach back to is served from `updates:{s}`. A crowd that lost its
connection at the same moment comes with nearly the same cursors, so a read starts at the full second before the
position wanted: everybody of that second shares it, and everybody who has used up a chunk asks for the same next one.

Chunks also know whether anything is missing: each entry names the one before it (`core.updates.Update.previous`), so
a reader at position p has lost nothing if the first entry at or after p follows on one that p had already passed.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from operator import attrgetter

from core import logs
from core.epochs import Epochs
from core.errors import Poison, Retry
from core.metrics import CATCH_UP_READS, LOOP_ERRORS
from core.position import K_ALL, ZERO, EntryId, Position
from gateway import frames
from gateway.frames import Item
from gateway.shared_reads import SharedReads
from gateway.source import Source

COUNT_MAX = 128
"""Entries of one read: a batch is at most a few hundred messages, and the event loop waits while they are decoded."""

HEAD_FRESH_S = 2.0
"""A chunk that ends at the newest entry is shared this long, older ones for ever. It may well be behind by then: what
follows it is in the ring, or in the next chunk."""

READS_MAX = 8
"""Reads at the same moment."""

WAITING_MAX = 256
"""Different reads under way or waiting: a crowd's cursors are a few seconds long, so this is a thousand crowds."""

ROUTES_MAX = 32
"""Sets of topics for which a chunk keeps its messages sorted; the size of a chunk does not count these lists."""

_position = attrgetter("position")


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
        self._by_routes: dict[tuple[str, ...], list[Item]] = {}
        for item in items:
            self._by_topic.setdefault(item.topic, []).append(item)

    def is_whole_for(self, position: Position) -> bool:
        """Whether a reader at `position` gets everything after it from here on; else entries were trimmed."""
        return passed(position, self.follows(position))

    def follows(self, position: Position) -> EntryId:
        """The entry before the first one that a reader at `position` can have from here: what it must have by then."""
        index = bisect_left(self._ids, position.entry)
        return self._previous[index] if index < len(self._ids) else self._newest

    def of(self, routes: tuple[str, ...]) -> list[Item]:
        """All messages of some topics and patterns, in order; made once for all readers who want the same."""
        found = self._by_routes.get(routes)
        if found is None:
            found = sorted(self._matching(routes), key=_position)
            if len(self._by_routes) < ROUTES_MAX:
                self._by_routes[routes] = found
        return found

    def after(self, routes: tuple[str, ...], position: Position) -> list[Item]:
        """Those after a position."""
        found = self.of(routes)
        return found[bisect_right(found, position, key=_position) :]

    def _matching(self, routes: Iterable[str]) -> Iterator[Item]:
        for route in routes:
            if route.endswith(".*"):
                prefix = route[:-1]
                for topic, items in self._by_topic.items():
                    if topic.startswith(prefix):
                        yield from items
            else:
                yield from self._by_topic.get(route, ())


def passed(position: Position, entry: EntryId) -> bool:
    """Whether a reader at `position` has everything that an entry with this id gave."""
    return entry < position.entry or (entry == position.entry and position.k >= K_ALL)


class Backlog:
    """Shared reads of the output logs. `chunks` is for whoever counts their bytes, and stops them."""

    def __init__(self, source: Source, bytes_max: int) -> None:
        """`bytes_max`: of the chunks that are kept."""
        self._source = source
        self._log = logs.get()
        self.chunks: SharedReads[Chunk] = SharedReads(bytes_max=bytes_max, at_once=READS_MAX, waiting_max=WAITING_MAX)
        self._read_count = CATCH_UP_READS.labels("redis")

    async def chunk(self, shard: int, position: Position, epochs: Epochs, edge: Position) -> Chunk:
        """Entries of a shard at and after `position`, as many as one read gives. Raises Retry when Redis is away, or
        when entries belong to a newer epoch than `epochs` knows: the tail is about to find out.

        `edge`: what was known to be published before the call; reading to the end of the log proves that much. A
        chunk whose `until` does not exceed `position` means that the log ends before it.
        """
        # After a whole entry the next reader up to here asks for the same start; elsewhere, start at the full second.
        entry = position.entry
        first = entry if position.k >= K_ALL else EntryId(entry.ms // 1000 * 1000, 0)
        chunk = await self._shared(shard, first, epochs, edge)
        while chunk.is_full and chunk.until.entry < entry:
            chunk = await self._shared(shard, chunk.until.entry, epochs, edge)
        if chunk.until > position or chunk.is_full:
            return chunk
        return await self._shared(shard, entry, epochs, edge, edge)  # that read of the end was from before it got there

    async def _shared(
        self, shard: int, first: EntryId, epochs: Epochs, edge: Position, since: Position | None = None
    ) -> Chunk:
        fresh_s = HEAD_FRESH_S if since is None else 0.0
        return await self.chunks.get(
            (shard, epochs.current, first, since),
            lambda: self._read(shard, first, epochs, edge),
            lambda chunk: None if chunk.is_full else fresh_s,
        )

    async def _read(self, shard: int, first: EntryId, epochs: Epochs, edge: Position) -> Chunk:
        self._read_count.inc()
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
        last = found[-1][0] if found else ZERO
        newest, until = max(newest, last), epochs.at(last)
        return Chunk(entries, items, until if is_full else max(until, edge), newest, is_full=is_full)
