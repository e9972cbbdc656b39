"""Keys, correlation ids and bodies, where possible over real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import httpx
import pytest
from prometheus_client import REGISTRY
from starlette.requests import Request
from starlette.types import Message

from core.problem import Problem
from core.settings import Settings
from ingest import body
from ingest.body import BodyReader
from tests.ingest.conftest import POLL, Log, event, vote
from tests.support.waiting import wait_until

VOTES = "/api/v1/votes"


@pytest.mark.parametrize(
    "authorization",
    [
        *("", "Bearer", "Bearer ", "Bearer wrong", "Basic dXNlcjpwYXNz", "test-ingest-key", "Bearer test-ingest-key2"),
        *("Bearer test-ingest-ke", "Bearer tést", "Bearer test-ingest-key, Bearer x"),
    ],
)
@pytest.mark.parametrize(
    ("method", "url"),
    [
        ("POST", VOTES),
        ("POST", "/api/v1/events"),
        ("PUT", "/api/v1/polls/p1"),
        ("POST", "/api/v1/polls/p1/close"),
        ("POST", "/hooks/matchzy/srv"),
        ("GET", "/api/anything"),
    ],
)
async def test_without_the_key_nobody_comes_in(
    stranger: httpx.AsyncClient, method: str, url: str, authorization: str, log: Log
) -> None:
    headers = [(b"Authorization", authorization.encode())] if authorization else []
    answer = await stranger.request(method, url, content=b"{", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/problem+json"
    assert await log.entries() == []


async def test_the_scheme_is_bearer_in_any_case(stranger: httpx.AsyncClient, settings: Settings) -> None:
    for scheme in ("Bearer", "bearer", "BEARER"):
        headers = {"Authorization": f"{scheme} {settings.ingest_key}"}
        assert (await stranger.put("/api/v1/polls/p1", json=POLL, headers=headers)).status_code in (200, 201)


async def test_a_plain_request_id_is_kept_and_any_other_replaced(client: httpx.AsyncClient, log: Log) -> None:
    given = ["abc-1.2:3_4", "x" * 64, "two words", "x" * 65, "a\tb", "é", ""]
    for number, request_id in enumerate(given):
        headers = [(b"X-Request-Id", request_id.encode()), (b"Content-Type", b"application/json")]
        body = json.dumps(event(f"e{number}"))
        answer = await client.post("/api/v1/events", content=body, headers=headers)
        assert answer.status_code == 202
        used = answer.headers["x-request-id"]
        assert (used == request_id) == (number < 2)
        assert (await log.entries())[-1].correlation == used
    refused = await client.post(VOTES, json={})
    assert refused.headers["x-request-id"]


class Connection:
    """A raw HTTP/1.1 connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str) -> None:
        self.reader = reader
        self.writer = writer
        self._key = key

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self, url: str, *lines: str) -> None:
        """Request line and headers of a POST of NDJSON."""
        rest = "".join(f"{line}\r\n" for line in lines)
        start = f"POST {url} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self._key}\r\n"
        await self.send(f"{start}Content-Type: application/x-ndjson\r\n{rest}\r\n".encode())

    async def answer(self) -> tuple[int, bytes]:
        """Status and body of the next answer."""
        async with asyncio.timeout(10):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
            return int(head.split(b" ", 2)[1]), await self.reader.readexactly(length)


@asynccontextmanager
async def connected(port: int, settings: Settings) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Connection(reader, writer, settings.ingest_key)
    finally:
        writer.close()


async def test_a_body_announced_as_too_large_is_refused_before_it_is_sent(port: int, settings: Settings) -> None:
    async with connected(port, settings) as connection:
        await connection.head(VOTES, f"Content-Length: {(4 << 20) + 1}")
        status, text = await connection.answer()
    assert (status, json.loads(text)["status"]) == (413, 413)


async def test_a_client_that_sends_10_mb_before_it_reads_gets_its_413(port: int, settings: Settings) -> None:
    async with connected(port, settings) as connection:
        await connection.head(VOTES, "Content-Length: 10000000")
        await connection.send(b"x" * 10_000_000)
        assert (await connection.answer())[0] == 413
        await connection.head("/api/v1/events", "Content-Length: 0")
        assert (await connection.answer())[0] == 202  # the connection is in order


async def test_a_chunked_body_is_refused_as_soon_as_it_is_too_large(port: int, settings: Settings) -> None:
    async with connected(port, settings) as connection:
        await connection.head(VOTES, "Transfer-Encoding: chunked")
        for _ in range(5):
            await connection.send(b"100000\r\n" + b" " * (1 << 20) + b"\r\n")
        assert (await connection.answer())[0] == 413


async def test_the_largest_body_is_taken(port: int, settings: Settings) -> None:
    async with connected(port, settings) as connection:
        line = json.dumps(event("e1")).encode()
        await connection.head("/api/v1/events", f"Content-Length: {4 << 20}")
        await connection.send(line + b" " * ((4 << 20) - len(line)))
        assert (await connection.answer())[0] == 202


@pytest.mark.parametrize("framing", ["Content-Length: 100000", "Transfer-Encoding: chunked"])
async def test_half_a_body_stores_nothing(
    port: int, settings: Settings, log: Log, framing: str, caplog: pytest.LogCaptureFixture
) -> None:
    lines = b"\n".join(json.dumps(event(f"e{n}")).encode() for n in range(20)) + b"\n"
    refused = partial(REGISTRY.get_sample_value, "ingest_events_total", {"source": "other", "result": "invalid"})
    before = refused() or 0
    async with connected(port, settings) as connection:
        await connection.head("/api/v1/events", framing)
        await connection.send(lines if "Length" in framing else b"%x\r\n%s\r\n" % (len(lines), lines))
    await wait_until(lambda: (refused() or 0) == before + 1, what="the half body is given up")
    async with connected(port, settings) as connection:  # the service goes on
        await connection.head("/api/v1/events", "Content-Length: 0")
        assert (await connection.answer())[0] == 202
    assert await log.entries() == []
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


def request_of(*messages: Message) -> Request:
    """A request whose body comes in these messages, and then never ends."""
    pending = list(messages)

    async def receive() -> Message:
        if not pending:
            await asyncio.Event().wait()
        return pending.pop(0)

    return Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)


def chunk(data: bytes, *, more: bool) -> Message:
    return {"type": "http.request", "body": data, "more_body": more}


async def test_a_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "BODY_MAX_S", 0.05)
    with pytest.raises(Problem) as caught:
        await BodyReader().read(request_of(chunk(b"half", more=True)))
    assert caught.value.status == 408


async def test_bodies_that_arrive_at_once_are_bounded_together() -> None:
    reader = BodyReader(held_max_bytes=100)
    first = asyncio.create_task(reader.read(request_of(chunk(b"x" * 80, more=True))))
    await wait_until(lambda: reader._held == 80)
    with pytest.raises(Problem) as caught:
        await reader.read(request_of(chunk(b"x" * 30, more=False)))
    assert (caught.value.status, caught.value.headers["Retry-After"]) == (503, "1")
    assert await reader.read(request_of(chunk(b"x" * 20, more=False))) == b"x" * 20
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert await reader.read(request_of(chunk(b"x" * 90, more=False))) == b"x" * 90


async def test_voters_are_never_logged(
    client: httpx.AsyncClient, poll: str, capfd: pytest.CaptureFixture[str], log: Log
) -> None:
    for fields in ({}, {"option": "none"}, {"poll_id": "none"}, {"voter": "secret-voter\n"}, {"ts": "secret-voter"}):
        await client.post(VOTES, json=vote("e", voter="secret-voter") | fields)
    output = capfd.readouterr()
    assert "secret-voter" not in output.out + output.err
    assert "secret-voter" not in await log.dump()
