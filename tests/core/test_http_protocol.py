"""Bounds of the HTTP protocol that uvicorn leaves out, against a real server and raw sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from core import http_protocol
from core.http import Server, application, config
from core.http_protocol import HEAD_BYTES_MAX, GuardedProtocol
from tests.support.ports import free_port
from tests.support.waiting import wait_until

disconnected = 0


async def echo(request: Request) -> Response:
    return Response(await request.body())


async def hold(request: Request) -> Response:
    """Wait for the client to go away."""
    global disconnected
    while (await request.receive())["type"] != "http.disconnect":
        pass
    disconnected += 1
    return Response()


@asynccontextmanager
async def server() -> AsyncIterator[int]:
    port = free_port()
    app = application([Route("/", echo, methods=["GET", "POST"]), Route("/hold", hold)])
    running = Server(config(app, "127.0.0.1", port))
    task = asyncio.create_task(running.serve())
    await wait_until(lambda: running.started, 5, "serving")
    try:
        yield port
    finally:
        running.should_exit = True
        await task


async def answer(port: int, *parts: bytes) -> bytes:
    """Send parts and read until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
    except ConnectionError:
        pass
    try:
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_what_the_parser_refuses_is_a_problem() -> None:
    async with server() as port:
        head, _, body = (await answer(port, b"NONSENSE\r\n\r\n")).partition(b"\r\n\r\n")
    assert b"400" in head.split(b"\r\n")[0]
    assert b"application/problem+json" in head
    assert msgspec.json.decode(body)["status"] == 400


@pytest.mark.parametrize("piece", [b"a" * 16_384, b"X: y\r\n" * 2_000])
async def test_a_head_without_end_is_cut_off(piece: bytes) -> None:
    async with server() as port:
        sent = [b"GET / HTTP/1.1\r\nHost: x\r\nLong: ", *[piece] * (40 * HEAD_BYTES_MAX // len(piece))]
        got = await answer(port, *sent)
    assert not got or b" 431 " in got.split(b"\r\n")[0]


async def test_a_head_that_is_too_large_is_refused_also_when_it_comes_at_once() -> None:
    async with server() as port:
        head = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nLong: "
        refused = await answer(port, head + b"a" * HEAD_BYTES_MAX + b"\r\n\r\n")
        taken = await answer(port, head + b"a" * (HEAD_BYTES_MAX - 1000) + b"\r\n\r\n")
    assert b" 431 " in refused.split(b"\r\n")[0]
    assert b" 200 " in taken.split(b"\r\n")[0]


async def test_a_wish_for_a_websocket_is_answered_like_any_request_where_there_is_none() -> None:
    wish = b"Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
    async with server() as port:
        got = await answer(port, b"PUT / HTTP/1.1\r\nHost: x\r\n" + wish + b"a" * 22 + b"==\r\n\r\n")
    head, _, body = got.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    assert msgspec.json.decode(body)["status"] == 405


async def test_a_slash_too_many_is_not_found_and_not_redirected() -> None:
    async with server() as port:
        got = await answer(port, b"GET /hold/ HTTP/1.1\r\nHost: elsewhere\r\nConnection: close\r\n\r\n")
    assert b" 404 " in got.split(b"\r\n")[0]


async def test_a_large_body_is_no_large_head() -> None:
    body = b"x" * (4 * HEAD_BYTES_MAX)
    head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with server() as port:
        got = await answer(port, head + body[:10], body[10:])
    assert got.endswith(body)


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nX-Sl", b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nab"]
)
async def test_who_does_not_finish_a_request_is_hung_up_on(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.2)
    monkeypatch.setattr(GuardedProtocol, "message_timeout_s", 0.2)
    async with server() as port:
        assert await answer(port, sent) == b""


async def test_every_pipelined_request_hears_that_the_client_left() -> None:
    before = disconnected
    async with server() as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        await writer.drain()
        writer.close()
        await wait_until(lambda: disconnected > before, 5, "the first request hears it")
