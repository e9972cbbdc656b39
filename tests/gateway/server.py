"""A gateway in a thread of this process, on its own uvloop loop: the real server, and yet a test can look inside."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import anyio
import msgspec
import uvicorn
import uvloop

from core.redis_client import find_log
from core.settings import Settings
from gateway.app import clients, serve_readers
from gateway.asgi import App
from gateway.service import Service
from gateway.source import RedisSource
from gateway.uring import sender
from tests.support.waiting import wait_until_sync

Kind = Literal["takeover", "plain", "http2"]
"""Our own server; the application on a stock uvicorn; the same speaking HTTP/2 (and HTTP/1.1)."""

T = TypeVar("T")

# Starlette imports this when it first sends a file, which here would be in the gateway's thread. pytest rewrites the
# module while it is imported, and CPython 3.11 cannot parse in two threads at once (cpython issue 106905).
_IMPORTED_EARLY = (anyio.open_file,)

STARTS_WITHIN_S = 20.0
STOPS_WITHIN_S = 20.0


class Gateway:
    """One running gateway."""

    def __init__(self, settings: Settings, kind: Kind, port: int = 0) -> None:
        self._settings = settings
        self._kind = kind
        self._listener = socket.create_server(("127.0.0.1", port), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.ws_url = f"ws://127.0.0.1:{self.port}/api/v1/ws"
        self.service: Service | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"gateway {self.port}", daemon=True)

    @property
    def inside(self) -> Service:
        """The service, for looking; change nothing outside `call`."""
        assert self.service is not None
        return self.service

    def call(self, function: Callable[[], T]) -> T:
        """Run a function in the gateway's loop."""
        assert self._loop is not None

        async def run() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    def submit(self, coroutine: Any) -> Any:
        """Start a coroutine in the gateway's loop; returns a concurrent future."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def start(self) -> None:
        self._thread.start()

        def is_up() -> bool:
            if self._error is not None:
                raise RuntimeError("gateway did not start") from self._error
            return self.service is not None

        wait_until_sync(is_up, STARTS_WITHIN_S, "gateway is up")

    def stop(self) -> None:
        """Drain and end, as SIGTERM would. Harmless when it has ended."""
        self.ask_to_stop()
        self._thread.join(STOPS_WITHIN_S)
        assert not self._thread.is_alive(), "gateway did not stop"
        self._listener.close()
        if self._error is not None:
            raise RuntimeError("gateway failed") from self._error

    def ask_to_stop(self) -> None:
        if self._thread.is_alive() and self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)

    def _run(self) -> None:
        try:
            uvloop.run(self._serve() if self._kind == "takeover" else self._serve_plain())
        except BaseException as error:
            self._error = error

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with clients(self._settings) as (client, clickhouse):
            identity = await find_log(client, self._settings, self._stop)
            assert identity is not None
            self.service = Service(self._settings, RedisSource(client, clickhouse), *identity, sender(self._settings))
            await serve_readers(self.service, client, clickhouse, self._listener, self._stop)

    async def _serve_plain(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = App(self._settings)
        is_http2 = self._kind == "http2"
        config = uvicorn.Config(
            app, http="zttp" if is_http2 else "httptools", http2=is_http2, ws="websockets-sansio", lifespan="on",
            log_config=None, timeout_graceful_shutdown=1,
        )  # fmt: skip
        server = _Server(config)
        serving = asyncio.create_task(server.serve(sockets=[self._listener]))
        while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.005)
        self.service = app.service
        await asyncio.wait({serving, stopping := asyncio.create_task(self._stop.wait())}, return_when="FIRST_COMPLETED")
        stopping.cancel()
        if not serving.done():
            assert app.service is not None
            await app.service.drain()  # a server of its own would end the streams without a word
            server.should_exit = True
        await serving


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextmanager
def running_gateway(settings: Settings, kind: Kind = "takeover", port: int = 0, **changes: Any) -> Iterator[Gateway]:
    """A gateway with these settings, some of them changed."""
    defaults: dict[str, Any] = {"drain_s": 0.2, "clickhouse_url": "http://default:x@127.0.0.1:1/arenacast"}
    gateway = Gateway(msgspec.structs.replace(settings, **{**defaults, **changes}), kind, port)
    gateway.start()
    try:
        yield gateway
    finally:
        gateway.stop()
