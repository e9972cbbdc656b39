"""The history of a match as one log: what ClickHouse has and what it does not have yet, without a seam.

    ClickHouse  match_events                    everything up to the shard's archived position A, and perhaps more
    Redis       events:{s} after A              everything that was appended after A, and some of what is before it

At any moment the log is the union of the two, ordered by place: an event found in both is the same event. What makes
it whole is proven on the spot, never assumed: A is read first, so ClickHouse, asked after that, has everything up to A;
the stream is whole from A on when its first entry is at or before A, because trimming stops there (see trim.lua).
Where that cannot be shown (a range that left the stream before it was archived), a page ends before it, and the next
one is a Retry: it is on its way.

So pages are stable whatever happens between them: events are appended, move to ClickHouse, are trimmed from Redis, an
epoch begins. Their places never change, and a page ends where its knowledge does.

Without ClickHouse the log is what Redis has, if that provably is everything after the place asked for.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Struct
from redis.exceptions import ResponseError

from clickhouse.client import ClickHouse
from clickhouse.instants import clamp_ms
from clickhouse.queries import BEGINNING, CHUNK_BYTES_MAX, Asked, Place, StoredEvent, stored_events
from clickhouse.reading import entry_bytes, entry_id
from clickhouse.rows import RawEntry
from core import keys
from core.epochs import Epochs, parse
from core.errors import Poison, Retry
from core.events import decode_match_event, parse_entry
from core.names import match_topic, shard_of
from core.position import ZERO, EntryId, parse_entry_id
from core.redis_client import Redis, call, translate

LIMIT_MAX = 1000
"""Events of one page."""

SCAN_ENTRIES = 1000
"""Entries of one XRANGE: about 1 ms in which Redis serves nobody else, and as long for decoding."""

SCAN_BYTES = 1024 * 1024
"""What a reply should hold: the size of the next one follows from the entries seen so far."""

_FIRST_SCAN = 100

SCAN_ENTRIES_MAX = 20_000
"""Entries of the shard that one page looks through for its match's; a page may end early, even empty, for that."""

_ATTEMPTS = 3


class Page(Struct, frozen=True):
    """Events in order. `next` is the place to go on from, None when there was nothing more at that moment."""

    events: list[StoredEvent]
    next: Place | None


class _Moved(Exception):
    """The log was archived and trimmed beyond where we were reading: what we miss is in ClickHouse now."""


class _Scan(Struct):
    """Part of the stream as of one moment."""

    archived: EntryId
    is_whole: bool
    """Nothing is missing between where the scan began and its entries."""
    epochs: Epochs
    entries: list[RawEntry]


class History:
    """Reads the log of any match, a page at a time. Holds nothing between two pages."""

    def __init__(self, clickhouse: ClickHouse, client: Redis, shards: int) -> None:
        self.clickhouse = clickhouse
        self._client = client
        self._shards = shards

    def shard_of(self, match_id: str) -> int:
        """Shard that a match's events are in."""
        return shard_of(match_topic(match_id, "*"), self._shards)

    async def archived(self, match_id: str) -> EntryId:
        """Everything of a match up to here is in ClickHouse. Raises Retry when Redis is away."""
        committed = await call(self._client.hget(keys.archive(self.shard_of(match_id), "events"), "committed"))
        return parse_entry_id(committed) if committed else ZERO

    async def page(
        self, asked: Asked, after: Place = BEGINNING, *, limit: int = 100, bytes_max: int = CHUNK_BYTES_MAX
    ) -> Page:
        """The next events strictly after `after`: at most `limit`, and fewer when they are large or far between.

        Raises Retry when Redis is away, when ClickHouse is and Redis cannot prove to have everything, and when the next
        events have left Redis and are not in ClickHouse yet.
        """
        for _ in range(_ATTEMPTS):
            try:
                return await self._page(asked, after, limit, bytes_max)
            except _Moved:
                continue
        raise Retry("the log moves faster than it can be read")

    async def _page(self, asked: Asked, after: Place, limit: int, bytes_max: int) -> Page:
        archived = await self.archived(asked.match_id)
        stored: list[StoredEvent] = []
        has_more = False
        outage: Retry | None = None
        try:
            stored, has_more = await stored_events(self.clickhouse, asked, after, rows=limit, bytes_max=bytes_max)
        except Retry as error:
            outage = error
        if has_more and stored[-1].place.entry <= archived:
            return Page(stored, stored[-1].place)
        start = after.entry if outage else max(after.entry, archived)
        found, scanned = await self._scan(asked, after, start, limit, bytes_max, archived)
        if scanned is None:
            final = [event for event in stored if event.place.entry <= archived]
            if final:
                return Page(final, final[-1].place)
            raise outage or Retry(f"events of {asked.match_id} after {start} have yet to be archived")
        return _merged(stored, has_more, found, scanned, limit, bytes_max)

    async def _scan(
        self, asked: Asked, after: Place, start: EntryId, limit: int, bytes_max: int, archived: EntryId
    ) -> tuple[list[StoredEvent], Place | None]:
        """Events of a match in the stream beyond `start`, and the place up to which that is all there is. None instead
        of a place when the stream does not reach back to `start`."""
        found: list[StoredEvent] = []
        position, count, seen, size, found_bytes = start, _FIRST_SCAN, 0, 0, 0
        while True:
            scan = await self._read(asked.match_id, position, count)
            if not scan.is_whole:
                if scan.archived > archived:
                    raise _Moved
                return found, None
            events = _events(asked, after, scan)
            found.extend(events)
            found_bytes += sum(len(event.payload) for event in events)
            if len(scan.entries) < count:
                return found, _EVERYTHING
            position = entry_id(scan.entries[-1])
            seen += len(scan.entries)
            if seen >= SCAN_ENTRIES_MAX or len(found) > limit or found_bytes > bytes_max:
                return found, Place(*position, scan.epochs.of(position))
            size += sum(map(entry_bytes, scan.entries))
            count = max(1, min(SCAN_ENTRIES, SCAN_BYTES * seen // max(1, size)))

    async def _read(self, match_id: str, after: EntryId, count: int) -> _Scan:
        shard = self.shard_of(match_id)
        stream = keys.events(shard)
        pipe = self._client.pipeline(transaction=True)
        pipe.hget(keys.archive(shard, "events"), "committed")
        pipe.xrange(stream, min=f"({after}", count=count)
        pipe.xinfo_stream(stream)
        pipe.hgetall(keys.epochs(shard))
        committed, entries, info, firsts = await call(pipe.execute(raise_on_error=False))
        for reply in (committed, entries, firsts):
            if isinstance(reply, Exception):
                raise translate(reply) from reply
        archived = parse_entry_id(committed) if committed else ZERO
        return _Scan(archived, _is_whole(info, after, archived), parse(firsts), entries)


_EVERYTHING = Place(2**63, 0, 0)


def _is_whole(info: Any, after: EntryId, archived: EntryId) -> bool:
    """Whether a stream holds every entry after `after` that it ever had."""
    if isinstance(info, ResponseError):  # no such key: no entry was ever appended, or somebody deleted them all
        return archived == ZERO
    if isinstance(info, Exception):
        raise translate(info) from info
    if info["entries-added"] == info["length"] or parse_entry_id(info["last-generated-id"]) <= after:
        return True
    first = info["first-entry"]
    return first is not None and parse_entry_id(first[0]) <= after.next


def _events(asked: Asked, after: Place, scan: _Scan) -> list[StoredEvent]:
    """The match's events among some entries. What is no event will be none in ClickHouse either (`clickhouse.rows`)."""
    prefix = f"match match.{asked.match_id}.".encode()
    found: list[StoredEvent] = []
    for raw_id, fields in scan.entries:
        if not fields.get(b"h", b"").startswith(prefix):
            continue
        try:
            entry = parse_entry(raw_id, fields)
            event = decode_match_event(entry.body)
        except (Poison, msgspec.DecodeError, ValueError):
            continue
        stored = StoredEvent(
            Place(*entry.id, scan.epochs.of(entry.id)), event.event_id, event.map_id, event.type, event.version,
            "" if event.corrects is UNSET else event.corrects, clamp_ms(entry.received_us // 1000), entry.body,
        )  # fmt: skip
        if stored.place > after and _is_asked(asked, stored):
            found.append(stored)
    return found


def _is_asked(asked: Asked, event: StoredEvent) -> bool:
    """What the conditions of `queries` say."""
    return (
        asked.map_id in (None, event.map_id)
        and asked.since_ms <= event.received_ms < asked.until_ms
        and (bool(event.corrects) or not asked.corrections_only)
    )


def _merged(
    stored: Sequence[StoredEvent], has_more: bool, found: Sequence[StoredEvent], scanned: Place, limit: int,
    bytes_max: int,
) -> Page:  # fmt: skip
    """Both parts as one page, up to where both are known."""
    known = min(scanned, stored[-1].place) if has_more else scanned
    by_place = {event.place: event for event in (*found, *stored)}
    events: list[StoredEvent] = []
    size = 0
    for place in sorted(by_place):
        if place > known:
            break
        event = by_place[place]
        size += len(event.payload)
        if len(events) == limit or (events and size > bytes_max):
            return Page(events, events[-1].place)
        events.append(event)
    return Page(events, None if known == _EVERYTHING else known)
