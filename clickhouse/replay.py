"""A match again, from its first event to its newest: as fast as it can be read, or at the pace at which it happened.

Chunk by chunk, so that a reader may take its time, or leave, without a query being held open for it; what a replay
holds in memory is one chunk, whatever the match is long.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

from clickhouse.history import History
from clickhouse.queries import BEGINNING, Asked, Lines, Place, StoredEvent, stored_lines
from core.errors import Retry

CHUNK_ROWS_FIRST, CHUNK_ROWS_MAX = 500, 8000
CHUNK_BYTES = 2 * 1024 * 1024
"""Aim for one chunk. Larger ones gain nothing measurable, smaller ones pay the query's fixed cost more often."""

SPEED_MIN, SPEED_MAX = 0.1, 1000.0
"""Bounds of a replay's speed."""

GAP_MAX_S = 3600.0
"""A paced replay waits no longer than this between two events, whatever the pause in the match was."""


async def lines(history: History, asked: Asked, after: Place = BEGINNING) -> AsyncIterator[Lines]:
    """Every event as NDJSON, in order; no item is empty.

    Archived events are never decoded here: see `queries.stored_lines`. Raises Retry when a part cannot be read: what
    was given until then is whole lines in order.
    """
    rows = CHUNK_ROWS_FIRST
    while True:
        archived = await history.archived(asked.match_id)
        try:
            chunk = await stored_lines(
                history.clickhouse, asked, after, last=archived, rows=rows, bytes_max=2 * CHUNK_BYTES
            )
        except Retry:
            break  # Redis may have all the rest
        if chunk.last is not None:
            yield chunk
            after = chunk.last
            rows = max(1, min(CHUNK_ROWS_MAX, CHUNK_BYTES * chunk.count // len(chunk.body)))
        if not chunk.has_more:
            break
    async for events in pages(history, asked, after):
        yield as_lines(events)


def as_lines(events: Sequence[StoredEvent]) -> Lines:
    """Events as NDJSON."""
    body = b"".join(event.payload + b"\n" for event in events)
    return Lines(body, len(events), events[-1].place, True)


async def pages(history: History, asked: Asked, after: Place = BEGINNING) -> AsyncIterator[list[StoredEvent]]:
    """Every event, in order; no item is empty. Raises Retry when a part cannot be read."""
    following: Place | None = after
    while following is not None:
        page = await history.page(asked, following, limit=CHUNK_ROWS_FIRST, bytes_max=CHUNK_BYTES)
        if page.events:
            yield page.events
        following = page.next


async def paced(batches: AsyncIterator[list[StoredEvent]], speed: float) -> AsyncIterator[list[StoredEvent]]:
    """The same events, each when it is due: the distances of their receipt divided by `speed`. A reader that takes its
    time delays nothing but itself: what is overdue comes at once."""
    previous_ms: int | None = None
    due_s = time.monotonic()
    async for batch in batches:
        for event in batch:
            pause_s = (event.received_ms - (previous_ms or event.received_ms)) / 1000 / speed
            due_s += min(GAP_MAX_S, max(0.0, pause_s))
            previous_ms = event.received_ms
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            yield [event]
