"""Positions: the one cursor of the whole system.

A position is `(epoch, ms, seq, k)`: the epoch of the shard, the Redis entry id of the *input* event, and `k`, which
numbers the messages that one input gives (a `round_end` is followed by a `state` and a `prediction`: k = 1, 2, 3).
The same position stands in the output log, in the hot state, in ClickHouse and in every SSE or WebSocket id.
Positions compare as tuples of integers, never as text.
"""

from typing import NamedTuple

from core.errors import Poison

K_ALL = 65_535
"""`k` of "everything this input gave": above any message number, so a position with it lies after all of them."""


K_OWED = 32_768
"""Added to `k` where a reader has every *event* up to here and is still owed the newest states: it comes from so far
back that only events are kept. The debt is part of the position, so that it survives a reconnection to any gateway."""


class EntryId(NamedTuple):
    """A Redis stream entry id, `<ms>-<seq>`, comparable as two integers."""

    ms: int
    seq: int

    def __str__(self) -> str:
        return f"{self.ms}-{self.seq}"

    @property
    def next(self) -> "EntryId":
        """The smallest id above this one."""
        return EntryId(self.ms, self.seq + 1)


class Position(NamedTuple):
    """Place of one message in the log of one shard. Ordered; see the module docstring."""

    epoch: int
    ms: int
    seq: int
    k: int

    @property
    def entry(self) -> EntryId:
        """Entry id of the input event."""
        return EntryId(self.ms, self.seq)

    @property
    def is_owing(self) -> bool:
        """Whether states up to here are still to come; see `K_OWED`."""
        return K_OWED <= self.k < K_ALL

    @property
    def owing(self) -> "Position":
        """The same place, with states owed."""
        if self.is_owing:
            return self
        return self._replace(k=K_ALL - 1 if self.k >= K_ALL else K_OWED + min(self.k, K_ALL - K_OWED - 2))

    @property
    def settled(self) -> "Position":
        """The same place, with nothing owed."""
        if not self.is_owing:
            return self
        return self._replace(k=K_ALL if self.k == K_ALL - 1 else self.k - K_OWED)


ZERO = EntryId(0, 0)


def parse_entry_id(raw: bytes | str) -> EntryId:
    """Read `b"1700000000000-3"`. Raises Poison when it is not an entry id."""
    text = raw.decode("ascii", "replace") if isinstance(raw, bytes) else raw
    ms, dash, seq = text.partition("-")
    if not (dash and ms.isdecimal() and seq.isdecimal()):
        raise Poison(f"not an entry id: {text[:40]!r}")
    return EntryId(int(ms), int(seq))
