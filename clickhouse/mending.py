"""Computing aggregates anew while everything runs: asked for through Redis, done by the shard's archive writer.

Whoever asks adds `<aggregate> <poll or match>` to `mend:{s}:<log>`; the follower of that log, who alone adds rows to
raw for it, does it between two batches, when no plan is in flight, and takes the request out. So raw stands still while
it is read, and a redo never adds to an aggregate what was counted already; `rebuilding` sees to it that nothing of it
comes late.

What cannot be done holds nobody up for long. Requests are tried together, then one by one, further and further apart,
and batches go on in between. After `REFUSED_MAX` attempts that ClickHouse refuses, or `TRIES_MAX` whatever the reason,
a request is parked (`mend_parked:{s}:<log>`, a metric and an alarm), until somebody asks again. Its aggregate may lack
the poll or match till then, which `reconcile` names.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence

from clickhouse import comparison
from clickhouse.client import ClickHouse
from clickhouse.rebuilding import Rebuilds, parked
from clickhouse.tables import TABLES
from core import keys, logs
from core.errors import Fenced, Retry
from core.metrics import LOOP_ERRORS
from core.redis_client import Redis, call

AT_ONCE = 200
REFUSED_MAX = 5
TRIES_MAX = 30
"""About 25 minutes, for what time may mend: a full disk, too little memory. ClickHouse that is away costs one attempt,
as nothing is tried before it is back; one that dies of the attempt must not do so for ever."""

PAUSE_MAX_S = 60.0
POLL_S = 0.1

_PAUSE_MIN_S = 0.5


def log_of(raw: str) -> str:
    """The log whose writer fills a raw table. Raises KeyError for a table that no log fills."""
    return {table.name: log for log, tables in TABLES.items() for table in tables}[raw]


async def ask(client: Redis, shard: int, aggregate: comparison.Comparable, ids: Sequence[str]) -> None:
    """Ask for aggregates of one shard's polls or matches to be computed anew, also for what was given up before."""
    if ids:
        log = log_of(aggregate.raw)
        requests = [f"{aggregate.name} {one}" for one in ids]
        pipe = client.pipeline(transaction=True)
        pipe.hdel(keys.mend_parked(shard, log), *requests)
        pipe.hdel(keys.mend_tries(shard, log), *requests)
        pipe.sadd(keys.mend(shard, log), *requests)
        await call(pipe.execute())


async def wait_done(client: Redis, shards: Sequence[int], timeout_s: float) -> dict[tuple[int, str], str]:
    """Wait until nothing asked for is left; (shard, request) -> why for what was given up. Raises Retry when it takes
    longer: the requests stay."""
    deadline = time.monotonic() + timeout_s
    names = [keys.mend(shard, log) for shard in shards for log in TABLES]
    while any([await call(client.exists(name)) for name in names]):
        if time.monotonic() > deadline:
            raise Retry("no archive has computed the aggregates anew yet: is one running? The request stays")
        await asyncio.sleep(POLL_S)
    return await parked(client, shards, list(TABLES))


class Mender:
    """Does what was asked for of one log of one shard. Only for its owner, while no plan is in flight."""

    def __init__(self, client: Redis, clickhouse: ClickHouse, rebuilds: Rebuilds, shard: int, log: str) -> None:
        self._client = client
        self._clickhouse = clickhouse
        self._rebuilds = rebuilds
        self._shard = shard
        self._log = log
        self._failures = 0
        self._not_before_s = 0.0

    async def mend(self) -> bool:
        """One attempt at some of what was asked for, if it is time; whether there was one. Raises what made it fail;
        then the log has to be taken over again."""
        name = keys.mend(self._shard, self._log)
        asked: list[bytes] = await call(self._client.srandmember(name, AT_ONCE))
        if not asked or time.monotonic() < self._not_before_s:
            return False
        requests = sorted(request.decode() for request in asked)
        counts = await call(self._client.hmget(keys.mend_tries(self._shard, self._log), requests))
        tries = {request: int(count or 0) for request, count in zip(requests, counts, strict=True)}
        for request, count in tries.items():
            if count >= TRIES_MAX:  # its attempts did not even end
                await self._park(request, "its attempts did not come to an end")
                return True
        chosen = _together(tries)
        try:
            await self._attempt(chosen)
        except Fenced:
            raise
        except Exception as error:
            await self._failed(chosen, tries, error)
            raise
        self._failures = 0
        return True

    async def _attempt(self, requests: Sequence[str]) -> None:
        known: Mapping[str, comparison.Comparable] = {
            one.name: one for one in await comparison.discover(self._clickhouse)
        }  # fmt: skip
        aggregate = known.get(requests[0].partition(" ")[0])
        ids = [request.partition(" ")[2] for request in requests]
        attempt = await self._rebuilds.begin(requests)
        if aggregate is None or log_of(aggregate.raw) != self._log:
            logs.get().error("no such aggregate of this log", requests=requests[:3], shard=self._shard, log=self._log)
        else:
            await comparison.rebuild(self._clickhouse, aggregate, ids, attempt)
            LOOP_ERRORS.labels("archive_repair").inc()
            logs.get().warning(
                "aggregate computed anew from raw", aggregate=aggregate.name, shard=self._shard, count=len(ids)
            )
        await self._rebuilds.end(attempt, requests)

    async def _failed(self, requests: Sequence[str], tries: Mapping[str, int], error: Exception) -> None:
        self._failures += 1
        self._not_before_s = time.monotonic() + min(PAUSE_MAX_S, _PAUSE_MIN_S * 2.0**self._failures)
        bound = TRIES_MAX if isinstance(error, Retry) else REFUSED_MAX
        if len(requests) == 1 and tries[requests[0]] + 1 >= bound:
            await self._park(requests[0], str(error))

    async def _park(self, request: str, reason: str) -> None:
        LOOP_ERRORS.labels("archive_repair").inc()
        logs.get().error(
            "aggregate not computed anew, given up until it is asked for again", request=request, shard=self._shard,
            log=self._log, reason=reason,
        )  # fmt: skip
        await self._rebuilds.park(request, reason)


def _together(tries: Mapping[str, int]) -> list[str]:
    """What to try next: everything of one aggregate that was never tried, else what was tried least, alone."""
    fresh = [request for request, count in tries.items() if count <= 0]
    if not fresh:
        return [min(tries, key=lambda request: tries[request])]
    name = fresh[0].partition(" ")[0]
    return [request for request in fresh if request.partition(" ")[0] == name]
