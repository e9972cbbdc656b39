"""Letting a crowd through a few at a time, so that live readers hardly notice it.

When a read that thousands wait for is done, all of them are woken at once, and the event loop would be theirs until
the last one is served. Whoever passes here first goes on in a later turn of the loop, with a few others.
"""

import asyncio
from collections import deque

AT_ONCE = 4
"""Readers served per turn of the loop: a few milliseconds at most."""

CROWD = 32


class Pace:
    """One for all who catch up in a process."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._at_once = at_once
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def is_crowded(self) -> bool:
        """Whether so many could go on if only it were their turn that more would just take up memory."""
        return len(self._waiting) >= CROWD

    async def turn(self) -> None:
        """Wait for a turn; it lasts until the next await."""
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self._waiting.append(waiter)
        if len(self._waiting) == 1:
            loop.call_soon(self._next)
        await waiter

    def _next(self) -> None:
        let_go = 0
        while self._waiting and let_go < self._at_once:
            waiter = self._waiting.popleft()
            if not waiter.done():  # else it was cancelled: a reader that left
                waiter.set_result(None)
                let_go += 1
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._next)
