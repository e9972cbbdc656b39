"""The schema: numbered SQL files, applied in order, up only.

`migrations/NNNN_name.sql` holds statements, each ended by `;` at the end of a line, with the placeholders of `Layout`.
What was applied stands in `schema_migrations` with a checksum of the file, so an edited old file is refused, as is a
database that a newer version migrated. ClickHouse has no transactions for DDL: a migration interrupted half-way is run
again from its first statement, so every statement must be repeatable (`IF NOT EXISTS`).
"""

import asyncio
import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from importlib.resources import files

from msgspec import Struct

from clickhouse.analysts import analysts_database, ensure_key
from clickhouse.client import DATABASE, ClickHouse, parse_target
from core.errors import Fatal, Retry
from core.settings import Settings

WAIT_S = 60.0
"""How long to wait for ClickHouse: a container or an embedded engine with much data takes its time to start."""

DEDUPLICATION_WINDOW = 10_000
"""Blocks (partitions × inserts) whose tokens a table remembers; see `writer`. Its length costs nothing measurable."""

_STATEMENT_TIMEOUT_S = 300.0
_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql\Z")
_CLUSTER = re.compile(r"[A-Za-z0-9_.-]*\Z")


class Layout(Struct, frozen=True):
    """What differs between one server and a replicated cluster; fields are the placeholders of the SQL files."""

    on_cluster: str
    replicated: str
    deduplication: str
    analysts: str
    durability: str = "fsync_after_insert = 1, fsync_part_directory = 1"

    @classmethod
    def of(cls, cluster: str, database: str = DATABASE) -> "Layout":
        """Layout of a database for a cluster's name, "" for a single server."""
        if not _CLUSTER.match(cluster):
            raise Fatal("ARENACAST_CLICKHOUSE_CLUSTER may hold letters, digits, dot, dash and underscore")
        analysts = "`" + analysts_database(database).replace("\\", "\\\\").replace("`", "\\`") + "`"
        if not cluster:
            return cls("", "", f"non_replicated_deduplication_window = {DEDUPLICATION_WINDOW}", analysts)
        # The default of an hour would let the repeat of a writer that was down for longer through.
        window = f"replicated_deduplication_window = {DEDUPLICATION_WINDOW}"
        week = "replicated_deduplication_window_seconds = 604800"
        return cls(f"ON CLUSTER `{cluster}`", "Replicated", f"{window}, {week}", analysts)


class Migration(Struct, frozen=True):
    """One file. `checksum` is over its text, so that another layout is no edit."""

    number: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the file, hex."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def statements(self, layout: Layout) -> list[str]:
        """Its statements, ready to run."""
        sql = "\n".join(line for line in self.text.splitlines() if not line.startswith("--"))
        values = {name: getattr(layout, name) for name in Layout.__struct_fields__}
        return [part.strip().format(**values) for part in re.split(r";\s*(?:\n|\Z)", sql) if part.strip()]

    def __str__(self) -> str:
        return f"{self.number:04d}_{self.name}"


def read_migrations() -> list[Migration]:
    """The migrations of this version, by number."""
    found = []
    for file in files("clickhouse").joinpath("migrations").iterdir():
        match = _NAME.match(file.name)
        if match:
            found.append(Migration(int(match[1]), match[2], file.read_text()))
    return sorted(found, key=lambda migration: migration.number)


def pending(known: Sequence[Migration], applied: Mapping[int, str]) -> list[Migration]:
    """What is left to do, given number -> checksum of what was applied. Raises Fatal when that does not fit."""
    unknown = sorted(set(applied) - {item.number for item in known})
    if unknown:
        newest = known[-1].number if known else 0
        raise Fatal(
            f"the database has migration {unknown[-1]}, which this version, at {newest}, does not know: "
            "it refuses to run backwards"
        )
    edited = [str(item) for item in known if item.number in applied and applied[item.number] != item.checksum]
    if edited:
        raise Fatal(f"already applied and edited since: {', '.join(edited)}; add a new migration instead")
    return [item for item in known if item.number not in applied]


def main(settings: Settings, dry_run: bool, new_analyst_key: bool = False) -> None:
    """Bring the schema up to this version, one printed line per migration. `dry_run` prints the plan, changes nothing.

    `new_analyst_key` has the analysts' views show voters under other numbers than before.
    Raises Fatal when ClickHouse does not answer in time, refuses a statement, or was migrated otherwise.
    """
    asyncio.run(migrate(settings, dry_run=dry_run, new_analyst_key=new_analyst_key))


async def migrate(
    settings: Settings,
    *,
    dry_run: bool = False,
    new_analyst_key: bool = False,
    known: Sequence[Migration] | None = None,
) -> None:
    """`main` inside a running loop. `known` are the migrations to apply instead of this version's own."""
    url = settings.clickhouse_target
    database = parse_target(url).database
    layout = Layout.of(settings.clickhouse_cluster, database)
    server = ClickHouse(url, timeout_s=_STATEMENT_TIMEOUT_S, database="")
    inside = ClickHouse(url, timeout_s=_STATEMENT_TIMEOUT_S)
    try:
        await _wait(server)
        applied = await _applied(server, database)
        todo = pending(read_migrations() if known is None else known, applied)
        print(f"database {database}: {len(applied)} applied, {len(todo)} to apply")
        if not dry_run and todo:
            await _prepare(server, inside, database, layout)
        for migration in todo:
            statements = migration.statements(layout)
            if not dry_run:
                await _apply(inside, migration, statements)
            print(f"{migration}: {len(statements)} statements {'to apply' if dry_run else 'applied'}")
        if not dry_run and known is None:
            await _ensure_analysts(inside, layout, database)
            await ensure_key(inside, renew=new_analyst_key)
    except Retry as error:
        raise Fatal(str(error)) from error
    finally:
        await server.close()
        await inside.close()


async def _wait(server: ClickHouse) -> None:
    deadline = time.monotonic() + WAIT_S
    delay_s = 0.1
    is_said = False
    while True:
        try:
            await server.query("SELECT 1", timeout_s=5.0)
            return
        except Retry as error:
            if time.monotonic() > deadline:
                raise Fatal(f"no ClickHouse within {WAIT_S:g} s: {error}") from error
            if not is_said and delay_s > 0.5:
                print(f"waiting for ClickHouse, at most {WAIT_S:g} s: {error}", flush=True)
                is_said = True
        await asyncio.sleep(delay_s)
        delay_s = min(2.0, delay_s * 2)


async def _applied(server: ClickHouse, database: str) -> dict[int, str]:
    exists = await server.query(
        "SELECT 1 FROM system.tables WHERE database = {database:String} AND name = 'schema_migrations'",
        {"database": database},
    )
    if not exists:
        return {}
    rows = await server.query(
        "SELECT number, any(checksum) FROM {database:Identifier}.schema_migrations GROUP BY number",
        {"database": database},
    )
    return {int(number): str(checksum) for number, checksum in rows}


async def _prepare(server: ClickHouse, inside: ClickHouse, database: str, layout: Layout) -> None:
    await server.command(
        f"CREATE DATABASE IF NOT EXISTS {{database:Identifier}} {layout.on_cluster}", {"database": database}
    )
    await inside.command(
        f"""CREATE TABLE IF NOT EXISTS schema_migrations {layout.on_cluster}
            (number UInt32, name String, checksum String, applied_at DateTime64(3, 'UTC') DEFAULT now64(3))
            ENGINE = {layout.replicated}MergeTree ORDER BY number"""
    )


async def _ensure_analysts(inside: ClickHouse, layout: Layout, database: str) -> None:
    """Make the analysts' database again where it is missing: a restored backup may hold `database` alone."""
    name = analysts_database(database)
    if await inside.query("SELECT 1 FROM system.databases WHERE name = {name:String}", {"name": name}):
        return
    print(f"database {name}: missing, made again")
    for migration in read_migrations():
        await _run(inside, migration, [sql for sql in migration.statements(layout) if f" {layout.analysts}" in sql])


async def _apply(inside: ClickHouse, migration: Migration, statements: Sequence[str]) -> None:
    await _run(inside, migration, statements)
    await inside.command(
        "INSERT INTO schema_migrations (number, name, checksum) "
        "SELECT {number:UInt32}, {name:String}, {checksum:String}",
        {"number": migration.number, "name": migration.name, "checksum": migration.checksum},
        settings={"async_insert": 0},
    )


async def _run(inside: ClickHouse, migration: Migration, statements: Sequence[str]) -> None:
    for number, statement in enumerate(statements, 1):
        try:
            await inside.command(statement)
        except (Fatal, Retry) as error:
            raise Fatal(f"{migration}, statement {number}: {error}") from error
