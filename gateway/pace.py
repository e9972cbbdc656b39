"""Letting a crowd through a few at a time, so that live readers hardly notice it.

When a read that thousands wait for is done, all of them are woken at once, and the event loop would be theirs until
the last one is served. Whoever passes here first goes on in a later turn of the loop, with a few others.
"""

import asyncio

AT_ONCE = 4
"""Readers served per turn of the loop: a few milliseconds at most."""


class Pace:
    """One for all who catch up in a process."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._turns = asyncio.Semaphore(at_once)

    async def turn(self) -> None:
        """Wait for a turn; it lasts until the next await."""
        async with self._turns:
            await asyncio.sleep(0)
