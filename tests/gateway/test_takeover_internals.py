"""What `gateway.takeover` and `gateway.connection` lean on in uvicorn and uvloop: red when an upgrade moves it."""

import asyncio
import gc
import inspect
import socket
import weakref
from importlib.metadata import version

import httpx
import pytest
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import Server

from core.settings import Settings
from gateway.event_stream import EventStream
from gateway.takeover import TakeoverProtocol
from tests.gateway.output_log import OutputLog
from tests.gateway.readers import read, reading
from tests.gateway.server import running_gateway
from tests.support.waiting import wait_until

pytestmark = pytest.mark.redis


def test_names_are_where_they_were() -> None:
    source = inspect.getsource(HttpToolsProtocol)
    for name in ("scope", "cycle", "pipeline", "flow", "parser", "transport", "connections", "loop", "url", "headers"):
        assert f"self.{name} = " in source or f"self.{name}: " in source, name
    for method in ("on_message_begin", "on_headers_complete", "on_message_complete", "handle_websocket_upgrade"):
        assert callable(getattr(HttpToolsProtocol, method))
    assert "self.handle_websocket_upgrade()" in source
    assert "config.ws_protocol_class" in source
    cycle = inspect.getsource(RequestResponseCycle)
    for name in ("disconnected", "response_started", "more_body", "response_complete"):
        assert f"self.{name} = " in cycle, name
    assert "not self.response_started and not self.disconnected" in cycle, "a disconnected cycle ends in silence"
    assert "read_paused" in inspect.getsource(FlowControl)
    assert "ws_protocol_class" in inspect.getsource(Config)
    server = inspect.getsource(Server)
    for text in ("self.servers.append(", "for server in self.servers:", "app_state=self.lifespan.state"):
        assert text in server, text


def test_version_is_the_one_this_was_written_for() -> None:
    """Not a ban on upgrades: a reminder to read `gateway.takeover` beside the new source, then to raise this."""
    assert version("uvicorn").startswith("0.54.")


async def test_uvicorn_lets_go_of_a_connection_that_was_taken(settings: Settings, log: OutputLog) -> None:
    protocols: list[weakref.ref[TakeoverProtocol]] = []
    original = TakeoverProtocol.__init__

    def remember(self: TakeoverProtocol, *args: object, **options: object) -> None:
        original(self, *args, **options)  # type: ignore[arg-type]
        protocols.append(weakref.ref(self))

    TakeoverProtocol.__init__ = remember  # type: ignore[method-assign,assignment]
    try:
        with running_gateway(settings) as gateway:
            async with reading(gateway, "sse", "poll.p1") as one, reading(gateway, "ws", "poll.p1") as two:
                await read(one, 2)
                await read(two, 2)
                kinds = sorted(type(connection).__name__ for connection in gateway.inside.wheel)
                assert kinds == ["EventStream", "WebSocket"]

                def left() -> list[str]:
                    alive = [protocol() for protocol in protocols]
                    return [str([type(r) for r in gc.get_referrers(p)]) for p in alive if p is not None]

                gc.disable()
                await wait_until(lambda: not left(), 5, "uvicorn's protocols are freed without the garbage collector")
                assert len(protocols) == 2
    finally:
        gc.enable()
        TakeoverProtocol.__init__ = original  # type: ignore[method-assign]


async def test_a_subscriber_has_no_dictionary(settings: Settings, log: OutputLog) -> None:
    """Slots all the way down: memory per idle subscriber is the point of taking over."""
    with running_gateway(settings) as gateway:
        async with reading(gateway, "sse", "poll.p1") as one, reading(gateway, "ws", "poll.p1") as two:
            await read(one, 2)
            await read(two, 2)
            for connection in gateway.inside.wheel:
                assert not hasattr(connection, "__dict__")
                if isinstance(connection, EventStream):
                    assert connection._subscriber is not None
                    assert not hasattr(connection._subscriber, "__dict__")


async def test_reader_that_leaves_while_it_joins_is_forgotten(settings: Settings, log: OutputLog) -> None:
    with running_gateway(settings) as gateway:
        for _ in range(20):
            raw = socket.create_connection(("127.0.0.1", gateway.port))
            raw.sendall(b"GET /api/v1/stream?topics=poll.p1 HTTP/1.1\r\nHost: x\r\n\r\n")
            raw.close()
        await wait_until(lambda: len(gateway.inside.wheel) == 0 and not gateway.inside.hub._interned)


async def test_http_1_0_client_is_served(settings: Settings, log: OutputLog) -> None:
    with running_gateway(settings) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(b"GET /api/v1/stream?topics=poll.p1 HTTP/1.0\r\n\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert b"chunked" not in head
        assert b"event: welcome" in await asyncio.wait_for(reader.readuntil(b"\n\n"), 5)
        writer.close()
        await writer.wait_closed()


async def test_head_request_gets_the_head(settings: Settings, log: OutputLog) -> None:
    with running_gateway(settings) as gateway:
        async with httpx.AsyncClient(base_url=gateway.url) as client:
            answer = await client.head("/api/v1/stream?topics=poll.p1")
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
        assert len(gateway.inside.wheel) == 0


async def test_ordinary_requests_keep_their_connection(settings: Settings, log: OutputLog) -> None:
    with running_gateway(settings) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        for _ in range(3):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            await reader.readexactly(len(b'{"status":"ok"}'))
        writer.close()
        await writer.wait_closed()
        gc.collect()
