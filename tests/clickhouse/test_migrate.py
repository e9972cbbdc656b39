"""The schema goes up only, says what it does, and gives every table what exactness needs."""

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest

from clickhouse import migrate as module
from clickhouse.aggregates import AGGREGATES
from clickhouse.analysts import analysts_database
from clickhouse.client import ClickHouse
from clickhouse.migrate import Layout, Migration, migrate, pending, read_migrations
from clickhouse.tables import TABLES
from core.errors import Fatal
from core.settings import Settings

pytestmark = pytest.mark.clickhouse

POSITION = "shard stream_epoch stream_ms stream_seq"
CONTRACT = {
    "votes": f"{POSITION} poll_id option_id voter_hash event_hash vote_hash weight source ts received_at",
    "match_events": f"{POSITION} event_id match_id map_id round_no type revision source ts received_at payload",
    "predictions": f"{POSITION} match_id map_id round_no p_team1 model ts",
    "votes_per_minute": "poll_id option_id source minute votes voters",
    "round_metrics": "match_id map_id round_no winner score_team1 score_team2",
    "map_metrics": "match_id map_id winner score_team1 score_team2",
}


@pytest.fixture
def target(database_url: str, tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, clickhouse_url=database_url)


@pytest.fixture
async def server(database_url: str):  # type: ignore[no-untyped-def]
    client = ClickHouse(database_url, database="")
    yield client
    database = urlsplit(database_url).path[1:]
    for name in (analysts_database(database), database):
        await client.command("DROP DATABASE IF EXISTS {name:Identifier}", {"name": name})
    await client.close()


async def tables(server: ClickHouse, target: Settings) -> set[str]:
    rows = await server.query(
        "SELECT name FROM system.tables WHERE database = {name:String}",
        {"name": urlsplit(target.clickhouse_url).path[1:]},
    )
    return {row[0] for row in rows}


async def databases(server: ClickHouse) -> set[str]:
    return {row[0] for row in await server.query("SHOW DATABASES")}


async def test_dry_run_prints_the_plan_and_changes_nothing(
    target: Settings, server: ClickHouse, capsys: pytest.CaptureFixture[str]
) -> None:
    before = await databases(server)
    await migrate(target, dry_run=True)
    assert await databases(server) == before
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(read_migrations())
    assert lines[1] == "0001_votes: 5 statements to apply"


async def test_a_second_run_does_nothing(
    target: Settings, server: ClickHouse, capsys: pytest.CaptureFixture[str]
) -> None:
    await migrate(target)
    first = await tables(server, target)
    capsys.readouterr()
    await migrate(target)
    assert await tables(server, target) == first
    assert re.fullmatch(r"database test_\w+: \d+ applied, 0 to apply\n", capsys.readouterr().out)


async def test_an_edited_migration_is_refused(target: Settings, server: ClickHouse) -> None:
    await migrate(target)
    known = read_migrations()
    known[1] = msgspec.structs.replace(known[1], text=known[1].text + "\n-- harmless?\n")
    with pytest.raises(Fatal, match="edited since: 0002_match_events"):
        await migrate(target, known=known)


async def test_a_database_of_a_newer_version_is_refused(target: Settings, server: ClickHouse) -> None:
    await migrate(target)
    with pytest.raises(Fatal, match="refuses to run backwards"):
        await migrate(target, known=read_migrations()[:-1])


async def test_a_migration_interrupted_half_way_is_run_again(target: Settings, server: ClickHouse) -> None:
    first = "CREATE TABLE IF NOT EXISTS one (x UInt8) ENGINE = MergeTree ORDER BY x;\n"
    broken = Migration(1, "two_tables", first + "CREATE TABLE IF NOT EXISTS two (x Nonsense) ENGINE = Memory;\n")
    with pytest.raises(Fatal, match="0001_two_tables, statement 2: ClickHouse: error 50 UNKNOWN_TYPE"):
        await migrate(target, known=[broken])
    assert "two" not in await tables(server, target)
    mended = Migration(1, "two_tables", broken.text.replace("Nonsense", "UInt8"))
    await migrate(target, known=[mended])
    assert {"one", "two", "schema_migrations"} == await tables(server, target)


def test_migrations_are_numbered_once_and_repeatable() -> None:
    known = read_migrations()
    numbers = [item.number for item in known]
    assert len(set(numbers)) == len(numbers)
    for migration in known:
        for statement in migration.statements(Layout.of("")):
            is_new = re.match(
                r"CREATE ((DATABASE|TABLE|VIEW|MATERIALIZED VIEW) IF NOT EXISTS|OR REPLACE VIEW)", statement
            )
            adds = re.findall(r"ADD COLUMN( IF NOT EXISTS)?", statement)
            assert is_new or (statement.startswith("ALTER TABLE") and adds and all(adds)), statement


def test_pending_is_what_was_not_applied() -> None:
    known = [Migration(1, "a", "x"), Migration(2, "b", "y")]
    assert pending(known, {}) == known
    assert pending(known, {1: known[0].checksum}) == known[1:]


def test_numbers_may_have_gaps_that_are_filled_later() -> None:
    known = [Migration(1, "a", "x"), Migration(5, "b", "y"), Migration(30, "c", "z")]
    assert pending(known, {1: known[0].checksum, 30: known[2].checksum}) == [known[1]]
    with pytest.raises(Fatal, match="has migration 5, which this version, at 30, does not know"):
        pending([known[0], known[2]], {1: known[0].checksum, 5: known[1].checksum})


def test_no_clickhouse_ends_with_one_line(target: Settings, free_port: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_S", 0.2)
    nowhere = msgspec.structs.replace(target, clickhouse_url=f"http://127.0.0.1:{free_port()}/x")  # type: ignore[operator]
    with pytest.raises(Fatal, match=r"no ClickHouse within 0.2 s"):
        module.main(nowhere, dry_run=False)


async def test_every_contract_name_has_its_columns(clickhouse: ClickHouse) -> None:
    for name, columns in CONTRACT.items():
        found = {row[0] for row in await clickhouse.query(f"DESCRIBE TABLE {name}")}
        assert set(columns.split()) <= found, name


async def test_the_writer_knows_every_column_of_the_raw_tables(clickhouse: ClickHouse) -> None:
    """In their order, but for what ClickHouse itself fills in."""
    for table in (table for group in TABLES.values() for table in group):
        found = [row[0] for row in await clickhouse.query(f"DESCRIBE TABLE {table.name}") if "now64" not in row[3]]
        assert found == table.columns


async def test_every_table_that_receives_rows_deduplicates_and_is_flushed(clickhouse: ClickHouse) -> None:
    """Targets of views included: without a window of its own a target counts a retry twice."""
    rows = await clickhouse.query(
        "SELECT name, create_table_query FROM system.tables "
        "WHERE database = currentDatabase() AND engine LIKE '%MergeTree' AND name != 'schema_migrations'"
    )
    assert {table.name for group in TABLES.values() for table in group} < {name for name, _ in rows}
    assert {aggregate.target for aggregate in AGGREGATES} < {name for name, _ in rows}
    for name, sql in rows:
        assert "non_replicated_deduplication_window = 10000" in sql, name
        assert "fsync_after_insert = 1" in sql, name
        assert "fsync_part_directory = 1" in sql, name


async def test_the_replicated_layout_is_valid_sql(clickhouse: ClickHouse) -> None:
    layout = Layout.of("arena")
    for migration in read_migrations():
        for statement in migration.statements(layout):
            rows = await clickhouse.query(f"EXPLAIN AST {statement}")
            assert rows
            assert "ON CLUSTER `arena`" in statement
            if "ENGINE" in statement:
                assert re.search(r"ENGINE = Replicated(|Aggregating|Replacing)MergeTree", statement)
                assert "replicated_deduplication_window_seconds = 604800" in statement


def test_a_cluster_name_cannot_carry_sql() -> None:
    with pytest.raises(Fatal, match="CLICKHOUSE_CLUSTER"):
        Layout.of("x` ENGINE")


def test_the_package_does_not_hide_the_client_library() -> None:
    code = "import clickhouse, clickhouse_connect; print(clickhouse.__file__)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert found.stdout.strip().endswith("clickhouse/__init__.py")
