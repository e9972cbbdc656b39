"""Whoever has the password of `default` may do everything with the data and nothing with the machine."""

import json
import secrets
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clickhouse_server import ClickHouseServer

pytestmark = pytest.mark.clickhouse

DICTIONARY = "CREATE DICTIONARY evil (a UInt64) PRIMARY KEY a SOURCE(%s) LAYOUT(FLAT()) LIFETIME(0)"
READS_FILES = [
    "SELECT file('{path}')",
    "SELECT `file`('{path}')",
    "SELECT `\\x66ile`('{path}')",
    "WITH file AS f SELECT f('{path}')",
    "SELECT * FROM file('{path}', LineAsString)",
    "SELECT * FROM file('{path}', 'CSV', 'a String')",
    "SELECT * FROM `{path}`",
    "SELECT * FROM default.`{path}`",
    "SELECT * FROM filesystem('{directory}')",
    "SELECT * FROM url('file://{path}', LineAsString)",
    "SELECT * FROM loop(file('{path}', LineAsString))",
    "SELECT * FROM icebergLocal('{directory}')",
    "SELECT * FROM sqlite('{path}', 't')",
    "SELECT 1 AS a FORMAT Template SETTINGS format_template_row = '{path}'",
    "SELECT 1 AS a FORMAT Protobuf SETTINGS format_schema = '{path}:Message'",
    "SELECT * FROM eval('SELECT file(''{path}'')') SETTINGS allow_experimental_eval_table_function = 1",
    "INSERT INTO FUNCTION null('a String') FROM INFILE '{path}' FORMAT LineAsString",
    "SELECT * FROM python(engine)",
]
WRITES_FILES = [
    "SELECT 1 INTO OUTFILE '{new}'",
    "INSERT INTO FUNCTION file('{new}', 'TSV', 'a Int8') SELECT 1",
    "CREATE DATABASE evil ENGINE = SQLite('{new}')",
    "CREATE TABLE evil (k String) ENGINE = EmbeddedRocksDB(0, '{new}') PRIMARY KEY k",
    "CREATE TABLE evil (a Int8) ENGINE = File(TSV, '{new}')",
    "CREATE TABLE evil (a Int8) ENGINE = MergeTree ORDER BY a SETTINGS disk = disk(type = local, path = '{new}/')",
    "BACKUP DATABASE default TO File('{new}')",
    "BACKUP DATABASE default TO Disk('backups', '../../{name}')",
    "BACKUP DATABASE default TO Disk('default', '{name}')",
]
HARMS_THE_PROCESS = [
    "SYSTEM SHUTDOWN",
    "SYSTEM KILL",
    "SYSTEM SUSPEND FOR 1 SECOND",
    "SYSTEM START LISTEN HTTP",
    "SYSTEM START THREAD FUZZER",
    "SELECT * FROM odbc('DSN=x', 't')",
    "SELECT * FROM executable('id', TSV, 'a String')",
    "CREATE TABLE evil (a String) ENGINE = Executable('id', TSV)",
    DICTIONARY % "EXECUTABLE(command 'touch {new}' format 'TSV')",
    DICTIONARY % "CLICKHOUSE(QUERY 'SELECT file(''{path}'')')",
    "CREATE USER evil",
    "GRANT FILE ON *.* TO default",
    "EXECUTE AS default SELECT 1",
    "SELECT demangle('_Z1f') SETTINGS allow_introspection_functions = 1",
    "SET allow_experimental_prql_dialect = 1",
]


@pytest.fixture
def places(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A file with a secret, its directory, and a path where nothing may appear."""
    secret = tmp_path / "secret.csv"
    secret.write_text("the,secret\n")
    new = tmp_path / "new"
    yield {"path": str(secret), "directory": str(tmp_path), "new": str(new), "name": secrets.token_hex(8)}
    assert not new.exists()
    assert secret.read_text() == "the,secret\n"


def try_to(server: ClickHouseServer, sql: str) -> str:
    """The answer, whatever it is; a connection that breaks fails the test."""
    try:
        return server.query(sql)
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        assert text.startswith("Code: "), text
        return text


@pytest.mark.parametrize("sql", READS_FILES)
def test_files_of_the_machine_are_not_read(
    clickhouse_server: ClickHouseServer, places: dict[str, str], sql: str
) -> None:
    answer = try_to(clickhouse_server, sql.format(**places))
    assert answer.startswith("Code: ")
    assert "the,secret" not in answer


@pytest.mark.parametrize("sql", WRITES_FILES + HARMS_THE_PROCESS)
def test_machine_and_process_are_not_touched(
    clickhouse_server: ClickHouseServer, places: dict[str, str], sql: str
) -> None:
    pid = clickhouse_server.pid
    assert try_to(clickhouse_server, sql.format(**places)).startswith("Code: ")
    try_to(clickhouse_server, "SELECT * FROM evil")
    assert clickhouse_server.query("SELECT 1") == "1\n"
    assert clickhouse_server.pid == pid
    for backup in clickhouse_server.directory.parent.rglob(places["name"]):
        assert backup.is_relative_to(clickhouse_server.backups)


def test_what_a_database_is_for_is_allowed(clickhouse_server: ClickHouseServer) -> None:
    query, name = clickhouse_server.query, f"allowed_{secrets.token_hex(4)}"
    query(f"CREATE DATABASE {name}")
    for engine in ("MergeTree ORDER BY a", "ReplacingMergeTree ORDER BY a", "SummingMergeTree ORDER BY a", "Memory",
                   "Log", "Null", "AggregatingMergeTree ORDER BY a"):  # fmt: skip
        query(f"CREATE TABLE {name}.{engine.split()[0].lower()} (a UInt64) ENGINE = {engine}")
    query(f"INSERT INTO {name}.mergetree SELECT number FROM numbers(10)")
    query(f"CREATE VIEW {name}.v AS SELECT a FROM {name}.mergetree")
    query(f"CREATE MATERIALIZED VIEW {name}.m TO {name}.memory AS SELECT a FROM {name}.mergetree")
    query(f"CREATE FUNCTION {name} AS x -> x + 1")
    query(
        f"CREATE DICTIONARY {name}.d (a UInt64) PRIMARY KEY a SOURCE(CLICKHOUSE(TABLE 'mergetree' DB '{name}'))"
        " LAYOUT(HASHED()) LIFETIME(0)"
    )
    assert query(f"SELECT count(), {name}(1), dictHas('{name}.d', 3) FROM {name}.v") == "10\t2\t1\n"
    assert query(f"SELECT count() FROM remote('127.0.0.1', '{name}', 'mergetree')") == "10\n"
    query(f"DROP DATABASE {name}")
    query(f"DROP FUNCTION {name}")


def test_backup_and_restore_within_the_data_directory(clickhouse_server: ClickHouseServer) -> None:
    query, name = clickhouse_server.query, f"kept_{secrets.token_hex(4)}"
    query(f"CREATE DATABASE {name}")
    query(f"CREATE TABLE {name}.t (a UInt64) ENGINE = MergeTree ORDER BY a")
    query(f"INSERT INTO {name}.t SELECT number FROM numbers(1000)")
    assert "BACKUP_CREATED" in query(f"BACKUP DATABASE {name} TO Disk('backups', '{name}.tar.zst')")
    assert (clickhouse_server.backups / f"{name}.tar.zst").is_file()
    query(f"DROP DATABASE {name} SYNC")
    assert "RESTORED" in query(f"RESTORE DATABASE {name} FROM Disk('backups', '{name}.tar.zst')")
    assert query(f"SELECT count() FROM {name}.t") == "1000\n"
    query(f"DROP DATABASE {name}")


def test_a_bug_of_ours_is_told_without_its_trace(clickhouse_server: ClickHouseServer) -> None:
    for url in ("/?query=SELECT+1&session_timeout=x&session_id=a", "/?query=%ff%fe", "/?query=SELECT+'%c3'"):
        answer = try_to_get(clickhouse_server, url)
        assert "Traceback" not in answer
        assert "/clickhouse/" not in answer


def try_to_get(server: ClickHouseServer, path: str) -> str:
    import urllib.request

    request = urllib.request.Request(server.url + path, headers={"X-ClickHouse-Key": server.password})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(answer.read())
    except urllib.error.HTTPError as error:
        return str(error.read())


def test_memory_is_bounded_by_the_machine(clickhouse_server: ClickHouseServer) -> None:
    rows = clickhouse_server.query(
        "SELECT name, value FROM system.server_settings WHERE name IN "
        "('max_server_memory_usage_to_ram_ratio', 'mark_cache_size', 'background_pool_size') FORMAT JSONCompactEachRow"
    )
    assert dict(json.loads(row) for row in rows.splitlines()) == {
        "max_server_memory_usage_to_ram_ratio": "0.5", "mark_cache_size": "134217728", "background_pool_size": "2",
    }  # fmt: skip
