"""The log's memory budget, and a server that is away."""

from pathlib import Path

import msgspec
import pytest
import redis.asyncio as redis

from core.redis_client import connect, memory_share
from core.settings import Settings
from ingest import watch
from tests.ingest.conftest import POLL, Log, event, http_client
from tests.support.redis_server import running_redis
from tests.support.waiting import wait_until

BALLAST_BYTES = 64 << 20
"""Beside it, what connections come and go is below a per cent."""


async def fill_to(client: redis.Redis, share: float) -> None:
    """Set the budget so that this share of it is used."""
    await client.setrange("ballast", BALLAST_BYTES, "x")
    info = await client.info("memory")
    await client.config_set("maxmemory", int((info["used_memory"] - info["mem_not_counted_for_evict"]) / share))


async def test_near_the_budget_it_warns_and_then_refuses_until_there_is_room(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "INTERVAL_S", 0.02)
    with running_redis(tmp_path / "redis") as server:
        own = msgspec.structs.replace(settings, redis_url=server.url)
        async with connect(own) as admin, http_client(own) as client:
            await client.put("/api/v1/polls/p1", json=POLL)
            calls = [
                ("POST", "/api/v1/events", event("e1")),
                ("POST", "/api/v1/votes", {}),
                ("PUT", "/api/v1/polls/p2", POLL),
                ("POST", "/api/v1/polls/p1/close", None),
                ("POST", "/hooks/matchzy/srv", {}),
            ]

            await fill_to(admin, 0.87)
            ready = await client.get("/readyz")
            assert (ready.status_code, ready.json()["checks"]["redis"][:18]) == (200, "warning: memory at")
            assert (await client.post("/api/v1/events", json=event("e0"))).status_code == 202

            await fill_to(admin, 0.97)

            async def refuses() -> bool:
                return (await client.post("/api/v1/votes", json=[])).status_code == 503

            await wait_until(refuses, what="the watch sees it")
            for method, url, body in calls:
                answer = await client.request(method, url, json=body)
                assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
            ready = await client.get("/readyz")
            assert (ready.status_code, ready.json()["checks"]["redis"][:9]) == (503, "memory at")
            assert len(await Log(admin).entries()) == 2

            await admin.delete("ballast")

            async def accepts() -> bool:
                return (await client.post("/api/v1/events", json=event("e1"))).status_code == 202

            await wait_until(accepts, what="there is room again")
            assert (await client.get("/readyz")).json()["checks"]["redis"] == "ok"


async def test_a_server_that_runs_out_between_two_looks_is_503_too(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "INTERVAL_S", 60)
    with running_redis(tmp_path / "redis") as server:
        own = msgspec.structs.replace(settings, redis_url=server.url)
        async with connect(own) as admin, http_client(own) as client:
            await admin.config_set("maxmemory", 1)
            answer = await client.post("/api/v1/events", json=event("e1"))
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
            assert (await client.put("/api/v1/polls/p1", json=POLL)).status_code == 503
            assert await Log(admin).entries() == []


async def test_a_server_without_a_budget_is_no_reason_to_refuse(settings: Settings, tmp_path: Path) -> None:
    with running_redis(tmp_path / "redis") as server:
        async with connect(msgspec.structs.replace(settings, redis_url=server.url)) as admin:
            await admin.config_set("maxmemory", 0)
            assert await memory_share(admin) == 0.0


async def test_while_the_server_is_away_everything_is_503_and_afterwards_fine(
    settings: Settings, tmp_path: Path
) -> None:
    with running_redis(tmp_path / "redis") as server:
        own = msgspec.structs.replace(settings, redis_url=server.url)
        async with http_client(own) as client:
            await client.put("/api/v1/polls/p1", json=POLL)
            server.stop()
            for method, url, body in (
                ("POST", "/api/v1/events", event("e1")),
                ("POST", "/api/v1/votes", {"event_id": "e", "poll_id": "p1", "option": "a", "voter": "v"}),
                ("PUT", "/api/v1/polls/p1", POLL),
                ("POST", "/api/v1/polls/p1/close", None),
            ):
                answer = await client.request(method, url, json=body)
                assert answer.status_code == 503, answer.text
                assert answer.headers["Retry-After"] == "1"
                assert answer.headers["Content-Type"] == "application/problem+json"
            ready = await client.get("/readyz")
            assert (ready.status_code, ready.json()["checks"]["redis"]) == (503, "Redis is unreachable")
            assert (await client.get("/healthz")).status_code == 200
            server.start()
            assert (await client.post("/api/v1/events", json=event("e1"))).status_code == 202
            assert (await client.get("/readyz")).status_code == 200
