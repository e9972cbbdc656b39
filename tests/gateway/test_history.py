"""Stored events and replays over HTTP, from a real ClickHouse."""

import json
import secrets
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest

from clickhouse.client import ClickHouse
from clickhouse.migrate import migrate
from core.settings import Settings
from tests.gateway.output_log import OutputLog
from tests.gateway.server import running_gateway
from tests.support.stored_events import Stored

pytestmark = [pytest.mark.redis, pytest.mark.clickhouse]


@pytest.fixture
async def client(settings: Settings, log: OutputLog, clickhouse_url: str) -> AsyncIterator[httpx.AsyncClient]:
    database = urlsplit(clickhouse_url)._replace(path=f"/test_{secrets.token_hex(6)}").geturl()
    await migrate(msgspec.structs.replace(settings, clickhouse_url=database))
    clickhouse = ClickHouse(database)
    stored = Stored(clickhouse)
    for n in range(25):
        await stored.add((n, 0), map_id=str(n % 2), payload=b'{"n":%d}' % n)
    try:
        with running_gateway(settings, clickhouse_url=database) as gateway:
            async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
                yield client
    finally:
        await clickhouse.command("DROP DATABASE {name:Identifier}", {"name": urlsplit(database).path[1:]})
        await clickhouse.close()


async def test_events_come_in_log_order_in_pages(client: httpx.AsyncClient) -> None:
    found: list[int] = []
    after = ""
    while True:
        body = (await client.get(f"/api/v1/events/m1?limit=10&after={after}")).json()
        found += [event["n"] for event in body["events"]]
        if body["next"] is None:
            break
        after = body["next"]
    assert found == list(range(25))
    one_map = (await client.get("/api/v1/events/m1?map_id=1")).json()
    assert [event["n"] for event in one_map["events"]] == list(range(1, 25, 2))
    span = {"from": "2026-11-21T21:46:40.005Z", "to": "2026-11-21T21:46:40.008Z"}
    assert (await client.get("/api/v1/events/m1", params=span)).status_code == 200
    assert (await client.get("/api/v1/events/unknown")).json() == {"events": [], "next": None}
    assert (await client.get("/api/v1/events/m1?after=forged")).status_code == 400


async def test_replay_is_every_event_as_a_line(client: httpx.AsyncClient) -> None:
    answer = await client.get("/api/v1/replay/m1")
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    assert [json.loads(line)["n"] for line in answer.text.splitlines()] == list(range(25))
    assert (await client.get("/api/v1/replay/unknown")).text == ""
    paced = await client.get("/api/v1/replay/m1?speed=10&map_id=0")
    assert len(paced.text.splitlines()) == 13


async def test_readiness_names_a_clickhouse_that_is_well(client: httpx.AsyncClient) -> None:
    assert (await client.get("/readyz")).json()["checks"] == {"redis": "ok", "clickhouse": "ok"}
