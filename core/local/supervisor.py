"""Keeps services alive as child processes: start in order, restart what dies, stop in reverse order.

A service counts as started when it says that it is ready. Before that, a few failed attempts are final (a wrong
setting does not mend itself by repetition); after that it is restarted for ever, with growing pauses.
A child that hangs without ending is not restarted: an overloaded one looks the same, and killing it would make that
worse. Its `/readyz` and its metrics tell.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core.errors import Fatal
from core.local.child import Child, describe_exit
from core.local.output import Output, Say

START_ATTEMPTS = 3
"""A service that ends so often before it was ever ready is given up."""

BACKOFF_FIRST_S = 0.25
BACKOFF_MAX_S = 15.0
KILL_WITHIN_S = 5.0
"""A killed process ends at once, unless the system cannot let it go (a dead disk): then we leave without it."""

STABLE_S = 30.0
"""A child that lived this long starts again with the shortest pause."""

_POLL_S = 0.05


async def always_ready() -> bool:
    """For a service that has nothing to ask."""
    return True


@dataclass(frozen=True)
class Service:
    """What to run and how to tell that it works."""

    name: str
    command: Sequence[str]
    environ: Mapping[str, str]
    is_ready: Callable[[], Awaitable[bool]] = always_ready  # polled; must return False and not raise
    prepare: Callable[[], Awaitable[None]] | None = None  # before every start; may raise Fatal
    ready_within_s: float = 30.0
    stop_within_s: float = 10.0
    is_task: bool = False  # runs to its end, once, before the next stage starts


class Keeper:
    """Keeps one service running."""

    def __init__(self, service: Service, log_dir: Path, say: Say, clock: Callable[[], float] = time.monotonic) -> None:
        self.service = service
        self.restarts = 0
        self.child: Child | None = None
        self._output = Output(service.name, log_dir, say)
        self._say = say
        self._clock = clock
        self._stopping = asyncio.Event()
        self._starting = asyncio.Lock()  # so that a stop in the middle of a start finds the child that it made

    async def start(self) -> None:
        """Start the service and return when it is ready (a task: when it has succeeded). Raises Fatal otherwise."""
        for attempt in range(1, START_ATTEMPTS + 1):
            child = await self._spawn()
            if child is None:
                return
            if self.service.is_task:
                return await self._finish(child)
            outcome = await self._becomes_ready(child)
            if outcome == "late":
                raise Fatal(self._failure(f"is not ready after {self.service.ready_within_s:g} s"))
            if outcome == "ready" or self._stopping.is_set():
                return
            code = await child.wait()
            if attempt < START_ATTEMPTS:
                self._say(f"{self.service.name} ended with {describe_exit(code)} before it was ready, trying again")
                await self._pause(attempt)
        raise Fatal(self._failure(f"does not start ({describe_exit(code)})"))

    async def keep(self) -> None:
        """Restart the service whenever it ends, until it is stopped. Call after `start`."""
        failures = 0
        while self.child is not None and not self._stopping.is_set():
            since = self._clock()
            code = await self.child.wait()
            if self._stopping.is_set():
                return
            failures = 1 if self._clock() - since > STABLE_S else failures + 1
            self.restarts += 1
            self._say(
                f"{self.service.name} ended with {describe_exit(code)}, "
                f"restart {self.restarts} in {backoff_s(failures):g} s{self._reason()}"
            )
            await self._pause(failures)
            await self._respawn()

    def expect_end(self) -> None:
        """From now on it is neither started nor restarted."""
        self._stopping.set()

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL when that is not enough within the service's bound."""
        self.expect_end()
        async with self._starting:
            child = self.child
        if child is not None:
            child.terminate()
            if not await _ends(child, self.service.stop_within_s):
                self._say(f"{self.service.name} did not stop within {self.service.stop_within_s:g} s and is killed")
                child.kill()
                await _ends(child, KILL_WITHIN_S)
        self._output.close()

    def kill(self) -> None:
        """Kill it at once."""
        self.expect_end()
        if self.child is not None:
            self.child.kill()

    async def _spawn(self) -> Child | None:
        """A new child, or None when we are being stopped."""
        if self.service.prepare is not None:
            await self.service.prepare()
        async with self._starting:
            if self._stopping.is_set():
                return None
            self.child = await Child.start(self.service.command, self.service.environ, self._output)
            return self.child

    async def _respawn(self) -> None:
        while True:
            try:
                child = await self._spawn()
            except (Fatal, OSError) as error:  # out of processes, or its port has been taken: goes on trying
                self._say(f"{self.service.name} cannot be started: {error}")
                await self._pause(START_ATTEMPTS)
                continue
            if child is not None and await self._becomes_ready(child) == "ready":
                self._say(f"{self.service.name} is ready again")
            return

    async def _becomes_ready(self, child: Child) -> Literal["ready", "ended", "late"]:
        deadline = self._clock() + self.service.ready_within_s
        while not child.has_ended:
            if await self.service.is_ready() and not child.has_ended:
                return "ready"
            if self._clock() > deadline:
                return "late"
            await _ends(child, _POLL_S)
        return "ended"

    async def _finish(self, child: Child) -> None:
        if not await _ends(child, self.service.ready_within_s):
            child.kill()
            raise Fatal(self._failure(f"did not end within {self.service.ready_within_s:g} s"))
        code = await child.wait()
        if code != 0 and not self._stopping.is_set():
            raise Fatal(self._failure(f"failed ({describe_exit(code)})"))

    async def _pause(self, failures: int) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), backoff_s(failures))
        except TimeoutError:
            return

    def _failure(self, what: str) -> str:
        return f"{self.service.name} {what}{self._reason()} (its log: {self._output.path})"

    def _reason(self) -> str:
        words = self._output.last_words.removeprefix("arenacast: ")
        return f": {words}" if words else ""


def backoff_s(failures: int) -> float:
    """Pause before a restart after this many failures in a row."""
    return min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 20))


async def _ends(child: Child, within_s: float) -> bool:
    try:
        await asyncio.wait_for(child.wait(), within_s)
    except TimeoutError:
        return False
    return True


class Supervisor:
    """All services of one machine. `stages` are started one after the other, the services of one stage together."""

    def __init__(self, stages: Sequence[Sequence[Service]], log_dir: Path, say: Say) -> None:
        self._stages = [[Keeper(service, log_dir, say) for service in stage] for stage in stages]
        self._stop = asyncio.Event()

    @property
    def keepers(self) -> list[Keeper]:
        """In the order of start."""
        return [keeper for stage in self._stages for keeper in stage]

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Start everything, keep it running until `stop()`, stop it. Raises Fatal when something does not start."""
        work = asyncio.create_task(self._work(on_ready))
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([work, stopped], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            self.stop()
            for keeper in reversed(self.keepers):
                await keeper.stop()
        try:
            await work
        except* Fatal as errors:
            raise errors.exceptions[0] from None

    def stop(self) -> None:
        """Ask for an orderly end."""
        self._stop.set()
        for keeper in self.keepers:  # all of them before the first one ends, because others may end for that reason
            keeper.expect_end()

    def kill(self) -> None:
        """Kill everything at once: the second Ctrl-C."""
        self.stop()
        for keeper in self.keepers:
            keeper.kill()

    async def _work(self, on_ready: Callable[[], None]) -> None:
        async with asyncio.TaskGroup() as group:
            for stage in self._stages:
                await asyncio.gather(*(keeper.start() for keeper in stage))
                for keeper in stage:
                    if not keeper.service.is_task:
                        group.create_task(keeper.keep())
            if not self._stop.is_set():
                on_ready()
