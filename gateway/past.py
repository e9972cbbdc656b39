"""Events behind the output log, from the archive: the oldest tier of resuming, in chunks that all readers share.

The archive has events only. A reader fed from here is *owed* the states (`Position.is_owing`) until a snapshot settles
the debt; see `gateway.feeder`. It has all events up to its own committed position, and nothing is taken from it beyond
what the state consumer has published: a cursor must not be ahead of the log that it is given back to.
"""

import time
from collections.abc import Sequence

from core import logs
from core.epochs import Epochs
from core.errors import Fatal, Poison, Retry
from core.metrics import CATCH_UP_READS, LOOP_ERRORS
from core.names import match_topic, parse_topic
from core.position import EntryId, Position
from gateway.frames import Item
from gateway.shared_reads import SharedReads
from gateway.source import Source

ROWS_MAX = 500
BYTES_MAX = 1024 * 1024
"""Of one chunk: the event loop is busy with it for some milliseconds."""

READS_MAX = 4
"""Queries at the same moment: the archive's own inserts and people's questions go on beside them."""

WAITING_MAX = 64
REACH_FRESH_S = 0.5
KEPT_FRESH_S = 60.0


class Away(Retry):
    """The archive cannot be asked now, or has forgotten what it is asked for."""


class PastChunk:
    """Some consecutive events of one match; `until`: everything up to here is in this chunk or before it."""

    def __init__(self, items: list[Item], until: Position, *, is_full: bool) -> None:
        """`is_full`: the archive may have more after it."""
        self.items = items
        self.until = until
        self.is_full = is_full
        self.size = 200 + sum(item.size for item in items)


class _Number:
    size = 100

    def __init__(self, ms: int) -> None:
        self.ms = ms


class _Reach:
    size = 100

    def __init__(self, entry: EntryId) -> None:
        self.entry = entry


class Past:
    """Shared reads of the archive. `chunks` is for whoever counts their bytes."""

    def __init__(self, source: Source, bytes_max: int) -> None:
        """`bytes_max`: of the chunks that are kept."""
        self._source = source
        self._log = logs.get()
        self.chunks: SharedReads[PastChunk] = SharedReads(
            bytes_max=bytes_max, at_once=READS_MAX, waiting_max=WAITING_MAX
        )
        self._reaches: SharedReads[_Reach] = SharedReads(bytes_max=10_000, at_once=READS_MAX, waiting_max=WAITING_MAX)
        self._kept: SharedReads[_Number] = SharedReads(bytes_max=10_000, at_once=1, waiting_max=1)
        self._read_count = CATCH_UP_READS.labels("clickhouse")

    async def stop(self) -> None:
        """Give up what is under way."""
        for reads in (self.chunks, self._reaches, self._kept):
            await reads.stop()

    async def reach(self, shard: int) -> EntryId:
        """All events up to here are in the archive, and were published. Raises Retry when Redis is away."""

        async def read() -> _Reach:
            return _Reach(await self._source.archived(shard))

        return (await self._reaches.get(shard, read, lambda _: REACH_FRESH_S)).entry

    async def kept_since_ms(self) -> int:
        """No event of this moment or later can have been deleted by age. Raises Away."""

        async def read() -> _Number:
            return _Number(await self._source.kept_since_ms(int((time.time() + 2 * KEPT_FRESH_S) * 1000)))

        try:
            return (await self._kept.get("match_events", read, lambda _: KEPT_FRESH_S)).ms
        except (Retry, Fatal) as error:
            raise self._away(error) from error

    async def vouches(self, shard: int, position: Position, follows: EntryId) -> bool:
        """Whether the archive has every event after a position up to the entry that the output log's first one
        follows. Raises Away."""
        return await self.reach(shard) >= follows and position.ms >= await self.kept_since_ms()

    async def chunk(
        self, shard: int, routes: Sequence[str], position: Position, epochs: Epochs
    ) -> tuple[list[Item], Position, bool]:
        """What comes after `position`: events in order, how far that is complete, and whether the archive has more.

        Everything is `owing`. Raises Away, or Retry when too many ask for different things. Nothing after `position`
        in the archive: `until` does not exceed it.
        """
        reach = await self.reach(shard)
        place = position.settled
        until = epochs.at(reach)
        items: list[Item] = []
        is_full = False
        for match_id in sorted({parse_topic(route).id for route in routes if route.startswith("match.")}):
            chunk = await self._match(shard, match_id, place, epochs, reach)
            items.extend(chunk.items)
            is_full = is_full or chunk.is_full
            until = min(until, chunk.until) if chunk.is_full else until
        if place.ms < await self.kept_since_ms():  # looked at after reading: rows may have come of age meanwhile
            raise Away("events after this position may be deleted")
        wanted = [
            item for item in items
            if place < item.position.settled <= until and (item.topic in routes or _pattern(item.topic) in routes)
        ]  # fmt: skip
        return sorted(wanted, key=lambda item: item.position), until.owing, is_full

    async def _match(self, shard: int, match_id: str, place: Position, epochs: Epochs, reach: EntryId) -> PastChunk:
        """The chunk of a match that goes beyond `place`, unless the archive does not."""
        first = EntryId(place.ms // 1000 * 1000, 0)  # a crowd's cursors lie close together
        while True:
            chunk = await self._shared(shard, match_id, first, epochs, reach)
            if not chunk.is_full or chunk.until > place:
                return chunk
            first = chunk.until.entry.next

    async def _shared(self, shard: int, match_id: str, first: EntryId, epochs: Epochs, reach: EntryId) -> PastChunk:
        async def read() -> PastChunk:
            self._read_count.inc()
            try:
                return await self._read(shard, match_id, first, epochs, reach)
            except (Retry, Fatal) as error:
                raise self._away(error) from error

        def fresh_s(chunk: PastChunk) -> float | None:
            return None if chunk.is_full else REACH_FRESH_S

        chunk = await self.chunks.get((shard, match_id, first, epochs.current), read, fresh_s)
        if not chunk.is_full and chunk.until.entry < reach:  # somebody's read of the end, from before it got there
            chunk = await self.chunks.get((shard, match_id, first, epochs.current, reach), read, fresh_s)
        return chunk

    async def _read(self, shard: int, match_id: str, first: EntryId, epochs: Epochs, reach: EntryId) -> PastChunk:
        found, is_full = await self._source.past(shard, match_id, first, ROWS_MAX, BYTES_MAX)
        if is_full and found[0].entry != found[-1].entry:
            # A rolled-back event and the one that has its id now are neighbours, and a page may end between them.
            cut = found[-1].entry
            found = [event for event in found if event.entry != cut]
        items: list[Item] = []
        until = epochs.at(reach)
        for event in found:
            if event.entry > reach:
                is_full = False  # the rest is beyond what may be told
                break
            if event.epoch > epochs.current:
                raise Retry(f"shard {shard} is in epoch {event.epoch}, which is not known here yet")
            if epochs.of(event.entry) != event.epoch:
                continue  # rolled back: the log has something else there, or nothing
            place = Position(event.epoch, event.entry.ms, event.entry.seq, 1)
            topic = match_topic(match_id, event.map_id)
            try:
                items.append(Item(shard, place.owing, topic, event.type, event.payload, is_state=False))
            except Poison as error:
                self._log.error("message left out", error=str(error))
        if is_full:
            until = epochs.at(found[-1].entry)
        return PastChunk(items, until, is_full=is_full)

    def _away(self, error: Exception) -> Away:
        LOOP_ERRORS.labels("past").inc()
        self._log.warning("archive cannot be asked", error=str(error))
        return Away(str(error))


def _pattern(topic: str) -> str:
    return f"{topic.rpartition('.')[0]}.*"
