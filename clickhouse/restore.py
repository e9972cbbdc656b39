"""The inner half of `arenacast restore`: a backup's data into the embedded servers of an empty data directory.

`core.local.restore` has put Redis' copy in place and started both servers; nothing else runs. What is left to do:

* ClickHouse's RESTORE.
* The copy of ClickHouse is younger than that of Redis. Rows beyond the end of the restored log are cut off: their
  entries are not in the log any more, hot state does not count them, and whoever sent them may send them again.
* Deduplication tokens are in no backup, so a plan in flight would store its rows again: it is forgotten. The archive
  then finds rows beyond its position and adds only what is missing (`writer`).
* ClickHouse copies its tables one after the other: aggregates that do not agree with raw are computed anew.
* Voters erased since the backup was made are erased again, before anybody can read them.
"""

import asyncio
import itertools
from collections.abc import Mapping
from pathlib import Path

from clickhouse import comparison, erasing, repair
from clickhouse.aggregates import AGGREGATES, Aggregate, Scope
from clickhouse.backup import TIMEOUT_S, disk, linked
from clickhouse.client import ClickHouse, parse_target
from clickhouse.rebuilding import ALONE
from clickhouse.tables import APPLIED_BATCHES, RATINGS, TABLES, Table
from core import erasures, keys, manifest, redis_client
from core.manifest import Manifest
from core.position import EntryId, parse_entry_id
from core.redis_client import Redis, call
from core.settings import Settings


def run(settings: Settings, source: Path) -> None:
    """Fill the running, empty servers from a backup that was verified. Raises Fatal or Retry."""
    asyncio.run(_run(settings, source.absolute()))


async def _run(settings: Settings, source: Path) -> None:
    chain = manifest.chain(source)
    made = chain[0][1]
    database = parse_target(settings.clickhouse_target).database
    client = redis_client.connect(settings)
    server = ClickHouse(settings.clickhouse_target, timeout_s=TIMEOUT_S, database="")
    clickhouse = ClickHouse(settings.clickhouse_target, timeout_s=TIMEOUT_S)
    try:
        with linked(settings.backups_dir, {path.name: path for path, _ in chain}):
            what = ", ".join(f"DATABASE `{name}`" for name in made.databases)
            await server.command(f"RESTORE {what} FROM {disk(made.name)}", timeout_s=TIMEOUT_S)
        assert database in made.databases
        await _forget_plans(client, made)
        rows = await cut(client, clickhouse, made.shards) + await cut_ratings(clickhouse)
        print(f"{rows} rows beyond the restored log cut off")
        erased = erasures.read([source.parent, settings.data_dir])
        if erased:
            done = await erasing.erase_everywhere(client, clickhouse, erased, settings.spill_path)
            print(f"{len(erased)} voters erased again: {done}")
        print(f"{await _mend(clickhouse)} polls or matches of aggregates computed anew")
    finally:
        await clickhouse.close()
        await server.close()
        await client.aclose()


async def _forget_plans(client: Redis, made: Manifest) -> None:
    for shard in range(made.shards):
        for log in TABLES:
            await call(client.hdel(keys.archive(shard, log), "inflight", "rebuild"))
        for job in ("state", "archive"):
            await call(client.delete(keys.lease(shard, job)))


async def cut(client: Redis, clickhouse: ClickHouse, shards: int) -> int:
    """Delete what lies beyond the log's end, shard by shard; the number of rows."""
    total = 0
    for shard, log in itertools.product(range(shards), TABLES):
        for table in TABLES[log]:
            end = await log_end(client, _ends_with(shard, log, table))
            total += await _cut_table(clickhouse, shard, table, end)
    return total


def _ends_with(shard: int, log: str, table: Table) -> str:
    """The stream at whose end the rows of a table end. What is derived has the ids of what it was derived from, and
    comes again from the same input. Batches do not: the inputs after the last one are applied in others."""
    if table is APPLIED_BATCHES:
        return keys.updates(shard)
    return keys.audit(shard) if log == "audit" else keys.events(shard)


async def _cut_table(clickhouse: ClickHouse, shard: int, table: Table, end: EntryId) -> int:
    """Delete a table's rows beyond a position, and what quantiles were made of them; the number of rows.

    Aggregates by poll and match are compared afterwards, which quantiles cannot be.
    """
    beyond = "shard = {shard:UInt8} AND (stream_ms, stream_seq) > ({ms:UInt64}, {seq:UInt64})"
    parameters = {"shard": shard, "ms": end.ms, "seq": end.seq}
    timed = [one for one in AGGREGATES if one.raw is table and one.time and not one.owner]
    oldest = "toUnixTimestamp64Milli(min(received_at))" if timed else "0"
    rows = await clickhouse.query(f"SELECT count(), {oldest} FROM {table.name} WHERE {beyond}", parameters)  # noqa: S608
    count, received_ms = (int(value) for value in rows[0])
    if count:
        await _delete(clickhouse, table.name, beyond, parameters)
        for aggregate in timed:
            await repair.rebuild(clickhouse, aggregate, aggregate.since(shard, received_ms), ALONE)
    return count


async def _delete(clickhouse: ClickHouse, table: str, condition: str, parameters: Mapping[str, int]) -> None:
    await clickhouse.command(
        f"DELETE FROM {table} WHERE {condition}",  # noqa: S608 - our own tables and text
        parameters,
        settings={"lightweight_deletes_sync": 2},
        timeout_s=TIMEOUT_S,
    )


async def cut_ratings(clickhouse: ClickHouse) -> int:
    """Delete ratings computed from maps that were cut off, which `arenacast elo` could not take back: the position of
    what it finds now is a lower one. The number of rows."""
    newest = (await clickhouse.query("SELECT max((stream_ms, stream_seq, stream_epoch, stream_k)) FROM map_states"))[0][
        0
    ]
    parameters = dict(zip(("ms", "seq", "epoch", "k"), newest, strict=True))
    beyond = """(stream_ms, stream_seq, stream_epoch, stream_k) >
                ({ms:UInt64}, {seq:UInt64}, {epoch:UInt64}, {k:UInt16})"""
    count = int((await clickhouse.query(f"SELECT count() FROM ratings WHERE {beyond}", parameters))[0][0])  # noqa: S608
    if count:
        await _delete(clickhouse, RATINGS.name, beyond, parameters)
        await repair.rebuild(
            clickhouse, Aggregate("elo_ratings_feed", "elo_ratings_store", RATINGS), Scope("1", "1"), ALONE
        )
    return count


async def log_end(client: Redis, stream: str) -> EntryId:
    """The newest id that a log ever had; 0-0 for one without entries."""
    if not await call(client.exists(stream)):
        return EntryId(0, 0)
    return parse_entry_id((await call(client.xinfo_stream(stream)))["last-generated-id"])


async def _mend(clickhouse: ClickHouse) -> int:
    count = 0
    for aggregate in await comparison.discover(clickhouse):
        found, _ = await comparison.mismatches(clickhouse, aggregate)
        await comparison.rebuild(clickhouse, aggregate, [one.id for one in found])
        count += len(found)
    return count
