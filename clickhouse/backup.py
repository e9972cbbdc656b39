"""`arenacast backup`: Redis as of one moment, then ClickHouse, into one directory that is a backup only when complete.

Redis comes first. Whatever its copy calls archived was in ClickHouse before ClickHouse's copy began, so nothing can be
missing from it; what ClickHouse has beyond that moment is cut off at a restore (`restore`). The other way round a
position would be ahead of the rows it stands for. Segment files come between the two: what Redis' copy lists is there,
archived meanwhile or not, because none is deleted until they are copied. Nothing is stopped meanwhile.
"""

import asyncio
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from clickhouse.analysts import analysts_database
from clickhouse.client import ClickHouse, parse_target
from clickhouse.segments import RETIRED, SUFFIX, held
from core import keys, manifest, redis_client
from core.errors import Fatal
from core.manifest import Manifest
from core.rdb_copy import copy_rdb
from core.redis_client import Redis, call, lua
from core.settings import Settings

TIMEOUT_S = 24 * 3600.0


def run(settings: Settings, to: Path | None, *, is_incremental: bool) -> None:
    """Make a backup in `to` (default: the backups directory) and print its path. Raises Fatal or Retry; then nothing
    of it is left."""
    directory = (to or settings.backups_dir).absolute()
    made = asyncio.run(_run(settings, directory, is_incremental=is_incremental))
    size = sum(file.bytes for file in made.files)
    kind = f"on top of {made.base}" if made.base else "full"
    print(f"{directory / made.name}: {kind}, {len(made.files)} files, {size / 1e6:.1f} MB")
    if not made.has_clickhouse_files:
        print(f"ClickHouse's part is on its server: Disk('backups', '{made.name}/{manifest.CLICKHOUSE}')")
    print(f"not in it, to be kept elsewhere: {', '.join(made.to_keep)}")
    for old in _expire(directory, settings, made.created_ms):
        print(f"{old}: expired and removed")


async def _run(settings: Settings, directory: Path, *, is_incremental: bool) -> Manifest:
    created_ms = time.time_ns() // 1_000_000
    name = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(created_ms / 1000))
    partial = directory / f".{name}.partial"
    client = redis_client.connect(settings)
    clickhouse = ClickHouse(settings.clickhouse_target, timeout_s=TIMEOUT_S)
    try:
        log_id, shards = await _identity(client)
        base = _base(directory, log_id) if is_incremental else None
        _make(partial, directory / name)
        with held(settings.spill_path):
            await _copy_redis(client, settings, partial, shards)
            await asyncio.to_thread(_copy_segments, settings.spill_path, log_id, partial / manifest.SPILL)
        databases = await _copy_clickhouse(clickhouse, settings, name, partial, base)
        has_files = (partial / manifest.CLICKHOUSE / ".backup").exists()
        if not has_files and not settings.clickhouse_url:
            raise Fatal("ClickHouse says that it made a backup, but it is not where it should be")
        files = await asyncio.to_thread(manifest.describe_files, partial)
        made = Manifest(
            manifest.FORMAT, name, created_ms, _version(), log_id, shards, base[1].name if base else "", databases,
            has_files, settings.public(), list(manifest.TO_KEEP), files,
        )  # fmt: skip
        manifest.write(partial, made)
        partial.rename(directory / name)
        manifest.flush_directory(directory)
        return made
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        await clickhouse.close()
        await client.aclose()


def _make(partial: Path, final: Path) -> None:
    if final.exists():
        raise Fatal(f"{final} is there already")
    partial.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial.mkdir(mode=0o700)


async def _identity(client: Redis) -> tuple[str, int]:
    found = await call(client.hmget(keys.LOG, "id", "shards"))
    if None in found:
        raise Fatal("Redis holds no log: there is nothing to back up")
    return found[0].decode(), int(found[1])


def _base(directory: Path, log_id: str) -> tuple[Path, Manifest]:
    """The newest backup to build upon. Raises Fatal when there is none."""
    for path, one in reversed(manifest.complete_backups(directory)):
        if one.log_id == log_id and one.has_clickhouse_files:
            manifest.chain(path)
            return path, one
    raise Fatal(f"{directory} holds no backup of this log to build upon: make a full one first")


async def _copy_redis(client: Redis, settings: Settings, partial: Path, shards: int) -> None:
    before = await _incarnation(client)
    await asyncio.to_thread(copy_rdb, settings.redis_target, partial / manifest.RDB)
    for shard in range(shards):
        await call(client.eval(lua("core", "keep_epoch"), 1, keys.epochs(shard), before.partition(":")[0], before))


def _copy_segments(spill: Path, log_id: str, to: Path) -> None:
    """What of the log lies on disk. Segments archived since Redis was copied are still there, retired (`held`), and may
    be listed in the copy: they get their name back at a restore."""
    found = [path for path in (spill / log_id).glob("*.seg*") if path.suffix in (SUFFIX, RETIRED)]
    if not found:
        return
    (to / log_id).mkdir(mode=0o700, parents=True)
    shutil.copyfile(spill / "store.id", to / "store.id")
    for path in found:
        with suppress(FileNotFoundError):  # retired since it was found, or its minutes were over before we came
            shutil.copyfile(path, to / log_id / path.name)
    for path in (spill / log_id).glob(f"*{SUFFIX}{RETIRED}"):
        if not (to / log_id / path.name).exists() and not (to / log_id / path.stem).exists():
            shutil.copyfile(path, to / log_id / path.name)


async def _incarnation(client: Redis) -> str:
    server, replication = await call(client.info("server")), await call(client.info("replication"))
    return f"{server['run_id']}:{replication['master_replid']}"


async def _copy_clickhouse(
    clickhouse: ClickHouse, settings: Settings, name: str, partial: Path, base: tuple[Path, Manifest] | None
) -> list[str]:
    database = parse_target(settings.clickhouse_target).database
    rows = await clickhouse.query(
        "SELECT name FROM system.databases WHERE name IN {names:Array(String)} ORDER BY name != {main:String}",
        {"names": [database, analysts_database(database)], "main": database},
    )
    databases = [str(row[0]) for row in rows]
    if database not in databases:
        raise Fatal(f"ClickHouse has no database {database}: run `arenacast migrate` first")
    links = {name: partial}
    if base is not None:
        links |= {path.name: path for path, _ in manifest.chain(base[0])}
    sql = f"BACKUP {', '.join(f'DATABASE `{one}`' for one in databases)} TO {disk(name)}"
    if base is not None:
        sql += f" SETTINGS base_backup = {disk(base[1].name)}"
    if settings.clickhouse_url:
        await clickhouse.command(sql, timeout_s=TIMEOUT_S)
    else:
        with linked(settings.backups_dir, links):
            await clickhouse.command(sql, timeout_s=TIMEOUT_S)
    return databases


def disk(name: str) -> str:
    """A backup's ClickHouse part as SQL."""
    return f"Disk('backups', '{name}/{manifest.CLICKHOUSE}')"


@contextmanager
def linked(root: Path, places: dict[str, Path]) -> Iterator[None]:
    """Backups under their names in the one directory that the embedded ClickHouse may use, wherever they are."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = []
    try:
        for name, place in places.items():
            link = root / name
            if link.is_symlink():
                link.unlink()  # left by a backup that was killed
            if not link.exists():
                link.symlink_to(place.absolute(), target_is_directory=True)
                made.append(link)
        yield
    finally:
        for link in made:
            link.unlink(missing_ok=True)


def _expire(directory: Path, settings: Settings, now_ms: int) -> list[Path]:
    """Remove the backups older than the retention, except those that younger ones build upon."""
    limit_ms = now_ms - int(settings.backup_retention_days * 86_400_000)
    old = manifest.expired(manifest.complete_backups(directory), limit_ms)
    for path in old:
        (path / manifest.MANIFEST).unlink()  # half removed is no backup
        shutil.rmtree(path)
    return old


def _version() -> str:
    try:
        return version("arenacast")
    except PackageNotFoundError:
        return "unknown"
