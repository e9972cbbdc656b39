"""Health, readiness and metrics of every process; a server that stops when told."""

import asyncio
import os
import signal
from collections.abc import Mapping

import httpx
import pytest

from core import http
from core.http import Check, Server, config, operations_app, stop_event
from tests.support.ports import free_port
from tests.support.waiting import wait_until


def client_of(checks: Mapping[str, Check]) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(operations_app(checks)), base_url="http://test")


async def well() -> str:
    return ""


async def weak() -> str:
    return "warning: appendfsync is everysec"


async def away() -> str:
    return "connection refused"


async def hanging() -> str:
    await asyncio.Event().wait()
    return ""


async def test_alive_whatever_the_dependencies() -> None:
    async with client_of({"redis": away}) as client:
        assert (await client.get("/healthz")).status_code == 200


async def test_ready_when_every_dependency_is_well_and_a_warning_keeps_it_so() -> None:
    async with client_of({"redis": well, "disk": weak}) as client:
        answer = await client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ready", "checks": {"redis": "ok", "disk": "warning: appendfsync is everysec"}}


async def test_unready_names_the_dependency() -> None:
    async with client_of({"redis": away, "disk": well}) as client:
        answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()["checks"]) == (503, {"redis": "connection refused", "disk": "ok"})


async def test_dependency_that_hangs_does_not_hang_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CHECK_TIMEOUT_S", 0.05)
    async with client_of({"redis": hanging}) as client:
        answer = await client.get("/readyz")
    assert answer.json()["checks"] == {"redis": "no answer within 0.05 s"}


async def test_metrics_are_there() -> None:
    async with client_of({}) as client:
        answer = await client.get("/metrics")
    assert "# TYPE votes_unaccounted gauge" in answer.text


async def test_server_runs_until_sigterm_and_leaves_the_port() -> None:
    port = free_port()
    server = Server(config(operations_app({}), "127.0.0.1", port))
    stop = stop_event()
    serving = asyncio.create_task(server.serve())
    async with httpx.AsyncClient(trust_env=False) as client:
        await wait_until(lambda: server.started)
        answer = await client.get(f"http://127.0.0.1:{port}/healthz")
    assert answer.json() == {"status": "ok"}
    assert "server" not in answer.headers
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(stop.wait(), 5)
    server.should_exit = True
    await asyncio.wait_for(serving, 10)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().remove_signal_handler(number)
