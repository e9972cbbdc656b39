"""A log as the archive reads it: first the segment files that hold what Redis gave back, then the stream.

    spill     read a closed range from the stream, put it on disk for good (`segments`), then note it in Redis, by one
              script under the fencing token: segments follow each other without a hole, from `committed` on
    trim      may then pass them (consumers/lua/trim.lua)
    read      what follows a position, wherever it is; the writer's plan names entries, not places, so a redo finds them
              in either
    commit    drops the records of the segments it has passed; then their files are retired, and deleted later

| crash               | what there is               | afterwards                                                      |
| before the record   | a file that Redis ignores   | spilled again, or archived from the log; retired once archived  |
| after it            | file and entries in the log | read from the file                                              |
| after the commit    | a file that Redis ignores   | retired by the next owner (`Shelf.sweep`)                       |
| of Redis, back over | a retired file that Redis   | taken back; its rows are found in ClickHouse by looking         |
| the commit          | lists again                 | (`writer`)                                                      |

A segment that cannot be read (damaged, or in the directory of another machine) is read from the stream, as long as the
stream has those very entries; then the log is `Stuck` until somebody brings the file.
"""

import asyncio
from bisect import bisect_right
from collections.abc import Sequence

import msgspec
from redis.exceptions import ResponseError

from clickhouse.reading import Limits, Log, Stuck, checksum, entry_bytes, entry_id, read_entries, stream_key
from clickhouse.rows import RawEntry
from clickhouse.segments import Damaged, Record, Shelf
from core import epochs, keys, logs
from core.errors import Retry
from core.metrics import SPILLED
from core.position import EntryId, parse_entry_id
from core.redis_client import Redis, Scripts, call, lua

JOB = "archive"


def spill_sources() -> dict[str, str]:
    """The script that `SpilledLog` needs, for the process's `Scripts`."""
    return {"archive_spill": lua("clickhouse", "archive_spill")}


def parse_records(texts: Sequence[bytes]) -> list[Record]:
    """Read the list `segments:{s}:<log>`."""
    return [msgspec.json.decode(text, type=Record) for text in texts]


class SpilledLog:
    """One log of one shard, for one ownership. Without a shelf nothing is spilled, and no segment can be read."""

    def __init__(self, client: Redis, scripts: Scripts, shelf: Shelf | None, shard: int, log: Log, token: int) -> None:
        self._client = client
        self._scripts = scripts
        self._shelf = shelf
        self._shard = shard
        self._log: Log = log
        self._token = token
        self._stream = stream_key(shard, log)
        self._records: list[Record] = []
        self._is_sure = True  # that the records are all there are
        self._opened: tuple[str, list[RawEntry], list[EntryId]] = ("", [], [])

    # -- reading

    async def load(self, committed: EntryId) -> None:
        """Learn which segments there are, and set right what crashes left."""
        self._records = parse_records(await call(self._client.lrange(keys.segments(self._shard, self._log), 0, -1)))
        self._is_sure = True
        self._opened = ("", [], [])
        if self._shelf is not None:
            listed = [record.file for record in self._records]
            await asyncio.to_thread(self._shelf.sweep, self._shard, self._log, listed, committed)

    async def entries(self, after: EntryId, limits: Limits, last: EntryId | None = None) -> tuple[list[RawEntry], bool]:
        """Like `read_entries`, of segments and stream. Raises Stuck where a segment can be had from neither, and Retry
        when the last one may have been noted without us knowing: then the stream may have a hole where it begins."""
        if not self._is_sure:
            raise Retry("whether the last segment was noted is not known: load anew")
        found: list[RawEntry] = []
        size = 0
        for record in self._records:
            if record.until <= after:
                continue
            if last is not None and parse_entry_id(record.first) > last:
                return found, False
            entries, ids = await self._open(record)
            start = bisect_right(ids, after)
            end = len(ids) if last is None else bisect_right(ids, last)
            part = entries[start : min(end, start + limits.entries_max - len(found))]
            found.extend(part)
            size += sum(map(entry_bytes, part))
            if len(found) >= limits.entries_max or size >= limits.bytes_max:
                return found, True
            after = record.until
        rest = Limits(limits.entries_max - len(found), limits.bytes_max - size)
        entries, is_full = await read_entries(self._client, self._stream, after, rest, last)
        return found + entries, is_full

    async def _open(self, record: Record) -> tuple[list[RawEntry], list[EntryId]]:
        """Entries of a segment and their ids; the last one opened is kept, as batches may be smaller."""
        if self._opened[0] != record.file:
            try:
                entries = await self._from_shelf(record)
            except Damaged as error:
                entries = await self._from_stream(record, error)
            self._opened = (record.file, entries, [entry_id(entry) for entry in entries])
        return self._opened[1], self._opened[2]

    async def _from_shelf(self, record: Record) -> list[RawEntry]:
        if self._shelf is None or self._shelf.store != record.store:
            raise Damaged(f"segment {record.file} lies in the spill directory {record.store}, which is not mine")
        entries = await asyncio.to_thread(self._shelf.read, record.file)
        if len(entries) != record.count or await asyncio.to_thread(checksum, entries) != record.crc:
            raise Damaged(f"segment {record.file} is not the one that was written")
        return entries

    async def _from_stream(self, record: Record, reason: Damaged) -> list[RawEntry]:
        """The log may not have been trimmed yet."""
        after, limits = parse_entry_id(record.after), Limits(record.count + 1, 2**62)
        entries, _ = await read_entries(self._client, self._stream, after, limits, record.until)
        if len(entries) != record.count or await asyncio.to_thread(checksum, entries) != record.crc:
            raise Stuck(f"{reason}, and the log has its entries no more")
        logs.get().error("a segment is read from the log instead", file=record.file, error=str(reason))
        return entries

    @property
    def segments(self) -> int:
        """Segment files that are not archived yet, as far as this owner knows."""
        return len(self._records)

    @property
    def oldest_segment_ms(self) -> int:
        """When the oldest entry in a segment came, 0 without segments."""
        return parse_entry_id(self._records[0].first).ms if self._records else 0

    # -- being archived

    def passed(self, last: EntryId) -> int:
        """How many segments a commit up to `last` is done with."""
        return sum(record.until <= last for record in self._records)

    async def drop(self, count: int) -> None:
        """Forget so many segments, which a commit has passed, and retire their files."""
        gone, self._records = self._records[:count], self._records[count:]
        if gone and self._shelf is not None:
            await asyncio.to_thread(self._shelf.retire, [r.file for r in gone if r.store == self._shelf.store])

    # -- spilling

    async def oldest_in_stream(self) -> EntryId | None:
        """Id of the oldest entry that is neither archived nor in a segment, None when there is none."""
        found = await call(self._client.xrange(self._stream, min=f"({await self._base()}", count=1))
        return entry_id(found[0]) if found else None

    async def spill(self, until: EntryId, limits: Limits) -> int:
        """Put the oldest entries that are only in the stream on disk, up to `until`; how many (0 = there are none).

        One segment, within one epoch. Raises Retry (the directory is full, Redis away) and Fenced; Stuck when the
        segments before it lie in another directory.
        """
        if self._shelf is None:
            return 0
        await self._scripts.ensure()
        base = await self._base()
        if base >= until:
            return 0
        before = parse_records(await call(self._client.lrange(keys.segments(self._shard, self._log), -1, -1)))
        if before and before[0].store != self._shelf.store:
            raise Stuck(f"earlier segments lie in the spill directory {before[0].store}, which is not mine")
        entries, _ = await read_entries(self._client, self._stream, base, limits, until)
        if not entries:
            return 0
        table = await epochs.load(self._client, self._shard)  # after reading: see `Writer.read`
        epoch = table.of(entry_id(entries[0]))
        if table.of(entry_id(entries[-1])) != epoch:
            entries = [entry for entry in entries if table.of(entry_id(entry)) == epoch]
        file = await asyncio.to_thread(self._shelf.write, self._shard, self._log, epoch, entries)
        crc = await asyncio.to_thread(checksum, entries)
        first, last = entries[0][0].decode(), entries[-1][0].decode()
        record = Record(self._shelf.store, file, str(base), first, last, len(entries), crc)
        await self._note(record, table.current)
        self._records.append(record)
        SPILLED.inc(len(entries))
        return len(entries)

    async def _base(self) -> EntryId:
        """Up to where the log is archived or in segments."""
        names = ["spilled", "committed"]
        spilled, committed = await call(self._client.hmget(keys.archive(self._shard, self._log), names))
        return parse_entry_id(spilled or committed or b"0-0")

    async def _note(self, record: Record, epoch: int) -> None:
        names = [
            keys.archive(self._shard, self._log), keys.fence(self._shard, JOB), keys.epochs(self._shard),
            keys.segments(self._shard, self._log),
        ]  # fmt: skip
        text = msgspec.json.encode(record)
        self._is_sure = False  # should the answer be lost
        try:
            await self._scripts.run("archive_spill", names, [self._token, epoch, record.after, record.last, text])
        except ResponseError as error:
            raise Retry(f"archive_spill: {error}") from error
        self._is_sure = True
