"""The real ingest service in this process, and a look into the log it writes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import redis.asyncio as redis
from starlette.types import ASGIApp

from core import keys
from core.events import Entry, parse_entry
from core.http import Server, config
from core.settings import Settings
from ingest.app import service
from tests.support.waiting import wait_until

POLL = {"title": "Who wins?", "options": [{"id": "a", "label": "Alpha"}, {"id": "b", "label": "Bravo"}]}


def vote(event_id: str, **fields: object) -> dict[str, Any]:
    """A vote as a client sends it."""
    return {"event_id": event_id, "poll_id": "p1", "option": "a", "voter": "twitch:1", **fields}


def event(event_id: str, **fields: object) -> dict[str, Any]:
    """A match event as a client sends it."""
    return {"event_id": event_id, "match_id": "m1", "map_id": "1", "type": "round_end", **fields}


class Log:
    """What stands in the input log of all shards."""

    def __init__(self, client: redis.Redis) -> None:
        self.redis = client

    async def entries(self, kind: str = "") -> list[Entry]:
        """All entries, or those of one kind, in the order of their ids (of one shard: the log's order)."""
        shards = int(await self.redis.hget(keys.LOG, "shards") or 4)
        found: list[Entry] = []
        for shard in range(shards):
            raw: Any = await self.redis.xrange(keys.events(shard))
            found += [parse_entry(i, fields) for i, fields in raw]
        return sorted((e for e in found if not kind or e.kind == kind), key=lambda e: e.id)

    async def dump(self) -> str:
        """Every key and value, as text, to look for what must not be there."""
        parts: list[str] = []
        async for key in self.redis.scan_iter():
            parts += [repr(key), repr(await self.redis.dump(key))]
        return "".join(parts)


@pytest.fixture
async def log(settings: Settings) -> AsyncIterator[Log]:
    """The log of the test's Redis."""
    async with redis.Redis.from_url(settings.redis_url) as client:
        yield Log(client)


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[ASGIApp]:
    """The whole service behind its ASGI interface."""
    async with service(settings, asyncio.Event()) as application:
        assert application is not None
        yield application


@asynccontextmanager
async def http_client(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A service of its own for these settings, and a client with its key."""
    async with service(settings, asyncio.Event()) as application:
        assert application is not None
        async with _client(application, {"Authorization": f"Bearer {settings.ingest_key}"}) as client:
            yield client


@pytest.fixture
async def stranger(app: ASGIApp) -> AsyncIterator[httpx.AsyncClient]:
    """A client without the key."""
    async with _client(app, {}) as client:
        yield client


@pytest.fixture
async def client(app: ASGIApp, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the key."""
    async with _client(app, {"Authorization": f"Bearer {settings.ingest_key}"}) as client:
        yield client


def _client(app: ASGIApp, headers: dict[str, str]) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://ingest", headers=headers)


@pytest.fixture
async def poll(client: httpx.AsyncClient) -> str:
    """The poll p1 with options a and b."""
    assert (await client.put("/api/v1/polls/p1", json=POLL)).status_code == 201
    return "p1"


@pytest.fixture
async def port(app: ASGIApp, settings: Settings) -> AsyncIterator[int]:
    """The service on a real port."""
    server = Server(config(app, "127.0.0.1", settings.ingest_port))
    serving = asyncio.create_task(server.serve())
    await wait_until(lambda: server.started, what="the server listens")
    yield settings.ingest_port
    server.should_exit = True
    await serving
