"""Leases: one active owner per (job, shard), spread over the running consumers.

Who should own a shard is rendezvous hashing over the consumers that gave a sign of life within the lease's time to
live: when one comes or goes, only its own share of the shards moves. A lease only keeps two consumers from working
on the same thing at once; what makes it *safe* is the fencing token, which every script that writes checks. A consumer
that was paused past its lease and wakes up is refused at its first write (`Fenced`).

Life of an ownership: acquire → `work(ownership)` runs as a task → the preferred owner changes, or the process stops →
`ownership.stop` is set, the work ends by itself within `STOP_TIMEOUT_S` or is cancelled → the lease is given up. When
the lease is lost (expired while Redis or we were away) the work is cancelled and the shard acquired anew.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping

from msgspec import Struct
from xxhash import xxh64_intdigest

from core import keys, logs
from core.errors import Fenced, Retry
from core.metrics import LOOP_ERRORS
from core.redis_client import Scripts, lua

STOP_TIMEOUT_S = 5.0
"""How long a work may take to finish its batch when the process stops. When a shard only moves it is a third of the
lease's time to live, so that the other leases are renewed in time; being cancelled costs a work nothing but time."""

CANCEL_AGAIN_S = 1.0

LEASE_SCRIPTS = ("lease_acquire", "lease_renew", "consumer_alive")


def lease_sources() -> dict[str, str]:
    """The scripts that `Leases` needs, for the process's `Scripts`."""
    return {name: lua("consumers", name) for name in LEASE_SCRIPTS}


def preferred_owner(shard: int, owners: Iterable[str]) -> str | None:
    """Rendezvous hashing: the owner with the highest hash of (owner, shard). None without owners."""
    return max(owners, key=lambda owner: (xxh64_intdigest(f"{owner} {shard}".encode()), owner), default=None)


class Ownership(Struct, frozen=True):
    """A shard held by this process: what a work needs to know about it."""

    shard: int
    token: int
    stop: asyncio.Event
    """Set when the work should finish its batch and return."""


Work = Callable[[Ownership], Awaitable[None]]

Homes = Callable[[], Awaitable[Mapping[int, str]]]
"""Shards that only some consumers can work on, and how the names of those end."""


class _Held(Struct):
    ownership: Ownership
    task: asyncio.Task[None]


class Leases:
    """Keeps this process's leases and runs one work per owned shard."""

    def __init__(
        self, scripts: Scripts, job: str, shards: int, owner: str, ttl_s: float, homes: Homes | None = None
    ) -> None:
        """`owner` is unique to the process and its start; `scripts` contain `lease_sources()`."""
        self._scripts = scripts
        self._job = job
        self._shards = range(shards)
        self._owner = owner
        self._ttl_ms = int(ttl_s * 1000)
        self._homes = homes
        self._held: dict[int, _Held] = {}
        self._log = logs.get().bind(job=job, owner=owner)

    @property
    def owned(self) -> list[int]:
        """Shards held now."""
        return sorted(self._held)

    async def run(self, work: Work, stop: asyncio.Event) -> None:
        """Acquire, keep and give up shards until `stop` is set, then end all work in order."""
        try:
            while not stop.is_set():
                try:
                    await self._round(work)
                except Exception as error:  # top of the loop; a lease that is not renewed meanwhile is lost and noticed
                    LOOP_ERRORS.labels("lease").inc()
                    known = isinstance(error, Retry)
                    self._log.warning(
                        "leases could not be renewed", error=str(error), exc_info=None if known else error
                    )
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), self._ttl_ms / 3000)
        finally:
            await asyncio.gather(*(self._give_up(shard, STOP_TIMEOUT_S) for shard in self.owned))
            with contextlib.suppress(Retry):
                await self._alive(stays=False)

    async def _round(self, work: Work) -> None:
        owners = await self._alive(stays=True)
        homes = await self._homes() if self._homes is not None else {}
        leaving = []
        for shard in self._shards:
            held = self._held.get(shard)
            able = [owner for owner in owners if owner.endswith(homes.get(shard, ""))] or owners
            is_preferred = preferred_owner(shard, able) == self._owner
            if held is None:
                if is_preferred:
                    await self._acquire(shard, work)
            elif held.task.done():
                self._report(held)
                leaving.append(shard)
            elif not is_preferred:
                self._log.info("shard moves to another consumer", shard=shard)
                leaving.append(shard)
            elif not await self._renew(held.ownership, self._ttl_ms):
                self._log.warning("lease lost", shard=shard, fence=held.ownership.token)
                await self._cancel(shard)
                await self._acquire(shard, work)
        await asyncio.gather(*(self._give_up(shard, self._ttl_ms / 3000) for shard in leaving))

    async def _alive(self, *, stays: bool) -> list[str]:
        reply: list[bytes] = await self._scripts.run(
            "consumer_alive", [keys.consumers(self._job)], [self._owner, self._ttl_ms, int(stays)]
        )
        return [owner.decode() for owner in reply]

    async def _acquire(self, shard: int, work: Work) -> None:
        names = [keys.lease(shard, self._job), keys.fence(shard, self._job)]
        token = int(await self._scripts.run("lease_acquire", names, [self._owner, self._ttl_ms]))
        if token:
            self._log.info("shard acquired", shard=shard, fence=token)
            ownership = Ownership(shard, token, asyncio.Event())
            task = asyncio.create_task(self._supervise(work, ownership), name=f"{self._job}-{shard}")
            self._held[shard] = _Held(ownership, task)

    async def _supervise(self, work: Work, ownership: Ownership) -> None:
        try:
            await work(ownership)
        except Fenced as error:
            self._log.warning("fenced off", shard=ownership.shard, fence=ownership.token, error=str(error))

    def _report(self, held: _Held) -> None:
        error = None if held.task.cancelled() else held.task.exception()
        if error is not None:
            LOOP_ERRORS.labels(self._job).inc()
            self._log.error("work on a shard failed, starting anew", shard=held.ownership.shard, exc_info=error)

    async def _renew(self, ownership: Ownership, ttl_ms: int) -> bool:
        names = [keys.lease(ownership.shard, self._job)]
        return bool(await self._scripts.run("lease_renew", names, [self._owner, ownership.token, ttl_ms]))

    async def _cancel(self, shard: int) -> None:
        """End a work now. One that swallows the cancellation, as libraries do, sees `stop` or is cancelled again."""
        held = self._held.pop(shard)
        held.ownership.stop.set()
        while not held.task.done():
            held.task.cancel()
            await asyncio.wait([held.task], timeout=CANCEL_AGAIN_S)

    async def _give_up(self, shard: int, timeout_s: float) -> None:
        held = self._held[shard]
        held.ownership.stop.set()
        await asyncio.wait([held.task], timeout=timeout_s)
        await self._cancel(shard)
        with contextlib.suppress(Retry):
            await self._renew(held.ownership, 0)
