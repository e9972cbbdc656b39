"""The threads that statements run on: how many at a time, how many wait, and how much memory bodies may take."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import asynccontextmanager, contextmanager
from typing import Any, ParamSpec, TypeVar

from clickhouse.embedded.errors import ClickHouseError, Code

P = ParamSpec("P")
T = TypeVar("T")


class Workers:
    """A place is held for the whole of a request, streaming included. For one event loop."""

    def __init__(self, running_max: int, waiting_max: int, wait_max_s: float) -> None:
        self._places = asyncio.Semaphore(running_max)
        self._waiting_max = waiting_max
        self._wait_max_s = wait_max_s
        self._waiting = 0
        self._running: set[Future[Any]] = set()
        self._pool = ThreadPoolExecutor(running_max, thread_name_prefix="statement")
        self._control = ThreadPoolExecutor(1, thread_name_prefix="control")

    @property
    def busy(self) -> int:
        """Threads at work right now."""
        return len(self._running)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place. Raises ClickHouseError when too many wait already, or for too long."""
        if self._waiting >= self._waiting_max:
            raise _too_many("too many are waiting")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._wait_max_s):
                await self._places.acquire()
        except TimeoutError:
            raise _too_many(f"none has ended for {self._wait_max_s:g} s") from None
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._places.release()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run on a thread. Cancelling the caller does not stop the thread."""

        future = self._pool.submit(function, *args, **kwargs)
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return await asyncio.wrap_future(future)

    async def control(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run on a thread that statements cannot occupy: cancelling them."""
        return await asyncio.get_running_loop().run_in_executor(self._control, lambda: function(*args, **kwargs))

    async def idle(self, timeout_s: float) -> bool:
        """Wait until no thread is at work; whether that came about in time."""
        deadline = time.monotonic() + timeout_s
        while self._running and (left_s := deadline - time.monotonic()) > 0:
            await self.control(wait, set(self._running), left_s)
        return not self._running

    def close(self) -> None:
        """Let the threads end; they must be idle."""
        self._pool.shutdown(wait=False)
        self._control.shutdown(wait=False)


class Budget:
    """Bytes that the bodies of all requests may take together."""

    def __init__(self, max_bytes: int) -> None:
        self._free = max_bytes

    @contextmanager
    def lease(self) -> Iterator["Lease"]:
        """A request's share, given back at its end."""
        lease = Lease(self)
        try:
            yield lease
        finally:
            self._free += lease.size

    def take(self, size: int) -> None:
        """Used by `Lease`."""
        if size > self._free:
            raise ClickHouseError(
                Code.TOO_MANY_SIMULTANEOUS_QUERIES, "Too much data in the bodies of simultaneous requests"
            )
        self._free -= size


class Lease:
    """Bytes of one request."""

    def __init__(self, budget: Budget) -> None:
        self.size = 0
        self._budget = budget

    def grow(self, size: int) -> None:
        """Take more. Raises ClickHouseError when there is no more."""
        self._budget.take(size)
        self.size += size


def _too_many(reason: str) -> ClickHouseError:
    return ClickHouseError(Code.TOO_MANY_SIMULTANEOUS_QUERIES, f"Too many simultaneous queries: {reason}")
