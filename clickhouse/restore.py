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
from pathlib import Path

from clickhouse import comparison, erasing, repair
from clickhouse.aggregates import Aggregate, Scope
from clickhouse.backup import TIMEOUT_S, disk, linked
from clickhouse.client import ClickHouse, parse_target
from clickhouse.rebuilding import ALONE
from clickhouse.tables import RATINGS, TABLES
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
        cut = await _cut(client, clickhouse, made) + await cut_ratings(clickhouse)
        print(f"{cut} rows beyond the restored log cut off")
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


async def _cut(client: Redis, clickhouse: ClickHouse, made: Manifest) -> int:
    """Delete what lies beyond the log's end, shard by shard; the number of rows."""
    total = 0
    for shard, log in itertools.product(range(made.shards), TABLES):
        # What is derived has the ids of what it was derived from.
        end = await log_end(client, keys.audit(shard) if log == "audit" else keys.events(shard))
        parameters = {"shard": shard, "ms": end.ms, "seq": end.seq}
        for table in TABLES[log]:
            beyond = "shard = {shard:UInt8} AND (stream_ms, stream_seq) > ({ms:UInt64}, {seq:UInt64})"
            rows = await clickhouse.query(f"SELECT count() FROM {table.name} WHERE {beyond}", parameters)  # noqa: S608
            if count := int(rows[0][0]):
                total += count
                await clickhouse.command(
                    f"DELETE FROM {table.name} WHERE {beyond}",  # noqa: S608 - our own tables
                    parameters,
                    settings={"lightweight_deletes_sync": 2},
                    timeout_s=TIMEOUT_S,
                )
    return total


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
        await clickhouse.command(
            f"DELETE FROM ratings WHERE {beyond}",  # noqa: S608 - our own text
            parameters,
            settings={"lightweight_deletes_sync": 2},
            timeout_s=TIMEOUT_S,
        )
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
