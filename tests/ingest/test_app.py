"""The service as a process: starting, stopping, and what it says when it cannot work."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import redis

from core import keys
from core.settings import PREFIX, Settings
from tests.ingest.conftest import event
from tests.support.redis_server import running_redis
from tests.support.waiting import wait_until_sync

COMMAND = [sys.executable, "-m", "core.cli", "ingest"]


class Process:
    """`arenacast ingest` with these settings in its environment."""

    def __init__(self, settings: Settings, **more: object) -> None:
        named = ("data_dir", "redis_url", "ingest_port", "ingest_key", "voter_secret")
        environment = {name: str(getattr(settings, name)) for name in named} | {k: str(v) for k, v in more.items()}
        self.base = f"http://127.0.0.1:{settings.ingest_port}"
        self._headers = {"Authorization": f"Bearer {settings.ingest_key}"}
        self._process = subprocess.Popen(
            COMMAND,
            stderr=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
            | {PREFIX + name.upper(): value for name, value in environment.items()},
        )
        self.lines: list[str] = []
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        self.lines += self._process.stderr

    def post(self, body: object) -> httpx.Response:
        return httpx.post(f"{self.base}/api/v1/events", json=body, headers=self._headers, timeout=10)

    def is_ready(self) -> bool:
        assert self._process.poll() is None
        try:
            return httpx.get(f"{self.base}/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def terminate(self) -> None:
        self._process.terminate()

    def ended(self) -> tuple[int, str]:
        """Exit code and everything it wrote."""
        code = self._process.wait(15)
        self._reading.join(5)
        return code, "".join(self.lines)

    def clean_up(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self.ended()


@contextmanager
def running(settings: Settings, **more: object) -> Iterator[Process]:
    process = Process(settings, **more)
    try:
        yield process
    finally:
        process.clean_up()


def test_it_serves_until_it_is_told_to_stop(settings: Settings) -> None:
    with running(settings) as process:
        wait_until_sync(process.is_ready, what="ingest is ready")
        assert process.post(event("e1")).json() == {"accepted": 1, "duplicates": 0}
        process.terminate()
        code, output = process.ended()
    assert code == 0
    assert "Traceback" not in output
    assert '"event": "stopped"' in output
    assert settings.ingest_key not in output
    assert settings.voter_secret not in output


def test_a_request_at_hand_is_finished_before_it_stops(settings: Settings, redis_url: str) -> None:
    with running(settings) as process, redis.Redis.from_url(redis_url) as admin, ThreadPoolExecutor() as pool:
        wait_until_sync(process.is_ready, what="ingest is ready")
        assert process.post(event("e1")).status_code == 202
        admin.client_pause(60_000, all=False)
        try:
            answer = pool.submit(process.post, event("e2"))
            wait_until_sync(lambda: _is_waiting(admin), what="the event waits for the log")
            process.terminate()
            wait_until_sync(lambda: not _accepts_connections(settings.ingest_port), what="no new connections")
            time.sleep(0.5)  # the disk is slow: longer than a server needs that does not wait for its requests
        finally:
            admin.client_unpause()
        assert answer.result(10).json() == {"accepted": 1, "duplicates": 0}
        assert process.ended()[0] == 0


def _is_waiting(admin: redis.Redis) -> bool:
    """Whether an append is: the process's look at the server is held back by the pause as well."""
    return any(client["cmd"] == "evalsha" and "b" in client["flags"] for client in admin.client_list())


def _accepts_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def test_it_waits_for_redis(settings: Settings, tmp_path: Path) -> None:
    with running_redis(tmp_path / "redis") as server:
        server.stop()
        with running(settings, redis_url=server.url) as process:
            wait_until_sync(lambda: any("waiting for Redis" in line for line in process.lines), what="it waits")
            server.start()
            wait_until_sync(process.is_ready, what="ingest is ready")
            assert process.post(event("e1")).status_code == 202


def test_it_stops_while_it_waits_for_redis(settings: Settings, tmp_path: Path) -> None:
    with running(settings, redis_url=f"unix://{tmp_path}/nothing.sock") as process:
        wait_until_sync(lambda: any("waiting for Redis" in line for line in process.lines), what="it waits")
        process.terminate()
        assert process.ended()[0] == 0


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"shards": 8}, "ARENACAST_SHARDS is 8, but this log was created with 4 shards"),
        ({"ack": "sometimes"}, "ARENACAST_ACK must be"),
        ({"voter_secret": ""}, "ARENACAST_VOTER_SECRET is not set"),
        ({"ingest_key": ""}, "ARENACAST_INGEST_KEY is not set"),
        ({"ingest_host": "203.0.113.1"}, "cannot listen on 203.0.113.1"),
    ],
)
def test_what_it_cannot_work_with_is_one_line(
    settings: Settings, redis_url: str, more: dict[str, object], text: str
) -> None:
    with redis.Redis.from_url(redis_url) as admin:
        admin.hset(keys.LOG, mapping={"id": "x", "shards": "4"})
    with running(settings, **more) as process:
        code, output = process.ended()
    assert code == 1
    assert output.splitlines()[-1].startswith("arenacast: ")
    assert text in output.splitlines()[-1]
    assert "Traceback" not in output


def test_a_taken_port_is_one_line(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", settings.ingest_port)), running(settings) as process:
        code, output = process.ended()
    assert code == 1
    assert output.splitlines()[-1].startswith(
        f"arenacast: ARENACAST_INGEST_PORT: cannot listen on 127.0.0.1:{settings.ingest_port}"
    )
