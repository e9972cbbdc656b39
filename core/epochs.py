"""Epochs: which lifetime of a shard's log a position belongs to, and whether it still names what it once named.

An epoch's number is never given twice, also not by a server that was set back to an older copy of its data and has
forgotten some (`lua/ensure_epoch.lua`): Unix time in milliseconds at its beginning, or a little more.
"""

from collections.abc import Mapping

from core import keys
from core.position import K_ALL, ZERO, EntryId, Position, parse_entry_id
from core.redis_client import Redis, call

BEFORE_ALL = 1
"""Epoch of a log that nobody has written yet: all that a position can name there is its beginning."""


class Epochs:
    """Epoch table of one shard: epoch -> first entry id. Immutable."""

    def __init__(self, firsts: Mapping[int, EntryId]) -> None:
        self._firsts = sorted((first, epoch) for epoch, first in firsts.items()) or [(ZERO, BEFORE_ALL)]

    @property
    def current(self) -> int:
        """The newest epoch."""
        return max(epoch for _, epoch in self._firsts)

    def of(self, entry: EntryId) -> int:
        """Epoch in which an entry with this id was, or would have been, appended."""
        found = self._firsts[0][1]
        for first, epoch in self._firsts:  # a handful: one per restart of the server
            if first <= entry:
                found = epoch
        return found

    def at(self, entry: EntryId, k: int = K_ALL) -> Position:
        """Position after (by default) everything that an existing entry gave."""
        return Position(self.of(entry), entry.ms, entry.seq, k)

    def holds(self, position: Position) -> bool:
        """False when the position was rolled back, or comes from an epoch this log never had.

        An id at or above the first id of a later epoch belongs to that one: whoever holds it with the older epoch
        saw an entry that the log then lost.
        """
        return self.of(position.entry) == position.epoch or (position.epoch, position.entry) == (BEFORE_ALL, ZERO)


def parse(fields: Mapping[bytes, bytes]) -> Epochs:
    """Read the hash `epochs:{s}`."""
    return Epochs({int(name): parse_entry_id(value) for name, value in fields.items() if name.isdigit()})


async def load(client: Redis, shard: int) -> Epochs:
    """Epoch table of a shard as Redis has it now. Raises Retry when Redis is away."""
    return parse(await call(client.hgetall(keys.epochs(shard))))
