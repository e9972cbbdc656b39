"""A real embedded ClickHouse for tests: a process of its own, bound to the life of the test process.

with running_clickhouse(tmp_path / "clickhouse") as server:
    server.query("SELECT 1")   # "1\n"
    server.kill9()             # what a power cut does to the process
    server.start()             # the same data directory again, on the same port
"""

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.local import launch
from core.local.child import python_environment
from core.settings import PREFIX
from tests.support.ports import free_port
from tests.support.waiting import wait_until_sync

ANALYST_PASSWORD = "test-analyst-password"
STARTS_WITHIN_S = 60.0
STOPS_WITHIN_S = 20.0


class ClickHouseServer:
    """One server process and its data directory, which outlives restarts."""

    def __init__(self, directory: Path, port: int, password: str, *arguments: str) -> None:
        self.directory = directory
        self.port = port
        self.password = password
        self._log = directory.with_name(directory.name + ".log")
        self._command = [
            sys.executable, "-P", "-m", "clickhouse.embedded",
            "--path", str(directory), "--port", str(port), *arguments,
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def backups(self) -> Path:
        """Where its BACKUP statements write."""
        return self.directory.with_name("backups")

    @property
    def url(self) -> str:
        """Where it answers, without credentials and path."""
        return f"http://127.0.0.1:{self.port}"

    def target(self, database: str = "arenacast") -> str:
        """For ARENACAST_CLICKHOUSE_URL."""
        return f"http://default:{self.password}@127.0.0.1:{self.port}/{database}"

    @property
    def pid(self) -> int:
        """Of the running server."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def log(self) -> str:
        """What the server wrote since it was first started."""
        return self._log.read_text() if self._log.exists() else ""

    def start(self) -> None:
        """Start it and wait until it answers."""
        process = self.launch()

        def is_ready() -> bool:
            if process.poll() is not None:
                self._process = None
                raise RuntimeError(f"server ended with {process.returncode}: {self.log[-2000:]}")
            try:
                with urllib.request.urlopen(f"{self.url}/ping", timeout=2) as answer:
                    return bool(answer.status == 200)
            except (OSError, urllib.error.URLError):
                return False

        wait_until_sync(is_ready, STARTS_WITHIN_S, "server answers /ping")

    def launch(self) -> subprocess.Popen[bytes]:
        """Start it without waiting for anything."""
        assert self._process is None, "the server is already running"
        environ = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        environ[f"{PREFIX}CLICKHOUSE_PASSWORD"] = self.password
        environ[f"{PREFIX}ANALYST_PASSWORD"] = ANALYST_PASSWORD
        environ[f"{PREFIX}DATA_DIR"] = str(self.directory.parent)  # no key of an installation where the tests run
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                launch.wrap(self._command), env=python_environment(environ), stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        return self._process

    def query(self, sql: str | bytes, **parameters: str) -> str:
        """Answer to a statement; `parameters` go into the URL. Raises urllib.error.HTTPError on a refusal."""
        return self._query("default", self.password, sql, parameters)

    def query_as_analyst(self, sql: str | bytes, **parameters: str) -> str:
        """The same by the user `analyst`."""
        return self._query("analyst", ANALYST_PASSWORD, sql, parameters)

    def _query(self, user: str, password: str, sql: str | bytes, parameters: dict[str, str]) -> str:
        body = sql.encode() if isinstance(sql, str) else sql
        request = urllib.request.Request(
            f"{self.url}/?{urllib.parse.urlencode(parameters)}",
            body,
            {"X-ClickHouse-User": user, "X-ClickHouse-Key": password},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            text: str = answer.read().decode()
            return text

    def stop(self) -> int | None:
        """Orderly end; its exit code, None when it was not running."""
        return self._end(signal.SIGTERM)

    def kill9(self) -> None:
        """Kill without warning. `start()` brings it back with what it has on disk."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Orderly stop and start."""
        self.stop()
        self.start()

    def _end(self, number: signal.Signals) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        process.send_signal(number)
        try:
            return process.wait(STOPS_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait(STOPS_WITHIN_S)


@contextmanager
def running_clickhouse(
    directory: Path, *arguments: str, password: str = "test-clickhouse-password"
) -> Iterator[ClickHouseServer]:
    """Start a server on the data in `directory`; stop it at the end, whatever happened.

    `arguments` are further ones of `python -m clickhouse.embedded`.
    """
    server = ClickHouseServer(directory, free_port(), password, *arguments)
    try:
        server.start()
        yield server
    finally:
        server.stop()
