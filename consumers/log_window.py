"""The part of a shard's log that Redis still has, against what the archive holds of it, entry by entry.

Only looked at on demand: reading an entry costs about 5 µs here. The log's counts come from itself, so this comparison
needs no hot state: whoever differs from the log is wrong.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from msgspec import Struct

from clickhouse.reading import Limits, read_entries
from clickhouse.rows import RawEntry
from consumers.books import Cold, Sum
from core import keys
from core.digest import MASK, event_hash, vote_hash
from core.errors import Poison
from core.events import decode_match_event, decode_vote, parse_entry
from core.position import EntryId, parse_entry_id
from core.redis_client import Redis, call

ENTRIES_MAX = 500_000
"""Newest entries looked at: some seconds of work, and 100 MB."""

Table = Literal["votes", "match_events"]
TABLES: tuple[Table, ...] = ("votes", "match_events")

_PAGE = Limits(20_000, 16 * 1024 * 1024)


class Item(Struct, frozen=True, gc=False):
    """One archived fact of the log: a vote (its poll, vote hash) or a match event ("", hash of its id)."""

    id: EntryId
    table: Table
    poll_id: str
    hash: int


class Window(Struct):
    """Items after `after` up to a position, in the order of the log."""

    after: EntryId
    last: EntryId
    items: list[Item]

    def sum(self, table: str, poll_id: str = "") -> Sum:
        """Of a table, or of one poll's votes."""
        return total([item for item in self.items if item.table == table and poll_id in ("", item.poll_id)])


def total(items: Sequence[Item]) -> Sum:
    """Number and digest of items."""
    return Sum(len(items), sum(item.hash for item in items) & MASK)


async def read_window(client: Redis, shard: int, last: EntryId) -> Window:
    """What the log still has up to a position, at most the newest `ENTRIES_MAX` entries of it. Raises Retry."""
    stream = keys.events(shard)
    oldest = await call(client.xrange(stream, max=str(last), count=1))
    if not oldest:
        return Window(last, last, [])
    after = _before(parse_entry_id(oldest[0][0]))
    newest = await call(client.xrevrange(stream, max=str(last), count=1))
    span = int(await call(client.xlen(stream)))
    if span > ENTRIES_MAX:
        after = await _skipped(client, stream, after, newest[0][0], span - ENTRIES_MAX)
    window, position = Window(after, last, []), after
    while True:
        entries, is_full = await read_entries(client, stream, position, _PAGE, last)
        if not entries:
            return window
        window.items += (item for item in map(_item, entries) if item is not None)
        position = parse_entry_id(entries[-1][0])
        if not is_full:
            return window


def _item(raw: RawEntry) -> Item | None:
    """What becomes a row; None for other kinds and for dead letters, which are in neither place."""
    try:
        entry = parse_entry(*raw)
        if entry.kind == "vote":
            vote = decode_vote(entry.body)
            is_archived = len(bytes.fromhex(vote.voter)) == 8
            hashed = vote_hash(vote.event_id, vote.option)
            return Item(entry.id, "votes", vote.poll_id, hashed) if is_archived else None
        if entry.kind == "match":
            return Item(entry.id, "match_events", "", event_hash(decode_match_event(entry.body).event_id))
    except (Poison, ValueError):
        return None
    return None


async def _skipped(client: Redis, stream: str, after: EntryId, newest: bytes, count: int) -> EntryId:
    """Position after the `count` oldest entries, found by time: entries of a log come at about even intervals."""
    end = parse_entry_id(newest)
    share = count / (count + ENTRIES_MAX)
    return EntryId(after.ms + int((end.ms - after.ms) * share), 0)


async def first_difference(window: Window, cold: Cold, table: Table, poll_id: str = "") -> EntryId | None:
    """The first position of the window at which log and archive differ; None when they agree all along."""
    items = [item for item in window.items if item.table == table and poll_id in ("", item.poll_id)]
    if await cold.between(table, window.after, window.last, poll_id) == total(items):
        return None

    async def differs(index: int) -> bool:
        # Up to the entry before the next one, so that a row which the log never had is found between the two.
        until = _before(items[index + 1].id) if index + 1 < len(items) else window.last
        return await cold.between(table, window.after, until, poll_id) != total(items[: index + 1])

    if not items or await cold.between(table, window.after, _before(items[0].id), poll_id) != Sum():
        return window.after.next
    return items[await bisect(len(items), differs)].id


def _before(position: EntryId) -> EntryId:
    return EntryId(position.ms, position.seq - 1) if position.seq else EntryId(position.ms - 1, 2**63)


async def bisect(count: int, differs: Callable[[int], Awaitable[bool]]) -> int:
    """The first index for which `differs` holds, given that it holds from there on to the last one."""
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        if await differs(middle):
            high = middle
        else:
            low = middle + 1
    return low
