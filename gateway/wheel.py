"""One timer for everybody: connections get a beat every so often, spread evenly over the time between. Pure.

Ten thousand heartbeats at one moment would hold the event loop for tens of milliseconds; a few of them at every tick
do not.
"""

import itertools
from collections.abc import Iterator
from typing import Protocol

SLOTS = 64

AT_ONCE = 25
"""Beats of some 20 us each between two stops: half a millisecond that live messages may have to wait."""


class Connection(Protocol):
    """What stays on the wheel from its first to its last moment, so that the wheel is also the list of all."""

    slot: int

    @property
    def unsent(self) -> int:
        """Bytes written to it that the kernel has not taken."""

    @property
    def is_closing(self) -> bool:
        """Whether it was told to end already."""

    def close(self, code: int, reason: str) -> None:
        """End the connection after what was written."""

    def cut(self) -> None:
        """End it at once; what was not sent is lost."""

    def beat(self, now: float) -> None:
        """Called once per turn of the wheel."""

    def dismiss(self) -> None:
        """Ask the reader to reconnect, and end the connection."""


class Wheel:
    """Turns once in `period_s`."""

    def __init__(self, period_s: float) -> None:
        self.tick_s = period_s / SLOTS
        self._slots: list[dict[Connection, None]] = [{} for _ in range(SLOTS)]
        self._next = itertools.cycle(range(SLOTS))
        self._at = 0

    def add(self, connection: Connection) -> None:
        """Put a connection on the wheel."""
        connection.slot = next(self._next)
        self._slots[connection.slot][connection] = None

    def remove(self, connection: Connection) -> None:
        """Take it off. Harmless when it is not on it."""
        self._slots[connection.slot].pop(connection, None)

    def tick(self, now: float) -> Iterator[None]:
        """Run through it every `tick_s`; it stops now and then for you to let others work."""
        spokes = self._slots[self._at]
        self._at = (self._at + 1) % SLOTS
        for number, connection in enumerate(tuple(spokes), 1):
            if connection in spokes:  # or it left meanwhile
                connection.beat(now)
            if number % AT_ONCE == 0:
                yield

    def __iter__(self) -> Iterator[Connection]:
        return itertools.chain.from_iterable(self._slots)

    def __len__(self) -> int:
        return sum(map(len, self._slots))
