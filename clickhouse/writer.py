"""The exactly-once protocol: one log of one shard into its tables, every entry once, through any crash.

State, in the hash `archive:{s}:<log>` of Redis: `committed` (last archived entry), `entries` (how many), `batches`
(how many plans), `inflight` (the plan being carried out). One writer per (shard, log): every script checks the fencing
token.

    plan     store {after, first, last, count, crc, epoch, schema} while nothing is in flight
    insert   the rows of exactly these entries, one insert per table, each with a token derived from the plan
    commit   forget the plan, committed = last, and bury the entries that became no row

Whatever happens in between, the writer is left and the log is *taken over* again, by this process or another: the
plan in flight is redone from the log (or from its segment files, see `spill`) with the same rows and the same token,
of which ClickHouse stores what is missing, in each partition and each view's target, and drops the rest. Nothing is
ever planned anew or skipped.

| crash                     | what Redis says | taking over                                          |
| before the plan           | nothing         | plans anew, any boundary                             |
| after it, or in an insert | plan            | redo stores what is missing                          |
| after the inserts         | plan            | redo is dropped everywhere, then committed           |
| in a redo                 | plan            | redo again                                           |

What the tokens cannot cover is done by looking (`repair`): when more batches passed than a table's window is sure to
remember, or when ClickHouse holds rows beyond the committed position because Redis was rolled back, only the rows that
are not there are inserted, and the aggregates are computed anew from raw; where some were missing it is logged as an
error, because something else went wrong before. A plan whose entries are not the planned ones any more cannot be
redone: `Stuck`.

A plan or a commit that Redis lost (it crashed with `appendfsync everysec`, or a lagging replica took over) is such a
case, so the plan needs no WAITAOF of its own: a lost plan leaves rows beyond the committed position.

Why tokens at all, if one can look? An attempt whose connection broke may still be running when we look; where we must
look, we wait until none is. Why the plan? Without it a repeat has other boundaries, hence another token, and what
arrived of the first attempt is stored twice.
"""

import asyncio
import logging
import time
from collections.abc import Mapping

import msgspec
from msgspec import Struct
from redis.exceptions import ResponseError

from clickhouse import repair
from clickhouse.client import ClickHouse
from clickhouse.mending import Mender
from clickhouse.migrate import DEDUPLICATION_WINDOW
from clickhouse.reading import Limits, Log, Stuck, checksum, entry_id, stream_key
from clickhouse.rebuilding import Rebuilds, rebuild_sources
from clickhouse.rows import SCHEMA, RawEntry, Rows, from_audit, from_events, from_updates
from clickhouse.segments import Shelf
from clickhouse.spill import JOB, SpilledLog, spill_sources
from clickhouse.tables import TABLES, Block, Table
from core import epochs, keys, logs
from core.errors import Fenced, Retry
from core.metrics import ARCHIVE_INSERT, ARCHIVE_ROWS, DEAD, LOOP_ERRORS
from core.position import ZERO, EntryId, parse_entry_id
from core.redis_client import Argument, Redis, Scripts, call, lua

INSERT_TIMEOUT_S = 60.0
"""Bound of one attempt, here and in ClickHouse, so that none is still running when it is long forgotten; the next one
carries the same token, so giving up early is safe."""

BATCHES_SAFE = DEDUPLICATION_WINDOW // 4
"""Batches of all shards after which a table may have forgotten a token: it remembers blocks, and a batch makes one per
partition. Partitions are months of the server's clock, so four of them are more than a batch has."""

DEAD_KEPT = 100_000
"""Dead letters kept per shard."""

_DEAD_WORDS_MAX = 20
"""Fields and values of a dead letter: an entry of ours has four, of anything else the first ones tell enough."""

INSERT_SETTINGS: Mapping[str, str | int] = {
    "async_insert": 0,  # on by default since 26.3, and it would answer for a buffer shared with others
    "deduplicate_insert": "enable",  # the following three are defaults on new servers, not on older ones
    "insert_deduplicate": 1,
    "deduplicate_blocks_in_dependent_materialized_views": 1,
}

_SCRIPTS = ("archive_plan", "archive_commit")


class Plan(Struct, frozen=True):
    """What is being inserted: everything a redo needs to make the same blocks under the same tokens."""

    after: str
    first: str
    last: str
    count: int
    crc: int
    epoch: int
    schema: int
    batches: int
    """Batches of this log in all shards when it was made; never more than the truth."""
    only_missing: bool = False
    """Look which rows are there instead of trusting tokens."""

    def token(self, shard: int, log: Log, table: str) -> str:
        """Deduplication token of one table's insert; never the same for other entries."""
        return f"{table}:{log}:{shard}:{self.epoch}:{self.first}:{self.last}:{self.count}:{self.crc:08x}:{self.schema}"


class Batch(Struct, frozen=True):
    """Entries to archive together, and what became of them. `is_full`: more were waiting."""

    entries: list[RawEntry]
    crc: int
    epoch: int
    rows: Rows
    is_full: bool

    @property
    def first(self) -> EntryId:
        """Id of the first entry."""
        return entry_id(self.entries[0])

    @property
    def last(self) -> EntryId:
        """Id of the last entry."""
        return entry_id(self.entries[-1])


def writer_sources() -> dict[str, str]:
    """The scripts that `Writer` needs, for the process's `Scripts`."""
    return {name: lua("clickhouse", name) for name in _SCRIPTS} | spill_sources() | rebuild_sources()


class Writer:
    """Archives one log of one shard for one ownership. Call `take_over` first, and again after every failure.

    Any method raises Retry (take over again after a while), Fenced (another owner took over) or Stuck.
    """

    def __init__(
        self,
        client: Redis,
        scripts: Scripts,
        clickhouse: ClickHouse,
        shards: int,
        shard: int,
        log: Log,
        token: int,
        shelf: Shelf | None = None,
    ) -> None:
        self._client = client
        self._scripts = scripts
        self._clickhouse = clickhouse
        self._shards = shards
        self._shard = shard
        self._log: Log = log
        self._token = token
        self._key = keys.archive(shard, log)
        self._stream = stream_key(shard, log)
        self._spilled = SpilledLog(client, scripts, shelf, shard, log, token)
        self._rebuilds = Rebuilds(client, scripts, clickhouse, shard, log, token)
        self._mender = Mender(client, clickhouse, self._rebuilds, shard, log)
        self._epoch = 0
        self._careful_until = ZERO
        self._logger = logs.get().bind(job=JOB, shard=shard, log=log, fence=token)
        self.committed = ZERO
        """Last entry archived."""

    @property
    def stream(self) -> str:
        """Key of the log's stream."""
        return self._stream

    @property
    def state_key(self) -> str:
        """Key of the hash with position and plan."""
        return self._key

    @property
    def log(self) -> Log:
        """Which log."""
        return self._log

    @property
    def spilled(self) -> SpilledLog:
        """The log itself, part of which may be in segment files."""
        return self._spilled

    # -- taking over

    async def take_over(self) -> None:
        """Learn the position, finish the plan in flight, and look for rows beyond the position."""
        await self._scripts.ensure()
        state = await call(self._client.hgetall(self._key))
        self.committed = parse_entry_id(state.get(b"committed", b"0-0"))
        self._epoch = (await epochs.load(self._client, self._shard)).current
        await self._spilled.load(self.committed)
        await self._clickhouse.query("SELECT 1", timeout_s=5.0)  # while it is away, nothing below is worth its cost
        if b"rebuild" in state:
            await self._rebuilds.settle(int(state[b"rebuild"]))
        if b"inflight" in state:
            await self._redo(state[b"inflight"])
        newest = await repair.newest_position(self._clickhouse, TABLES[self._log], self._shard, self.committed)
        self._careful_until = newest or ZERO
        if newest is not None:
            self._logger.warning("rows beyond the committed position", committed=str(self.committed), rows=str(newest))

    async def _redo(self, text: bytes) -> None:
        plan = msgspec.json.decode(text, type=Plan)
        self._logger.warning("redoing the plan in flight", first=plan.first, last=plan.last, count=plan.count)
        batch = await self._rebuild(plan)
        behind = await self._batches() - plan.batches
        if plan.only_missing or behind >= BATCHES_SAFE:
            await self._insert_missing(plan, batch)
        else:
            await self._insert_all(plan, batch)
            await self._verify(plan, batch)
        await self._commit(plan, text, batch)

    async def _rebuild(self, plan: Plan) -> Batch:
        """The batch of a plan, from the log. Raises Stuck when it is not there as it was."""
        if plan.schema != SCHEMA:
            raise Stuck(f"the plan in flight is of schema {plan.schema}: let the version that made it finish it")
        limits = Limits(plan.count + 1, 2**62)
        last = parse_entry_id(plan.last)
        entries, _ = await self._spilled.entries(parse_entry_id(plan.after), limits, last)
        crc = await asyncio.to_thread(checksum, entries)
        if len(entries) != plan.count or crc != plan.crc:
            raise Stuck(
                f"the plan in flight, {plan.first} to {plan.last}, had {plan.count} entries with CRC {plan.crc:08x}; "
                f"the log has {len(entries)} with {crc:08x}"
            )
        return Batch(entries, crc, plan.epoch, await self._rows(plan.epoch, entries), is_full=True)

    async def _verify(self, plan: Plan, batch: Batch) -> None:
        """After a redo every row must be there, once."""
        for table in TABLES[self._log]:
            rows = table.rows(batch.rows.tables.get(table.name, []))
            missing = await repair.missing_rows(self._clickhouse, table, self._shard, _range(plan), rows)
            repeated = await repair.repeated_rows(self._clickhouse, table, self._shard, _range(plan))
            if missing or repeated:
                raise Stuck(
                    f"after a redo of {plan.first} to {plan.last}, {len(rows)} rows, {table.name} lacks {len(missing)} "
                    f"and repeats {repeated}"
                )

    # -- going on

    async def read(self, limits: Limits, after: EntryId | None = None) -> Batch | None:
        """The next batch, None when there is nothing. It lies within one epoch.

        `after` is the last entry of the batch being written, so that one can be read meanwhile; batches must be written
        in the order in which they were read.
        """
        entries, is_full = await self._spilled.entries(self.committed if after is None else after, limits)
        if not entries:
            return None
        # Loaded after reading: an entry of a new epoch is only ever appended after the epoch was recorded.
        table = await epochs.load(self._client, self._shard)
        epoch = table.of(entry_id(entries[0]))
        if self._log != "updates" and table.of(entry_id(entries[-1])) != epoch:
            entries = [entry for entry in entries if table.of(entry_id(entry)) == epoch]
            is_full = True
        rows = await self._rows(epoch, entries)
        if rows.used < len(entries):
            entries, is_full = entries[: rows.used], True
        return Batch(entries, await asyncio.to_thread(checksum, entries), epoch, rows, is_full)

    async def mend(self) -> bool:
        """Compute some of the aggregates anew that somebody asked for (`mending`); whether there were any. Between two
        batches, like `read`."""
        return await self._mender.mend()

    async def write(self, batch: Batch) -> None:
        """Plan, insert, commit."""
        plan = Plan(
            str(self.committed), str(batch.first), str(batch.last), len(batch.entries), batch.crc, batch.epoch, SCHEMA,
            await self._batches(), only_missing=batch.first <= self._careful_until,
        )  # fmt: skip
        text = await self._plan(plan)
        if plan.only_missing:
            await self._insert_missing(plan, batch)
        else:
            await self._insert_all(plan, batch)
        await self._commit(plan, text, batch)

    # -- the steps

    async def _plan(self, plan: Plan) -> bytes:
        text = msgspec.json.encode(plan)
        names = [self._key, keys.fence(self._shard, JOB), keys.epochs(self._shard)]
        await self._run("archive_plan", names, [self._token, self._epoch, plan.after, text])
        return text

    async def _insert_all(self, plan: Plan, batch: Batch) -> None:
        for table in TABLES[self._log]:
            block = batch.rows.tables.get(table.name)
            if block is not None:
                await self._insert(table, block, plan.token(self._shard, self._log, table.name))

    async def _insert_missing(self, plan: Plan, batch: Batch) -> None:
        await self._rebuilds.inserts_ended()
        attempt = await self._rebuilds.begin()
        for table in TABLES[self._log]:
            rows = table.rows(batch.rows.tables.get(table.name, []))
            if not rows:
                continue
            missing = await repair.missing_rows(self._clickhouse, table, self._shard, _range(plan), rows)
            if missing:
                token = plan.token(self._shard, self._log, table.name)
                await self._insert(table, missing, f"{token}:missing:{len(missing)}:{missing[0][2:4]}")
            await repair.rebuild_aggregates(self._clickhouse, table, self._shard, rows, attempt)
            if missing:
                LOOP_ERRORS.labels("archive_repair").inc()
            # Nothing missing is what a restore or a commit that Redis lost looks like: the rows were there.
            self._logger.log(
                logging.ERROR if missing else logging.INFO, "archived by looking", table=table.name, first=plan.first,
                last=plan.last, rows=len(rows), missing=len(missing),
            )  # fmt: skip
        await self._rebuilds.end(attempt)

    async def _insert(self, table: Table, block: Block, token: str) -> None:
        body = await asyncio.to_thread(table.encode, block)
        await self._check_fence()
        started = time.monotonic()
        settings = {
            **INSERT_SETTINGS,
            "insert_deduplication_token": token,
            "max_execution_time": int(INSERT_TIMEOUT_S),
        }
        await self._clickhouse.insert(table.name, table.columns, body, settings, timeout_s=INSERT_TIMEOUT_S)
        ARCHIVE_INSERT.observe(time.monotonic() - started)

    async def _commit(self, plan: Plan, text: bytes, batch: Batch) -> None:
        names = [
            self._key, keys.fence(self._shard, JOB), self._stream, keys.dead(self._shard),
            keys.segments(self._shard, self._log),
        ]  # fmt: skip
        passed = self._spilled.passed(batch.last)
        args: list[Argument] = [
            self._token, text, plan.last, plan.count, keys.ARCHIVE_GROUP, DEAD_KEPT, passed, *_dead_letters(batch)
        ]  # fmt: skip
        await self._run("archive_commit", names, args)
        self.committed = batch.last
        await self._spilled.drop(passed)
        for name, block in batch.rows.tables.items():
            ARCHIVE_ROWS.labels(name).inc(len(block))
        if batch.rows.dead:
            DEAD.labels(keys.ARCHIVE_GROUP).inc(len(batch.rows.dead))
            self._logger.error("dead letters", count=len(batch.rows.dead), up_to=plan.last)

    # -- helpers

    async def _rows(self, epoch: int, entries: list[RawEntry]) -> Rows:
        if self._log == "events":
            return await asyncio.to_thread(from_events, self._shard, epoch, entries)
        if self._log == "audit":
            return await asyncio.to_thread(from_audit, self._shard, epoch, entries)
        return await asyncio.to_thread(from_updates, self._shard, entries)

    async def _batches(self) -> int:
        pipe = self._client.pipeline(transaction=False)
        for shard in range(self._shards):
            pipe.hget(keys.archive(shard, self._log), "batches")
        return sum(int(count or 0) for count in await call(pipe.execute()))

    async def _check_fence(self) -> None:
        """An owner that was paused since its last script must not insert: its token may be forgotten by now."""
        newest = await call(self._client.get(keys.fence(self._shard, JOB)))
        if newest != str(self._token).encode():
            raise Fenced(f"token {self._token} is not the newest")

    async def _run(self, name: str, names: list[str], args: list[Argument]) -> None:
        try:
            await self._scripts.run(name, names, args)
        except ResponseError as error:
            raise Retry(f"{name}: {error}") from error


def _dead_letters(batch: Batch) -> list[Argument]:
    """What the script needs of each: id, reason, number of words, words. Their bytes are bounded as the batch's are."""
    if not batch.rows.dead:
        return []
    fields = dict(batch.entries)
    args: list[Argument] = []
    for raw_id, reason in batch.rows.dead:
        words = [word for pair in fields[raw_id].items() for word in pair][:_DEAD_WORDS_MAX]
        args.extend([raw_id, reason, len(words), *words])
    return args


def _range(plan: Plan) -> repair.Range:
    return repair.Range(plan.epoch, parse_entry_id(plan.after), parse_entry_id(plan.last))
