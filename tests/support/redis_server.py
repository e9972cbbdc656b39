"""A real Valkey or Redis server for tests: on a unix socket, bound to the life of the test process.

with running_redis(tmp_path) as server:
    client = redis.asyncio.Redis.from_url(server.url)
    server.kill9()      # what a power cut does to the process
    server.start()      # the same data directory again
"""

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from core.local import launch
from core.local.redis_server import answers, arguments
from core.local.redis_server import binary as valkey_binary
from tests.support.waiting import wait_until_sync

Binary = Literal["valkey", "redis"]
STARTS_WITHIN_S = 20.0
STOPS_WITHIN_S = 10.0


def redis_binary() -> Path | None:
    """The system's own redis-server, a second target of the same tests, or None."""
    found = shutil.which("redis-server")
    return Path(found) if found else None


class RedisServer:
    """One server process and its data directory, which outlives restarts."""

    def __init__(self, program: Path, directory: Path, unix_socket: Path, appendfsync: str, maxmemory_mb: int) -> None:
        self.directory = directory
        self.socket = unix_socket
        self._command = [str(program), *arguments(directory, unix_socket, maxmemory_mb, appendfsync=appendfsync)]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For ARENACAST_REDIS_URL and `Redis.from_url`."""
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        """Of the running server."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def log(self) -> str:
        """What the server wrote since it was first started."""
        return (self.directory / "server.log").read_text()

    def start(self) -> None:
        """Start it and wait until it answers."""
        assert self._process is None, "the server is already running"
        self.directory.mkdir(parents=True, exist_ok=True)
        self.socket.unlink(missing_ok=True)
        with (self.directory / "server.log").open("ab") as output:
            process = subprocess.Popen(launch.wrap(self._command), stdout=output, stderr=output, start_new_session=True)
        self._process = process

        def is_ready() -> bool:
            assert process.poll() is None or self._gave_up(process)
            return answers(self.socket)

        wait_until_sync(is_ready, STARTS_WITHIN_S, "server answers PING")

    def stop(self) -> None:
        """Orderly end; nothing when it is not running."""
        self._end(signal.SIGTERM)

    def kill9(self) -> None:
        """Kill without warning. `start()` brings it back with what it has on disk."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Orderly stop and start: a new incarnation with all its data."""
        self.stop()
        self.start()

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(STOPS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOPS_WITHIN_S)
        self._process = None

    def _gave_up(self, process: subprocess.Popen[bytes]) -> bool:
        self._process = None
        raise RuntimeError(f"server ended with {process.returncode}: {self.log[-2000:]}")


@contextmanager
def running_redis(
    directory: Path, binary: Binary = "valkey", appendfsync: str = "always", maxmemory_mb: int = 256
) -> Iterator[RedisServer]:
    """Start a server in `directory`; stop it at the end, whatever happened.

    `binary` "redis" is the system's redis-server: ask `redis_binary()` first and skip where there is none.
    """
    program = valkey_binary() if binary == "valkey" else redis_binary()
    assert program is not None, "no redis-server on this machine: skip the test"
    home = Path(tempfile.mkdtemp(prefix="ac-"))  # short: a socket's path has at most 104 bytes
    server = RedisServer(program, directory, home / "redis.sock", appendfsync, maxmemory_mb)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(home, ignore_errors=True)
