"""The gateway as a process: start, SIGTERM, several workers on one port, rolling over without a gap."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import httpx_sse
import pytest

from core.settings import Settings
from tests.gateway.output_log import OutputLog
from tests.gateway.readers import WAIT_S
from tests.support.processes import descendants
from tests.support.waiting import wait_until, wait_until_sync

pytestmark = pytest.mark.redis


class Process:
    """`run(settings, workers)` in a process of its own."""

    def __init__(self, settings: Settings, workers: int) -> None:
        self.url = f"http://127.0.0.1:{settings.gateway_port}"
        environ = {
            "ARENACAST_REDIS_URL": settings.redis_url,
            "ARENACAST_GATEWAY_PORT": str(settings.gateway_port),
            "ARENACAST_CLICKHOUSE_PASSWORD": "x",
            "ARENACAST_DRAIN_S": "0.3",
            "ARENACAST_LOG_LEVEL": "warning",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "core.cli", "gateway", "--workers", str(workers)],
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
        )

    def is_ready(self) -> bool:
        assert self.process.poll() is None, "ended by itself"
        try:
            return httpx.get(f"{self.url}/readyz", timeout=2).status_code == 200
        except httpx.TransportError:
            return False


@contextmanager
def running(settings: Settings, workers: int = 1) -> Iterator[Process]:
    started = Process(settings, workers)
    try:
        wait_until_sync(started.is_ready, 30)
        yield started
    finally:
        if started.process.poll() is None:
            started.process.terminate()
        try:
            started.process.wait(20)
        finally:
            started.process.kill()
            started.process.wait()


class Follower:
    """Follows a poll for ever as a browser would: reconnects with its last id, whatever happens."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.totals: list[int] = []
        self.verdicts: list[str] = []
        self.last_id = ""

    async def run(self) -> None:
        while True:
            headers = {"Last-Event-ID": self.last_id} if self.last_id else {}
            try:
                async with (
                    httpx.AsyncClient(timeout=WAIT_S) as client,
                    httpx_sse.aconnect_sse(
                        client, "GET", f"{self._url}/api/v1/stream?topics=poll.p1", headers=headers
                    ) as source,
                ):
                    async for event in source.aiter_sse():
                        self.last_id = event.id or self.last_id
                        if event.event == "welcome":
                            self.verdicts.append(event.json()["topics"]["poll.p1"]["resume"])
                        elif event.event in ("tally", "snapshot") and "total" in event.json():
                            self.totals.append(event.json()["total"])
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)


def is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("workers", [1, 2])
async def test_sigterm_ends_in_order(settings: Settings, log: OutputLog, workers: int) -> None:
    with running(settings, workers) as gateway:
        async with (
            httpx.AsyncClient(timeout=WAIT_S) as client,
            client.stream("GET", f"{gateway.url}/api/v1/stream?topics=poll.p1") as answer,
        ):
            lines = answer.aiter_lines()
            while await anext(lines) != "event: welcome":
                pass
            gateway.process.send_signal(signal.SIGTERM)
            rest = [line async for line in lines]
            assert "event: bye" in rest
            # Each worker closes its own socket, and only the one with the reader is known to have done so.
            await wait_until(lambda: is_refused(settings.gateway_port), what="nobody new is taken in")
        assert await asyncio.to_thread(gateway.process.wait, 15) == 0


async def test_taken_port_ends_it_with_one_line(settings: Settings, log: OutputLog) -> None:
    with running(settings) as gateway:
        second = await asyncio.to_thread(
            subprocess.run,
            gateway.process.args,
            env={
                **os.environ,
                "ARENACAST_REDIS_URL": settings.redis_url,
                "ARENACAST_GATEWAY_PORT": str(settings.gateway_port),
                "ARENACAST_CLICKHOUSE_PASSWORD": "x",
            },
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert second.returncode == 1
    assert "ARENACAST_GATEWAY_PORT" in second.stderr.splitlines()[-1]
    assert "Traceback" not in second.stderr


async def test_readers_of_several_workers_miss_and_repeat_nothing_while_they_are_killed(
    settings: Settings, log: OutputLog
) -> None:
    with running(settings, workers=2) as gateway:
        log.tally("p1", 1)
        workers = [pid for pid in descendants(gateway.process.pid) if _is_worker(pid)]
        followers = [Follower(gateway.url) for _ in range(6)]
        tasks = [asyncio.create_task(follower.run()) for follower in followers]
        await wait_until(lambda: all(follower.totals == [1] for follower in followers))
        total = 1
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
            for _ in range(30):
                total += 1
                log.tally("p1", total)
                await asyncio.sleep(0.01)
        await wait_until(lambda: all(follower.totals[-1] == total for follower in followers), 20)
        for follower in followers:
            assert follower.totals == list(range(1, total + 1))
            assert follower.verdicts[0] == "snapshot"
            assert set(follower.verdicts[1:]) <= {"complete"}
        assert all(len(follower.verdicts) > 1 for follower in followers), "everybody was thrown out once or more"
        text = (await asyncio.to_thread(httpx.get, f"{gateway.url}/metrics")).text
        # Sums over both workers, whoever answers; the dead ones' connections do not count on.
        found = re.search(r'^gateway_connections\{transport="sse"\} ([0-9.]+)$', text, re.MULTILINE)
        assert found is not None
        assert float(found[1]) == len(followers)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _is_worker(pid: int) -> bool:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return b"spawn_main" in file.read()


async def test_connections_are_spread_over_the_workers(settings: Settings, log: OutputLog) -> None:
    with running(settings, workers=2) as gateway:
        sockets = [socket.create_connection(("127.0.0.1", settings.gateway_port)) for _ in range(40)]
        for one in sockets:
            one.sendall(b"GET /api/v1/stream?topics=poll.p1 HTTP/1.1\r\nHost: x\r\n\r\n")
            one.settimeout(10)
            one.recv(4096)
        workers = [pid for pid in descendants(gateway.process.pid) if _is_worker(pid)]
        held = sorted(sum("socket:" in os.readlink(link) for link in _descriptors(pid)) for pid in workers)
        assert held[0] > 10, held
        for one in sockets:
            one.close()


def _descriptors(pid: int) -> list[str]:
    return [f"/proc/{pid}/fd/{name}" for name in os.listdir(f"/proc/{pid}/fd")]


async def test_workers_end_with_a_parent_that_was_killed(settings: Settings, log: OutputLog) -> None:
    with running(settings, workers=2) as gateway:
        workers = [pid for pid in descendants(gateway.process.pid) if _is_worker(pid)]
        assert len(workers) == 2
        gateway.process.kill()
        gateway.process.wait()
        await wait_until(lambda: not any(os.path.exists(f"/proc/{pid}/exe") for pid in workers), 15)
