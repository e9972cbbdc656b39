"""Reads that many readers want at the same time, done once: whoever comes while one is under way waits for it, and
whoever comes a little later finds what it gave.

What is kept is bounded in bytes, what is under way in number: readers beyond that are asked to come back (`Retry`), so
a crowd with a thousand different wishes holds up neither the log nor those whose wish is a common one.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, Protocol, TypeVar

from core.errors import Retry


class Sized(Protocol):
    """What can be kept."""

    @property
    def size(self) -> int:
        """Bytes it takes, about."""


V = TypeVar("V", bound=Sized)


class SharedReads(Generic[V]):
    """Reads by key."""

    def __init__(self, *, bytes_max: int, at_once: int, waiting_max: int) -> None:
        """`at_once`: reads that run at the same moment; `waiting_max`: different ones that may wait for their turn."""
        self._bytes_max = bytes_max
        self._waiting_max = waiting_max
        self._turns = asyncio.Semaphore(at_once)
        self._kept: OrderedDict[Hashable, V] = OrderedDict()
        self._reading: dict[Hashable, asyncio.Task[V]] = {}
        self.bytes = 0
        self.count = 0
        """Reads begun so far."""

    async def get(
        self, key: Hashable, read: Callable[[], Awaitable[V]], fresh_s: Callable[[V], float | None] = lambda _: None
    ) -> V:
        """The value for a key: kept, awaited, or read. Raises what `read` raises, and Retry when too many wait.

        `fresh_s`: how long a value stays good, None = as long as there is room.
        """
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
            return found
        task = self._reading.get(key)
        if task is None:
            if len(self._reading) >= self._waiting_max:
                raise Retry("too many different reads are waiting")
            task = self._reading[key] = asyncio.create_task(self._take_turn(read))
            task.add_done_callback(lambda done: self._keep(key, done, fresh_s))
        return await asyncio.shield(task)  # a reader who leaves must not take the others' read along

    async def stop(self) -> None:
        """Give up what is under way."""
        tasks = list(self._reading.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _take_turn(self, read: Callable[[], Awaitable[V]]) -> V:
        async with self._turns:
            self.count += 1
            return await read()

    def _keep(self, key: Hashable, task: asyncio.Task[V], fresh_s: Callable[[V], float | None]) -> None:
        del self._reading[key]
        if task.cancelled() or task.exception() is not None:
            return
        value = task.result()
        self._kept[key] = value
        self.bytes += value.size
        while self.bytes > self._bytes_max:
            self.bytes -= self._kept.popitem(last=False)[1].size
        good_s = fresh_s(value)
        if good_s is not None and self._kept.get(key) is value:
            asyncio.get_running_loop().call_later(good_s, self._drop, key, value)

    def _drop(self, key: Hashable, value: V) -> None:
        if self._kept.get(key) is value:
            del self._kept[key]
            self.bytes -= value.size
