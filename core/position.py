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


ZERO = EntryId(0, 0)


def parse_entry_id(raw: bytes | str) -> EntryId:
    """Read `b"1700000000000-3"`. Raises Poison when it is not an entry id."""
    text = raw.decode("ascii", "replace") if isinstance(raw, bytes) else raw
    ms, dash, seq = text.partition("-")
    if not (dash and ms.isdecimal() and seq.isdecimal()):
        raise Poison(f"not an entry id: {text[:40]!r}")
    return EntryId(int(ms), int(seq))
