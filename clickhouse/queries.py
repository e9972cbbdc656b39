"""Stored events of a match, in the order of the log.

Read page by page, also for a replay: a slow reader then holds no query open in ClickHouse and no more than a page in
memory, and a failure is an exception before the page instead of a broken body in the middle of it.

Order: (stream_ms, stream_seq, stream_epoch), which is how `match_events` is sorted; all maps of a match share a shard,
so this is the order of its log. A position in it never changes, so pages are stable while new events arrive.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from datetime import datetime

from msgspec import Struct

from clickhouse.client import ClickHouse
from clickhouse.instants import MS_MAX, MS_MIN, to_ms

LIMIT_MAX = 1000
"""Events of one page."""

PAGE_BYTES_MAX = 8 * 1024 * 1024
"""A page ends early rather than exceed this (it holds one event at least): events may have 256 KB each."""

SPEED_MIN, SPEED_MAX = 0.1, 1000.0
"""Bounds of a replay's speed."""

GAP_MAX_S = 3600.0
"""A paced replay waits no longer than this between two events, whatever the pause in the match was."""

_POSITION = re.compile(r"([0-9]{1,19})\.([0-9]{1,19})\.([0-9]{1,19})\Z")

_PAGE = """
SELECT stream_ms, stream_seq, stream_epoch, toUnixTimestamp64Milli(received_at) AS received_ms, payload, found
FROM
(
    SELECT *, count() OVER () AS found, sum(length(payload)) OVER
        (ORDER BY stream_ms, stream_seq, stream_epoch ROWS UNBOUNDED PRECEDING) - length(payload) AS bytes_before
    FROM
    (
        SELECT stream_ms, stream_seq, stream_epoch, received_at, payload
        FROM match_events
        WHERE match_id = {match_id:String}
          AND (stream_ms, stream_seq, stream_epoch) > ({ms:UInt64}, {seq:UInt64}, {epoch:UInt64})
          AND stream_ms >= {ms:UInt64}
          AND ({map_id:String} = '' OR map_id = {map_id:String})
          AND received_at >= fromUnixTimestamp64Milli({from_ms:Int64})
          AND received_at < fromUnixTimestamp64Milli({to_ms:Int64})
        ORDER BY stream_ms, stream_seq, stream_epoch
        LIMIT {rows:UInt32}
    )
)
WHERE bytes_before < {bytes_max:UInt64}
ORDER BY stream_ms, stream_seq, stream_epoch
"""


class StoredEvent(Struct, frozen=True, gc=False):
    """One event as it was streamed. `position` is opaque: give it back as `after`."""

    position: str
    received_ms: int
    payload: bytes


class Page(Struct, frozen=True):
    """Events in log order. `next` is the `after` of the following page, None when there was nothing more."""

    events: list[StoredEvent]
    next: str | None


async def events_page(
    clickhouse: ClickHouse,
    match_id: str,
    *,
    map_id: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int = 100,
    after: str | None = None,
) -> Page:
    """One page of a match's events, received in [since, until), strictly after the position `after`.

    `since` and `until` must know their zone. A match nobody knows is an empty page. Raises ValueError, with a text fit
    for the client, for a malformed `after` or `limit`, and Retry when ClickHouse is away.
    """
    if not 1 <= limit <= LIMIT_MAX:
        raise ValueError(f"limit must be between 1 and {LIMIT_MAX}")
    ms, seq, epoch = _parse_position(after)
    rows = await clickhouse.query(
        _PAGE,
        {
            "match_id": match_id,
            "map_id": map_id or "",
            "ms": ms,
            "seq": seq,
            "epoch": epoch,
            "from_ms": MS_MIN if since is None else to_ms(since),
            "to_ms": MS_MAX if until is None else to_ms(until),
            "rows": limit + 1,  # one more, to know whether there is more
            "bytes_max": PAGE_BYTES_MAX,
        },
        formats={"payload": "bytes"},
    )
    events = [
        StoredEvent(f"{ms}.{seq}.{epoch}", received_ms, payload)
        for ms, seq, epoch, received_ms, payload, _ in rows[:limit]
    ]
    has_more = bool(rows) and rows[0][5] > len(events)
    return Page(events, events[-1].position if has_more else None)


async def replay(
    clickhouse: ClickHouse, match_id: str, *, map_id: str | None = None, speed: float | None = None
) -> AsyncIterator[bytes]:
    """Every stored event of a match as NDJSON, in log order: each item is one or more whole lines.

    With `speed` (`SPEED_MIN` to `SPEED_MAX`; 1 = as it was received) each item is one line and comes when it is due;
    without it they come as fast as they are taken. Raises ValueError for a speed out of bounds, at the first item, and
    Retry when ClickHouse goes away: what was given until then is whole lines in order.
    """
    if speed is not None and not SPEED_MIN <= speed <= SPEED_MAX:
        raise ValueError(f"speed must be between {SPEED_MIN:g} and {SPEED_MAX:g}")
    after: str | None = None
    previous_ms: int | None = None
    due_s = time.monotonic()
    while True:
        page = await events_page(clickhouse, match_id, map_id=map_id, limit=LIMIT_MAX, after=after)
        if speed is None and page.events:
            yield b"\n".join(event.payload for event in page.events) + b"\n"
        elif speed is not None:
            for event in page.events:
                pause_s = (event.received_ms - (previous_ms or event.received_ms)) / 1000 / speed
                due_s += min(GAP_MAX_S, max(0.0, pause_s))
                previous_ms = event.received_ms
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                yield event.payload + b"\n"
        if page.next is None:
            return
        after = page.next


def _parse_position(text: str | None) -> tuple[int, int, int]:
    if text is None:
        return 0, 0, 0
    match = _POSITION.match(text)
    if match is None:
        raise ValueError("after must be a position that a page gave as next")
    ms, seq, epoch = map(int, match.groups())
    return ms, seq, epoch
