"""The embedded ClickHouse as a process: its directory, its death, its end, its bounds."""

import gzip
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.support.clickhouse_server import ClickHouseServer, running_clickhouse
from tests.support.ports import free_port
from tests.support.waiting import wait_until_sync

pytestmark = pytest.mark.clickhouse

FAILS_WITHIN_S = 30.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ClickHouseServer]:
    """A server of the test's own, on an empty directory."""
    with running_clickhouse(tmp_path / "data", "--body-max-mb", "1", "--drain-s", "2.5") as server:
        yield server


def fails(server: ClickHouseServer) -> str:
    """The last line of a server that must not start."""
    try:
        assert server.launch().wait(FAILS_WITHIN_S) == 1
    finally:
        server.stop()
    assert "Traceback" not in server.log
    return server.log.splitlines()[-1]


def test_second_process_on_a_directory_is_told_whose_it_is(server: ClickHouseServer) -> None:
    second = ClickHouseServer(server.directory, free_port(), "x")
    before = server.log
    line = fails(second).removeprefix(before)
    assert f"{server.directory} is in use by another process (pid {server.pid})" in line
    assert server.query("SELECT 1") == "1\n"


def test_taken_port_missing_password_and_bad_path_are_one_line(server: ClickHouseServer, tmp_path: Path) -> None:
    assert f"127.0.0.1:{server.port}" in fails(ClickHouseServer(tmp_path / "other", server.port, "x"))
    assert "ARENACAST_CLICKHOUSE_PASSWORD" in fails(ClickHouseServer(tmp_path / "third", free_port(), ""))
    assert "? or &" in fails(ClickHouseServer(tmp_path / "a&b", free_port(), "x"))


def test_other_characters_of_a_path_are_no_matter(tmp_path: Path) -> None:
    with running_clickhouse(tmp_path / "da ta ü%20#='\"+;") as server:
        server.query("CREATE DATABASE d")
        assert "BACKUP_CREATED" in server.query("BACKUP DATABASE d TO Disk('backups', 'one')")
        assert (server.backups / "one").exists()


def test_data_of_a_newer_engine_is_left_alone(server: ClickHouseServer) -> None:
    server.stop()
    (server.directory / "engine.version").write_text("126.1.1.1\n")
    assert "was written by ClickHouse 126.1.1.1" in fails(server)


def test_files_are_private(server: ClickHouseServer) -> None:
    assert stat.S_IMODE(server.directory.stat().st_mode) == 0o700
    command_line = Path(f"/proc/{server.pid}/cmdline").read_bytes() if Path("/proc").exists() else b""
    assert server.password.encode() not in command_line


def test_configuration_in_the_working_directory_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.xml").write_text("<clickhouse><max_server_memory_usage>nonsense")
    monkeypatch.chdir(tmp_path)
    with running_clickhouse(tmp_path / "data") as server:
        assert server.query("SELECT 1") == "1\n"


def test_default_database_survives_every_kind_of_restart(server: ClickHouseServer) -> None:
    """Empty, with a table, with a view of another database on it, and after its tables are gone."""
    server.restart()
    server.query("CREATE TABLE t (a UInt8) ENGINE = MergeTree ORDER BY a")
    server.query("CREATE DATABASE other")
    server.query("CREATE TABLE other.copy (a UInt8) ENGINE = MergeTree ORDER BY a")
    server.query("CREATE MATERIALIZED VIEW other.feed TO other.copy AS SELECT a FROM default.t")
    for expected in range(1, 3):
        server.query("INSERT INTO t VALUES (1)")
        server.kill9() if expected == 2 else server.stop()
        server.start()
        assert server.query("SELECT count() FROM t") == f"{expected}\n"
        assert server.query("SELECT count() FROM other.copy") == f"{expected}\n"
    server.query("DROP TABLE t SYNC")
    server.restart()
    with pytest.raises(urllib.error.HTTPError) as caught:
        server.query("SELECT * FROM t")
    assert caught.value.headers["X-ClickHouse-Exception-Code"] == "60"


def test_killed_in_the_middle_of_inserts_it_reopens_with_what_it_acknowledged(server: ClickHouseServer) -> None:
    server.query("CREATE TABLE t (batch UInt32, a UInt32) ENGINE = MergeTree PARTITION BY batch % 2 ORDER BY a")
    server.query("CREATE TABLE sums (batch UInt32, n UInt64) ENGINE = SummingMergeTree ORDER BY batch")
    server.query("CREATE MATERIALIZED VIEW feed TO sums AS SELECT batch, count() AS n FROM t GROUP BY batch")
    rows = 2000
    acknowledged: list[int] = []
    numbers = iter(range(1, 100_000))

    def insert_until_killed() -> None:
        while True:
            batch = next(numbers)
            body = b"".join(b"%d\t%d\n" % (batch, number) for number in range(rows))
            try:
                server.query(b"INSERT INTO t FORMAT TSV\n" + body)
            except OSError:
                return
            acknowledged.append(batch)

    for kill in range(1, 5):

        def has_enough(enough: int = len(acknowledged) + 3) -> bool:
            return len(acknowledged) >= enough

        with ThreadPoolExecutor(3) as pool:
            for _ in range(3):
                pool.submit(insert_until_killed)
            wait_until_sync(has_enough, 30.0, "inserts are under way")
            time.sleep(0.013 * kill)  # somewhere else in an insert each time
            server.kill9()
        server.start()
        counts = server.query("SELECT batch, count() FROM t GROUP BY batch")
        stored = {int(batch): int(count) for batch, count in map(str.split, counts.splitlines())}
        assert {batch: stored.get(batch, 0) for batch in acknowledged} == dict.fromkeys(acknowledged, rows)
        assert server.query("SELECT count() FROM system.detached_parts") == "0\n"
    assert server.query("SELECT sum(n) FROM sums WHERE batch IN (" + ",".join(map(str, acknowledged)) + ")") == (
        f"{rows * len(acknowledged)}\n"
    )


def test_it_stops_within_seconds_and_running_queries_with_it(server: ClickHouseServer) -> None:
    answers: list[httpx.Response | Exception] = []

    def ask(sql: str) -> None:
        try:
            answers.append(
                httpx.post(server.url, content=sql, headers={"X-ClickHouse-Key": server.password}, timeout=30)
            )
        except httpx.HTTPError as error:
            answers.append(error)

    statements = ["SELECT sum(sipHash64(number)) FROM system.numbers FORMAT JSON", "SELECT number FROM system.numbers",
                  "SELECT sleep(1)"]  # fmt: skip
    threads = [threading.Thread(target=ask, args=(sql,), daemon=True) for sql in statements]
    for thread in threads:
        thread.start()
    wait_until_sync(lambda: server.query("SELECT count() FROM system.processes") == "4\n", 10.0, "three queries run")
    process = server._process
    assert process is not None
    started = time.monotonic()
    process.terminate()
    assert process.wait(15) == 0
    assert time.monotonic() - started < 9.0
    for thread in threads:
        thread.join(10)
    assert "0\n" in [answer.text for answer in answers if isinstance(answer, httpx.Response)]  # it could finish
    server.stop()
    server.start()
    assert server.query("SELECT 1") == "1\n"


def test_idle_connection_does_not_delay_the_end(server: ClickHouseServer) -> None:
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/ping").text == "Ok.\n"
        started = time.monotonic()
        os.kill(server.pid, signal.SIGINT)
        assert server.stop() == 0
        assert time.monotonic() - started < 4.0


def test_body_over_the_limit_is_refused_however_it_comes(server: ClickHouseServer) -> None:
    server.query("CREATE TABLE t (a String) ENGINE = MergeTree ORDER BY a")
    sql = b"INSERT INTO t FORMAT LineAsString\n"
    headers = {"X-ClickHouse-Key": server.password}
    large = sql + b"x" * (1 << 20)
    for content in (large, iter([sql, *([b"x" * 65536] * 20)])):
        answer = httpx.post(server.url, content=content, headers=headers)
        assert (answer.status_code, answer.headers["X-ClickHouse-Exception-Code"]) == (413, "223")
    answer = httpx.post(server.url, content=gzip.compress(large), headers={**headers, "Content-Encoding": "gzip"})
    assert answer.status_code == 413
    assert server.query("SELECT count() FROM t") == "0\n"


def test_head_without_end_is_refused(server: ClickHouseServer) -> None:
    answer = httpx.get(server.url, headers={"X-Long": "x" * 900_000, "X-ClickHouse-Key": server.password})
    assert answer.status_code == 200
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX-Long: ")
        sent = 0
        with suppress(ConnectionError):
            while sent < 64 << 20:
                connection.sendall(b"x" * 65536)
                sent += 65536
    assert sent < 32 << 20  # what the buffers of a connection may hold is not our choice
    assert server.query("SELECT 1") == "1\n"


def test_many_at_a_time_all_get_their_answers(server: ClickHouseServer) -> None:
    with ThreadPoolExecutor(40) as pool:
        found = list(pool.map(lambda number: server.query(f"SELECT sleep(0.05), {number}"), range(120)))
    assert found == [f"0\t{number}\n" for number in range(120)]


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    """The way the tests and the supervisor start it; see core.local.launch."""
    program = (
        "import sys, time; sys.path.insert(0, '.')\n"
        "from pathlib import Path\n"
        "from tests.support.clickhouse_server import ClickHouseServer\n"
        f"server = ClickHouseServer(Path({str(tmp_path / 'data')!r}), {free_port()}, 'x')\n"
        "server.start(); print(server.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()

    def is_gone() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    wait_until_sync(is_gone, 5.0, "the server has died")
