"""Reading a log in bounded pieces: a batch never holds more memory than agreed, a reply never keeps Redis busy long."""

import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from msgspec import Struct

from clickhouse.rows import RawEntry
from core import keys
from core.errors import ArenacastError
from core.position import EntryId, parse_entry_id
from core.redis_client import Redis, call

Log = Literal["events", "updates", "audit"]
"""The logs of a shard that are archived."""

_STREAMS: Mapping[Log, Callable[[int], str]] = {
    "events": keys.events,
    "updates": keys.updates,
    "audit": keys.audit,
}

PAGE_ENTRIES_MAX = 2000
"""Entries of one XRANGE: about 2 ms in which Redis serves nobody else."""

PAGE_BYTES = 1024 * 1024
"""What a reply should hold: the size of the next page follows from the entries seen so far."""

_FIRST_PAGE = 64  # 16 MB should every entry have the largest size


class Stuck(ArenacastError):
    """This log cannot be archived any further without an operator; the text says why.

    The plan in flight cannot be carried out (entries of it are gone from the log, or ClickHouse holds something
    twice): once that is understood, forget the plan (`HDEL archive:{s}:<log> inflight`); the next take-over finds
    the rows beyond `committed` and adds what is missing. Or a segment file cannot be read: bring it back, or run
    the archive where it is. Once its entries are given up for lost, forget it (`LREM segments:{s}:<log> 1
    <record>`).
    """


class Limits(Struct, frozen=True):
    """Bounds of one batch. The last entry may exceed `bytes_max`."""

    entries_max: int
    bytes_max: int


def stream_key(shard: int, log: Log) -> str:
    """Key of a log's stream."""
    return _STREAMS[log](shard)


async def read_entries(
    client: Redis, stream: str, after: EntryId, limits: Limits, last: EntryId | None = None
) -> tuple[list[RawEntry], bool]:
    """Entries after `after`, up to `last` or the end or the limits; and whether it was the limits that ended it."""
    entries: list[RawEntry] = []
    size = 0
    position = f"({after}"
    count = _FIRST_PAGE
    while True:
        count = min(count, limits.entries_max - len(entries))
        page: list[RawEntry] = await call(
            client.xrange(stream, min=position, max="+" if last is None else str(last), count=count)
        )
        entries.extend(page)
        size += sum(map(entry_bytes, page))
        if len(page) < count:
            return entries, False
        if len(entries) >= limits.entries_max or size >= limits.bytes_max:
            return entries, True
        position = f"({page[-1][0].decode()}"
        count = max(1, min(PAGE_ENTRIES_MAX, PAGE_BYTES * len(entries) // max(1, size)))


def entry_bytes(entry: RawEntry) -> int:
    """Bytes of an entry's values."""
    return sum(map(len, entry[1].values()))


def checksum(entries: Iterable[RawEntry]) -> int:
    """CRC-32 over ids and fields: tells at a redo whether these are the very entries of the plan.

    Of the body of an event (field `d`) its length counts, because a voter may be erased from a segment file while a
    plan is in flight, by zeros of the same length; otherwise nothing can change an entry under its id and header.
    """
    ids: list[bytes] = []
    parts: list[bytes] = []
    for raw_id, fields in entries:
        ids.append(raw_id)
        for name, value in fields.items():
            parts += (name, b"%d" % len(value) if name == b"d" else value)
    return zlib.crc32(b"\0".join(parts), zlib.crc32(b"\0".join(ids)))


def entry_id(entry: RawEntry) -> EntryId:
    """Id of an entry."""
    return parse_entry_id(entry[0])
