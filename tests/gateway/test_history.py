"""Stored events, replays and the audit over HTTP, from real servers."""

import asyncio
import itertools
import json
import secrets
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec
import pytest
import redis
from httpx_sse import aconnect_sse
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from clickhouse.client import ClickHouse
from clickhouse.writer import writer_sources
from core import keys
from core.audit import key_id
from core.problem import Problem
from core.redis_client import Scripts, connect
from core.settings import Settings
from gateway import replaying
from gateway.api import history as module
from ingest import decode
from tests.gateway.output_log import OutputLog
from tests.gateway.server import Gateway, Kind, running_gateway
from tests.support.archive_log import ArchiveLog
from tests.support.clickhouse_server import ClickHouseServer
from tests.support.migrated import Schema
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.redis, pytest.mark.clickhouse]

SHARDS = 1


class Past:
    """A gateway over one shard's log and its archive."""

    def __init__(self, log: ArchiveLog, gateway: Gateway, client: httpx.AsyncClient) -> None:
        self.log = log
        self.gateway = gateway
        self.client = client
        self.payloads: list[bytes] = []

    def add(self, count: int = 1, text: str = "", received_ms: int | None = None, **more: Any) -> None:
        """Append events of match m1 on maps 0 and 1 in turn."""
        for _ in range(count):
            n = len(self.payloads)
            body = msgspec.json.encode(
                {"event_id": f"e{n}", "match_id": "m1", "map_id": str(n % 2), "type": "kill", "n": n, "t": text, **more}
            )
            received_us = None if received_ms is None else received_ms * 1000
            self.log.log_writer.append("match", f"match.m1.{n % 2}", body, received_us=received_us)
            self.payloads.append(body)

    async def get(self, path: str, **options: Any) -> httpx.Response:
        return await self.client.get(path, **options)


@pytest.fixture
async def past(
    settings: Settings, clickhouse_server: ClickHouseServer, schema: Schema, sink: Kind
) -> AsyncIterator[Past]:
    name = f"test_{secrets.token_hex(6)}"
    database = clickhouse_server.target(name)
    settings = msgspec.structs.replace(settings, clickhouse_url=database, shards=SHARDS)
    clickhouse, client = ClickHouse(database), connect(settings)
    OutputLog(settings.redis_url, SHARDS).close()
    try:
        with (
            schema.lent(clickhouse_server, name),
            redis.Redis.from_url(settings.redis_url) as sync,
            running_gateway(settings, sink, clickhouse_url=database, lag_max_s=1.0, replays_max=3) as gateway,
        ):
            log = ArchiveLog(sync, client, clickhouse)
            log.scripts = Scripts(client, SHARDS, writer_sources())
            await log.scripts.ensure()
            async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as http:
                yield Past(log, gateway, http)
    finally:
        await clickhouse.close()
        await client.aclose()


@pytest.fixture
def sink() -> Kind:
    """Most of this does not depend on it."""
    return "takeover"


async def test_events_come_in_log_order_in_pages_across_the_seam(past: Past) -> None:
    past.add(12)
    await past.log.archive()
    past.add(13)
    found: list[int] = []
    after = ""
    while True:
        body = (await past.get(f"/api/v1/events/m1?limit=10&after={after}")).json()
        found += [event["n"] for event in body["events"]]
        if body["next"] is None:
            break
        after = body["next"]
    assert found == list(range(25))
    one_map = (await past.get("/api/v1/events/m1?map_id=1")).json()
    assert [event["n"] for event in one_map["events"]] == list(range(1, 25, 2))
    span = {"from": "2020-11-21T21:46:40.005Z", "to": "2020-11-21T21:46:40.008Z"}
    assert (await past.get("/api/v1/events/m1", params=span)).json() == {"events": [], "next": None}
    assert (await past.get("/api/v1/events/unknown")).json() == {"events": [], "next": None}
    for wrong in ("after=forged", "limit=0", "limit=1001", "map_id=a.b", "from=yesterday"):
        assert (await past.get(f"/api/v1/events/m1?{wrong}")).status_code == 400, wrong


async def test_events_are_given_byte_for_byte(past: Past) -> None:
    past.add(3, text='é "quoted" \\ \u2028')
    raw = (await past.get("/api/v1/events/m1")).content
    assert raw == b'{"events":[%b],"next":null}' % b",".join(past.payloads)
    await past.log.archive()
    assert (await past.get("/api/v1/events/m1")).content == raw
    assert (await past.get("/api/v1/replay/m1")).content == b"".join(line + b"\n" for line in past.payloads)


TEXT = st.text(st.characters(codec="utf-8"))
KEY = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=128)
NUMBER = st.integers(-(2**80), 2**80) | st.floats(allow_nan=False, allow_infinity=False)
VALUE = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
EVENT = st.fixed_dictionaries(
    {"event_id": KEY, "data": st.dictionaries(TEXT, VALUE, max_size=4)},
    optional={"round_no": st.integers(0, 10_000), "corrects": KEY, "ts": st.just("1999-12-31T23:59:59.999+05:30")},
)


@hypothesis_settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=st.lists(EVENT, min_size=1, max_size=4))
async def test_every_value_survives_the_log_clickhouse_and_the_api_byte_for_byte(
    past: Past, events: list[dict[str, Any]]
) -> None:
    match_id = f"h{next(_numbers)}"
    stored: list[bytes] = []
    for event in events:
        if event.get("corrects") == event["event_id"]:
            continue
        body = json.dumps({**event, "match_id": match_id, "map_id": "1", "type": "kill"}).encode()
        [decoded], _ = decode.match_events(body, "json", datetime.now(UTC))
        encoded, fault = decode.event_entry(decoded)
        assert fault is None
        past.log.log_writer.append("match", f"match.{match_id}.1", encoded)
        stored.append(encoded)
    page = b'{"events":[%b],"next":null}' % b",".join(stored)
    assert (await past.get(f"/api/v1/events/{match_id}")).content == page, "from Redis"
    await past.log.archive()
    assert (await past.get(f"/api/v1/events/{match_id}")).content == page, "from ClickHouse"
    assert (await past.get(f"/api/v1/replay/{match_id}")).content == b"".join(line + b"\n" for line in stored)


_numbers = itertools.count()


async def test_replay_is_every_event_as_a_line(past: Past) -> None:
    past.add(15)
    await past.log.archive()
    past.add(10)
    answer = await past.get("/api/v1/replay/m1")
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    assert answer.content.splitlines() == past.payloads
    assert (await past.get("/api/v1/replay/unknown")).text == ""
    paced = await past.get("/api/v1/replay/m1?speed=1000&map_id=0")
    assert paced.content.splitlines() == past.payloads[::2]
    assert (await past.client.head("/api/v1/replay/m1")).content == b""
    for wrong in ("speed=0", "speed=1001", "speed=nan", "as_of=x", "after=x"):
        assert (await past.get(f"/api/v1/replay/m1?{wrong}")).status_code == 400, wrong


async def test_as_of_a_moment_is_the_record_without_later_corrections(past: Past) -> None:
    past.add(2, received_ms=1_795_300_000_000)
    past.add(1, received_ms=1_795_300_010_000, corrects="e0")
    await past.log.archive()

    async def replayed(query: str) -> list[int]:
        return [json.loads(line)["n"] for line in (await past.get(f"/api/v1/replay/m1{query}")).text.splitlines()]

    assert await replayed("") == [0, 1, 2]
    assert await replayed("?as_of=2026-11-21T22:26:40Z") == [0, 1]
    assert await replayed("?as_of=2026-11-22T00:00:00Z") == [2, 1]


async def test_a_replay_as_an_event_stream_ends_with_a_word_and_goes_on_from_an_id(past: Past) -> None:
    past.add(5)
    await past.log.archive()
    async with aconnect_sse(past.client, "GET", "/api/v1/replay/m1") as source:
        events = [event async for event in source.aiter_sse()]
    assert [event.event for event in events] == ["kill"] * 5 + ["bye"]
    assert [event.data.encode() for event in events[:5]] == past.payloads
    headers = {"Accept": "text/event-stream", "Last-Event-ID": events[2].id}
    rest = await past.get("/api/v1/replay/m1", headers=headers)
    assert rest.text.count("event: kill") == 2
    headers["Last-Event-ID"] = events[4].id
    assert (await past.get("/api/v1/replay/m1", headers=headers)).status_code == 204, "or EventSource never stops"
    assert (await past.get(f"/api/v1/replay/m1?after={events[3].id}")).content == past.payloads[4] + b"\n"


async def test_a_replay_that_fails_in_its_middle_is_cut_and_not_ended(
    past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    past.add(9, received_ms=1_795_300_000_000)
    past.add(21, received_ms=1_795_302_000_000)  # two seconds later at this speed
    await past.log.archive()
    monkeypatch.setattr("clickhouse.replay.CHUNK_ROWS_FIRST", 10)
    got: list[bytes] = []

    async def read() -> None:
        async with past.client.stream("GET", "/api/v1/replay/m1?speed=1000") as answer:
            async for line in answer.aiter_lines():
                got.append(line.encode())
                if len(got) == 9:
                    await past.log.clickhouse.command("RENAME TABLE match_events TO gone")
                    past.log.sync.xtrim(keys.events(0), maxlen=1, approximate=False)

    with pytest.raises(httpx.RemoteProtocolError):
        await read()
    assert got == past.payloads[:10], "whole lines of the part that was read before"
    assert (await past.get("/api/v1/replay/m1")).status_code == 503


async def test_only_so_many_replays_are_sent_at_once(past: Past) -> None:
    past.add(1, received_ms=1_795_300_000_000)
    past.add(1, received_ms=1_795_303_000_000)
    async with (
        past.client.stream("GET", "/api/v1/replay/m1?speed=1") as one,
        past.client.stream("GET", "/api/v1/replay/m1?speed=1"),
        past.client.stream("GET", "/api/v1/replay/m1?speed=1"),
    ):
        assert one.status_code == 200
        refused = await past.get("/api/v1/replay/m1")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")

    async def is_free() -> bool:
        return (await past.get("/api/v1/replay/m1")).status_code == 200

    await wait_until(is_free, 10, "those who left gave their places back")


async def test_a_reader_who_takes_nothing_is_cut_off_and_reads_nothing_more(past: Past) -> None:
    past.add(200, text="x" * 50_000)
    await past.log.archive()
    before = replaying.EVICTIONS.labels("replay")._value.get()  # type: ignore[attr-defined]
    with socket.create_connection(("127.0.0.1", past.gateway.port)) as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.sendall(b"GET /api/v1/replay/m1 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert reader.recv(15) == b"HTTP/1.1 200 OK"
        await wait_until(
            lambda: replaying.EVICTIONS.labels("replay")._value.get() > before,  # type: ignore[attr-defined]
            20,
            "the reader is given up",
        )


async def test_pages_wait_for_their_turn_and_too_many_are_refused() -> None:
    turns = module.Turns(1, 1)
    async with turns.one():
        waiting = asyncio.ensure_future(turns.one().__aenter__())
        await asyncio.sleep(0)
        with pytest.raises(Problem, match="too many requests"):
            async with turns.one():
                pass
        assert not waiting.done()
    await waiting


async def test_the_audit_tells_writes_corrections_and_reads_to_whoever_has_the_key(past: Past) -> None:
    past.add(2)
    past.add(1, corrects="e0")
    await past.get("/api/v1/events/m1?limit=2", headers={"X-Request-Id": "request-7"})
    bearer = {"Authorization": "Bearer test-ingest-key"}
    await past.get("/api/v1/replay/m1", headers=bearer)
    assert (await past.get("/api/v1/audit/m1")).status_code == 401
    assert (await past.get("/api/v1/audit/m1", headers={"Authorization": "Bearer wrong"})).status_code == 401
    await wait_until(lambda: past.log.sync.xlen(keys.audit(0)) == 2, 10, "both reads are noted")
    nothing_yet = (await past.get("/api/v1/audit/m1", headers=bearer)).json()
    assert nothing_yet == {"entries": [], "next": None}, "a page ends where the archive does"
    await past.log.archive()
    writes_only = (await past.get("/api/v1/audit/m1", headers=bearer)).json()
    assert writes_only["entries"] == [], "reads that came before may still be missing"
    await past.log.archive("audit")
    entries: list[dict[str, Any]] = []
    after = ""
    while after is not None:
        body = (await past.get(f"/api/v1/audit/m1?limit=2&after={after}", headers=bearer)).json()
        entries += body["entries"]
        after = body["next"]
    assert [(entry["action"], entry["actor"]) for entry in entries[:3]] == [
        ("write", "source:api"),
        ("write", "source:api"),
        ("correct", "source:api"),
    ]
    assert (entries[2]["corrects"], entries[2]["revision"], entries[0]["correlation"]) == ("e0", 2, "test")
    reads = {entry["action"]: entry for entry in entries[3:]}
    assert reads["read_events"]["actor"] == "anonymous"
    assert reads["read_events"]["correlation"] == "request-7"
    assert (reads["read_events"]["events"], reads["read_events"]["last"]) == (2, entries[1]["position"])
    assert (reads["replay"]["actor"], reads["replay"]["events"]) == (key_id("test-ingest-key"), 3)
    everything = json.dumps(entries)
    assert "127.0.0.1" not in everything
    assert "test-ingest-key" not in everything


async def test_readiness_names_a_clickhouse_that_is_well(past: Past) -> None:
    assert (await past.get("/readyz")).json()["checks"] == {"redis": "ok", "clickhouse": "ok"}


@pytest.mark.parametrize("sink", ["plain"])
async def test_a_plain_server_replays_too(past: Past) -> None:
    past.add(4)
    assert (await past.get("/api/v1/replay/m1")).content.splitlines() == past.payloads
