"""Computing aggregates anew by one owner at a time: deleting and inserting under a number that can be outdated.

An aggregate is deleted and inserted from raw while nobody adds to raw. Its owner alone adds, between two batches or
with a plan in flight, but a statement may come late: the owner was paused and another took over, or the connection
broke while ClickHouse works on. A late DELETE takes away what was computed since; a late INSERT counts what was
archived since twice.

    begin     Redis notes an attempt under the fencing token; it has a number
    work      every statement carries `Attempt.holds`: ClickHouse looks, when the statement begins, whether the number
              is outdated, and then it changes nothing
    end       Redis forgets the attempt, and what had asked for it, under the fencing token
    settle    whoever takes over an attempt that did not end outdates its number in ClickHouse, and waits until
              nothing of it runs any more: what began before can be seen running, what begins later changes nothing

So after `settle` no statement of an earlier attempt has an effect, and what it was about is done again: its request,
or the plan, is still there. A mutation whose DELETE was given up goes on by itself; it takes rows that were there
before it, and the next attempt's DELETE waits for it.

ClickHouse shows the statements of the server that is asked. With replicas, the archive's URL has to lead to the same
one for as long as that is there.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from msgspec import Struct
from redis.exceptions import ResponseError

from clickhouse.client import ClickHouse
from core import keys, logs
from core.errors import Fatal, Retry
from core.metrics import LOOP_ERRORS
from core.redis_client import Argument, Redis, Scripts, call, lua

JOB = "archive"
STATEMENT_S = 300.0
"""Bound of one statement, here and in ClickHouse."""

SETTLE_S = 30.0
"""How long a statement of an earlier attempt may still run while we wait."""

_POLL_S = 0.1

_FENCE = "(SELECT max(number) FROM rebuild_fences WHERE shard = {shard:d} AND log = '{log}')"
_RUNNING = """query_kind != 'Select' AND position(query, {fence:String}) > 0
AND current_database = currentDatabase()"""

_INSERTING = """query_kind = 'Insert' AND current_database = currentDatabase()
AND match(Settings['insert_deduplication_token'], {token:String})"""

_NOT_DEDUPLICATED: Mapping[str, int | str] = {
    "async_insert": 0,
    "insert_deduplicate": 0,
    "deduplicate_insert": "disable",
}


class Attempt(Struct, frozen=True):
    """One attempt at aggregates of a shard's log. A restore, which is alone with ClickHouse, needs no number."""

    fence: str = "0"
    number: int = 0

    @property
    def holds(self) -> str:
        """SQL: whether the attempt is not outdated. To be evaluated once, when the statement begins (`settings`)."""
        return f"{self.fence} <= {self.number}"

    def deleting(self) -> Mapping[str, int | float]:
        """Settings of a DELETE: it is over when it returns, and what `holds` gave stands in the mutation."""
        return {
            "lightweight_deletes_sync": 2,
            "mutations_execute_subqueries_on_initiator": 1,
            "allow_nondeterministic_mutations": 1,
            "max_execution_time": STATEMENT_S,
        }

    def inserting(self) -> Mapping[str, int | float | str]:
        """Settings of an INSERT SELECT: an equal block of an earlier attempt would be dropped as a repeat."""
        return {**_NOT_DEDUPLICATED, "max_execution_time": STATEMENT_S}


ALONE = Attempt()


def rebuild_sources() -> dict[str, str]:
    """The scripts that `Rebuilds` needs, for the process's `Scripts`."""
    return {name: lua("clickhouse", name) for name in ("archive_rebuild", "archive_park")}


class Rebuilds:
    """Attempts at one log of one shard, for one ownership. Any method raises Retry or Fenced."""

    def __init__(
        self, client: Redis, scripts: Scripts, clickhouse: ClickHouse, shard: int, log: str, token: int
    ) -> None:
        self._client = client
        self._scripts = scripts
        self._clickhouse = clickhouse
        self._shard = shard
        self._log = log
        self._token = token
        self._fence = _FENCE.format(shard=shard, log=log)

    async def begin(self, requests: Sequence[str] = ()) -> Attempt:
        """Begin an attempt, for what was asked for or for a plan in flight."""
        newest = (await self._clickhouse.query(f"SELECT {self._fence}"))[0][0]  # Redis may have been set back
        return Attempt(self._fence, int(await self._run("begin", int(newest), requests)))

    async def end(self, attempt: Attempt, requests: Sequence[str] = ()) -> None:
        """Everything of the attempt is done."""
        await self._run("end", attempt.number, requests)

    async def settle(self, unfinished: int) -> None:
        """See to it that an attempt which did not end has no effect from now on."""
        LOOP_ERRORS.labels("archive_repair").inc()
        log = logs.get().bind(shard=self._shard, log=self._log, attempt=unfinished, fence=self._token)
        log.warning("an attempt at aggregates did not end")
        await self._clickhouse.command(
            "INSERT INTO rebuild_fences (shard, log, number) SELECT {shard:UInt8}, {log:String}, {number:UInt64}",
            {"shard": self._shard, "log": self._log, "number": unfinished + 1},
            settings=_NOT_DEDUPLICATED,
        )
        deadline = time.monotonic() + SETTLE_S
        is_told = False
        while await self._runs(_RUNNING, {"fence": self._fence}):
            if not is_told:
                log.warning("its statement still runs: told to end")
                is_told = True
                with suppress(Fatal):  # a user who may not, waits
                    await self._clickhouse.command(f"KILL QUERY WHERE {_RUNNING} ASYNC", {"fence": self._fence})
            if time.monotonic() > deadline:
                raise Retry("a statement of an earlier attempt at aggregates does not end")
            await asyncio.sleep(_POLL_S)
        await self._run("settle", unfinished, ())

    async def inserts_ended(self) -> None:
        """Wait until no insert of this log is running: one whose owner died, or whose connection broke. What is looked
        for would come later, and twice, since what is missing goes under another token."""
        deadline = time.monotonic() + SETTLE_S
        while await self._runs(_INSERTING, {"token": rf"^\w+:{self._log}:{self._shard}:"}):
            if time.monotonic() > deadline:
                raise Retry("an earlier insert of this log is still running")
            await asyncio.sleep(_POLL_S)

    async def park(self, request: str, reason: str) -> None:
        """Give a request up."""
        names = [
            keys.fence(self._shard, JOB), keys.mend(self._shard, self._log), keys.mend_tries(self._shard, self._log),
            keys.mend_parked(self._shard, self._log),
        ]  # fmt: skip
        await self._script("archive_park", names, [self._token, request, reason[:300]])

    async def _runs(self, condition: str, parameters: Mapping[str, str]) -> bool:
        """Whether ClickHouse is working on such a statement."""
        sql = f"SELECT count() FROM system.processes WHERE {condition}"  # noqa: S608 - our own text
        return bool((await self._clickhouse.query(sql, parameters))[0][0])

    async def _run(self, step: str, number: int, requests: Sequence[str]) -> int:
        names = [
            keys.archive(self._shard, self._log), keys.fence(self._shard, JOB), keys.mend(self._shard, self._log),
            keys.mend_tries(self._shard, self._log),
        ]  # fmt: skip
        return int(await self._script("archive_rebuild", names, [self._token, step, number, *requests]))

    async def _script(self, name: str, names: Sequence[str], args: Sequence[Argument]) -> int:
        try:
            return int(await self._scripts.run(name, names, args))
        except ResponseError as error:
            raise Retry(f"{name}: {error}") from error


async def parked(client: Redis, shards: Sequence[int], logs_: Sequence[str]) -> dict[tuple[int, str], str]:
    """(shard, request) -> why it was given up."""
    pipe = client.pipeline(transaction=False)
    wanted = [(shard, log) for shard in shards for log in logs_]
    for shard, log in wanted:
        pipe.hgetall(keys.mend_parked(shard, log))
    found = zip(wanted, await call(pipe.execute()), strict=True)
    return {
        (shard, request.decode()): reason.decode("utf-8", "replace")
        for (shard, _), given_up in found
        for request, reason in given_up.items()
    }
