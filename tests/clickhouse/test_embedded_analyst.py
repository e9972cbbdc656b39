"""The user `analyst` reads what its role may, within bounds that it cannot change, and nothing else."""

import secrets
import urllib.error
from collections.abc import Iterator

import pytest

from tests.support.clickhouse_server import ANALYST_PASSWORD, ClickHouseServer

pytestmark = pytest.mark.clickhouse

REFUSED = [
    "SELECT * FROM {raw}.t",
    "SELECT count() FROM {raw}.t",
    "SELECT * FROM merge('{raw}', '.*')",
    "SELECT * FROM merge(REGEXP('.*'), '^t$')",
    "SELECT * FROM loop({raw}.t) LIMIT 1",
    "SELECT * FROM mergeTreeIndex('{raw}', 't')",
    "SELECT * FROM mergeTreeProjection('{raw}', 't', 'p')",
    "SELECT * FROM view(SELECT * FROM {raw}.t)",
    "SELECT a FROM an.{view} WHERE a IN {raw}.t",
    "SELECT (SELECT any(secret) FROM {raw}.t)",
    "WITH x AS (SELECT * FROM {raw}.t) SELECT * FROM x",
    "SELECT * FROM remote('127.0.0.1', '{raw}', 't')",
    "SELECT * FROM url('http://127.0.0.1:1/', LineAsString)",
    "SELECT * FROM s3('http://127.0.0.1:1/bucket/key.csv')",
    "SELECT * FROM file('/etc/passwd', LineAsString)",
    "SELECT file('/etc/passwd')",
    "SELECT * FROM executable('id', TSV, 'a String')",
    "EXPLAIN SELECT * FROM {raw}.t",
    "DESCRIBE {raw}.t",
    "SHOW CREATE TABLE {raw}.t",
    "CHECK TABLE {raw}.t",
    "SET ROLE service",
    "SET ROLE DEFAULT",
    "SET profile = 'default'",
    "SET readonly = 0",
    "SET max_threads = 1",
    "USE {raw}",
    "KILL QUERY WHERE 1",
    "SYSTEM FLUSH LOGS",
    "INSERT INTO {raw}.t VALUES (2, '')",
    "INSERT INTO {raw}.t FORMAT TSV\n2\tx",
    "CREATE TABLE an.mine (a Int8) ENGINE = Memory",
    "CREATE TEMPORARY TABLE mine (a Int8)",
    "DROP VIEW an.{view}",
    "BACKUP DATABASE an TO Disk('backups', 'stolen')",
    "RESTORE DATABASE an FROM Disk('backups', 'stolen')",
    "EXECUTE AS default SELECT * FROM {raw}.t",
    "SELECT 1 SETTINGS readonly = 0",
    "SELECT 1 SETTINGS max_execution_time = 31",
    "SELECT 1 SETTINGS max_execution_time = 0",
    "SELECT 1 SETTINGS max_memory_usage = 0",
    "SELECT 1 SETTINGS max_result_rows = 0",
    "SELECT 1 SETTINGS profile = 'default', max_execution_time = 1000",
    "SELECT 1; SELECT 2",
]


@pytest.fixture
def names(clickhouse_server: ClickHouseServer) -> Iterator[dict[str, str]]:
    """A raw table, and a view of it that analysts may read."""
    mark = secrets.token_hex(4)
    found = {"raw": f"raw_{mark}", "view": f"view_{mark}"}
    query = clickhouse_server.query
    query("CREATE DATABASE IF NOT EXISTS an")
    query(f"CREATE DATABASE {found['raw']}")
    query(
        f"CREATE TABLE {found['raw']}.t (a UInt64, secret String, PROJECTION p (SELECT a, secret ORDER BY secret)) "
        "ENGINE = MergeTree ORDER BY a"
    )
    query(f"INSERT INTO {found['raw']}.t VALUES (1, 'swordfish')")
    query(
        f"CREATE VIEW an.{found['view']} DEFINER = CURRENT_USER SQL SECURITY DEFINER AS SELECT a FROM {found['raw']}.t"
    )
    yield found
    assert query(f"SELECT * FROM {found['raw']}.t") == "1\tswordfish\n", "nothing was changed"
    query(f"DROP VIEW an.{found['view']}")
    query(f"DROP DATABASE {found['raw']}")


def refusal(server: ClickHouseServer, sql: str, **parameters: str) -> str:
    with pytest.raises(urllib.error.HTTPError) as caught:
        server.query_as_analyst(sql, **parameters)
    text: str = caught.value.read().decode()
    assert caught.value.code >= 400
    assert "swordfish" not in text
    return text


def test_analyst_reads_the_views_of_an(clickhouse_server: ClickHouseServer, names: dict[str, str]) -> None:
    ask = clickhouse_server.query_as_analyst
    assert ask(f"SELECT * FROM an.{names['view']}") == "1\n"
    assert ask(f"SELECT count() FROM {names['view']}", database="an") == "1\n"
    assert ask(f"SELECT a FROM an.{names['view']} WHERE a = {{a:UInt8}}", param_a="1", max_threads="1") == "1\n"
    assert names["view"] in ask("SHOW TABLES FROM an")
    assert "a\tUInt64" in ask(f"DESCRIBE an.{names['view']}")
    assert ask("SHOW DATABASES").split() == ["an"]
    assert ask("SELECT max(number) FROM numbers(1000000)") == "999999\n"


@pytest.mark.parametrize("sql", REFUSED)
def test_analyst_cannot(clickhouse_server: ClickHouseServer, names: dict[str, str], sql: str) -> None:
    text = refusal(clickhouse_server, sql.format(**names))
    assert any(
        reason in text
        for reason in (
            "ACCESS_DENIED", "READONLY", "SETTING_CONSTRAINT_VIOLATION", "SYNTAX_ERROR",
            "CANNOT_EXTRACT_TABLE_STRUCTURE", "UNKNOWN_DATABASE", "UNKNOWN_TABLE", "UNSUPPORTED_METHOD",
        )
    ), text  # fmt: skip


@pytest.mark.parametrize(
    "parameters",
    [
        {"role": "service"},
        {"profile": "default", "max_execution_time": "1000"},
        {"readonly": "0"},
        {"max_result_rows": "0"},
    ],
)
def test_url_gives_an_analyst_no_more(
    clickhouse_server: ClickHouseServer, names: dict[str, str], parameters: dict[str, str]
) -> None:
    refusal(clickhouse_server, f"SELECT * FROM an.{names['view']}", **parameters)
    refusal(clickhouse_server, f"SELECT * FROM {names['raw']}.t", profile="default")


def test_analyst_sees_nobody_elses_statements(clickhouse_server: ClickHouseServer, names: dict[str, str]) -> None:
    assert clickhouse_server.query("SELECT count() > 0 FROM system.processes") == "1\n"
    for table in ("processes", "asynchronous_inserts", "query_cache", "errors", "backups"):
        assert clickhouse_server.query_as_analyst(f"SELECT count() FROM system.{table}") == "0\n"
    assert clickhouse_server.query_as_analyst("SHOW PROCESSLIST") == ""
    everything = clickhouse_server.query_as_analyst(
        "SELECT name FROM system.databases UNION ALL SELECT database FROM system.tables"
        " UNION ALL SELECT database FROM system.columns UNION ALL SELECT database FROM system.parts"
        " UNION ALL SELECT database FROM system.mutations UNION ALL SELECT word FROM system.completions"
    )
    assert names["raw"] not in everything


def test_bounds_hold_from_the_start_and_after_a_session_was_used(clickhouse_server: ClickHouseServer) -> None:
    bounds = "SELECT getSetting('max_execution_time'), getSetting('max_result_rows'), getSetting('readonly')"
    session = {"session_id": secrets.token_hex(8)}
    assert clickhouse_server.query_as_analyst(bounds) == "30\t1000000\t2\n"
    assert clickhouse_server.query_as_analyst(bounds, **session, max_execution_time="5") == "5\t1000000\t2\n"
    assert clickhouse_server.query_as_analyst(bounds, **session) == "30\t1000000\t2\n"
    assert "TOO_MANY_ROWS_OR_BYTES" in refusal(
        clickhouse_server, "SELECT number FROM numbers(2000000) FORMAT JSON", wait_end_of_query="1"
    )
    assert "MEMORY_LIMIT_EXCEEDED" in refusal(clickhouse_server, "SELECT groupArray(number) FROM numbers(1000000000)")
    # The service itself has no such bounds.
    assert clickhouse_server.query("SELECT getSetting('max_execution_time'), getSetting('readonly')") == "0\t0\n"


def test_session_of_an_analyst_is_not_that_of_the_service(clickhouse_server: ClickHouseServer) -> None:
    session = {"session_id": secrets.token_hex(8)}
    clickhouse_server.query("CREATE TEMPORARY TABLE mine (a Int8)", **session)
    refusal(clickhouse_server, "SELECT * FROM mine", **session)
    assert clickhouse_server.query("SELECT count() FROM mine", **session) == "0\n"


def test_analyst_without_a_password_does_not_exist(tmp_path_factory: pytest.TempPathFactory) -> None:
    from clickhouse.embedded.app import passwords
    from core.settings import Settings

    directory = tmp_path_factory.mktemp("data")
    assert set(passwords(Settings(data_dir=directory, clickhouse_password="x"))) == {"default"}
    (directory / "analyst.key").write_text(f"{ANALYST_PASSWORD}\n")
    assert passwords(Settings(data_dir=directory, clickhouse_password="x"))["analyst"] == ANALYST_PASSWORD
