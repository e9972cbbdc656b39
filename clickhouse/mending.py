"""Computing aggregates anew while everything runs: asked for through Redis, done by the shard's archive writer.

Whoever asks adds `<aggregate> <poll or match>` to `mend:{s}:<log>`; the follower of that log, who alone adds rows to
raw for it, does it between two batches, when no plan is in flight, and takes the request out. So raw stands still while
it is read, and a redo never adds to an aggregate what was counted already.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence

from clickhouse import comparison
from clickhouse.client import ClickHouse
from clickhouse.tables import TABLES
from core import keys, logs
from core.errors import Retry
from core.metrics import LOOP_ERRORS
from core.redis_client import Redis, call

AT_ONCE = 200
POLL_S = 0.1


def log_of(raw: str) -> str:
    """The log whose writer fills a raw table. Raises KeyError for a table that no log fills."""
    return {table.name: log for log, tables in TABLES.items() for table in tables}[raw]


async def ask(client: Redis, shard: int, aggregate: comparison.Comparable, ids: Sequence[str]) -> None:
    """Ask for aggregates of one shard's polls or matches to be computed anew."""
    if ids:
        name = keys.mend(shard, log_of(aggregate.raw))
        await call(client.sadd(name, *(f"{aggregate.name} {one}" for one in ids)))


async def wait_done(client: Redis, shards: Sequence[int], timeout_s: float) -> None:
    """Wait until nothing asked for is left. Raises Retry when it takes longer: the request stays."""
    deadline = time.monotonic() + timeout_s
    names = [keys.mend(shard, log) for shard in shards for log in TABLES]
    while any([await call(client.exists(name)) for name in names]):
        if time.monotonic() > deadline:
            raise Retry("no archive has computed the aggregates anew yet: is one running? The request stays")
        await asyncio.sleep(POLL_S)


async def mend(client: Redis, clickhouse: ClickHouse, shard: int, log: str) -> int:
    """Do what was asked for; how much. Only for the owner of the log, while no plan is in flight."""
    name = keys.mend(shard, log)
    asked: list[bytes] = await call(client.srandmember(name, AT_ONCE))
    if not asked:
        return 0
    known: Mapping[str, comparison.Comparable] = {one.name: one for one in await comparison.discover(clickhouse)}
    wanted: dict[str, list[str]] = {}
    for request in asked:
        aggregate, _, subject = request.decode().partition(" ")
        wanted.setdefault(aggregate, []).append(subject)
    for aggregate, ids in wanted.items():
        if aggregate in known and log_of(known[aggregate].raw) == log:
            await comparison.rebuild(clickhouse, known[aggregate], ids)
            LOOP_ERRORS.labels("archive_repair").inc()
            logs.get().warning("aggregate computed anew from raw", aggregate=aggregate, shard=shard, count=len(ids))
    await call(client.srem(name, *asked))
    return len(asked)
