"""The bound on memory for readers who do not read. Pure.

Each reader holds little: about the high-water mark, then nothing is written to it. Ten thousand of them are much, so
the sum is bounded, too: `ARENACAST_GATEWAY_MAX_BUFFER_MB` over all unsent bytes and what is kept for catching up. Over
it the worst go first, with 4008 and a cursor that stays good; whoever still holds its bytes at the next look, because
it does not even read its end, is cut off.
"""

from collections.abc import Iterable
from typing import Protocol, TypeVar

RELIEF = 0.9
"""Evictions go on down to this part of the bound, so that they come in groups and not one by one."""


CACHE_BYTES_MAX = 32 * 1024 * 1024
CACHE_SHARE = 4
"""Each of the two caches of what readers are caught up with takes this part of the bound at most: they stay full, and
if they alone reached a small bound, every reader who is a moment late would have to go."""


def cache_bytes(bytes_max: int) -> int:
    """What such a cache may keep."""
    return min(CACHE_BYTES_MAX, bytes_max // CACHE_SHARE)


class Held(Protocol):
    """A connection and what it holds."""

    @property
    def unsent(self) -> int:
        """Bytes written to it that the kernel has not taken."""

    @property
    def is_closing(self) -> bool:
        """Whether it was told to end already."""


C = TypeVar("C", bound=Held)


def worst(connections: Iterable[C], bytes_max: int, others: int) -> tuple[list[C], list[C]]:
    """Whom to evict and whom to cut off so that the sum, with `others` bytes held elsewhere, is below `bytes_max`."""
    holding = sorted((one for one in connections if one.unsent), key=lambda one: -one.unsent)
    total = others + sum(one.unsent for one in holding)
    evict: list[C] = []
    cut: list[C] = []
    if total <= bytes_max:
        return evict, cut
    for one in sorted(holding, key=lambda one: not one.is_closing):  # stable: the worst of each first
        if total <= bytes_max * RELIEF:
            break
        (cut if one.is_closing else evict).append(one)
        total -= one.unsent
    return evict, cut
