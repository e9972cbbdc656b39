"""Serving: what every process with an HTTP port has in common (health, metrics, a clean stop)."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import msgspec
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from core import logs
from core.http_protocol import GuardedProtocol
from core.metrics import exposition
from core.problem import HANDLERS

Check = Callable[[], Awaitable[str]]
"""Returns "" when the dependency is well, else what is wrong with it, fit for an operator. Must not raise or hang."""

CHECK_TIMEOUT_S = 2.0


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Any msgspec-encodable value as JSON."""
    return Response(msgspec.json.encode(value), status, headers, "application/json")


async def _metrics(_request: Request) -> Response:
    return Response(exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _healthz(_request: Request) -> Response:
    return json_response({"status": "ok"})


def _readyz(checks: Mapping[str, Check]) -> Callable[[Request], Awaitable[Response]]:
    async def run(check: Check) -> str:
        try:
            return await asyncio.wait_for(check(), CHECK_TIMEOUT_S)
        except TimeoutError:
            return f"no answer within {CHECK_TIMEOUT_S:g} s"

    async def readyz(_request: Request) -> Response:
        results = dict(zip(checks, await asyncio.gather(*map(run, checks.values())), strict=True))
        # A warning keeps the service ready: it works, but weaker than asked.
        is_ready = all(not text or text.startswith("warning:") for text in results.values())
        body = {"status": "ready" if is_ready else "unready", "checks": {k: v or "ok" for k, v in results.items()}}
        return json_response(body, 200 if is_ready else 503)

    return readyz


def operations(checks: Mapping[str, Check]) -> list[Route]:
    """`/healthz`, `/readyz` and `/metrics`. A check whose text starts with "warning:" does not make it unready."""
    return [
        Route("/healthz", _healthz),
        Route("/readyz", _readyz(checks)),
        Route("/metrics", _metrics),
    ]


def application(routes: Sequence[BaseRoute]) -> Starlette:
    """Routes with our own form of every error. A path with a slash too many is 404, not a redirect to a guessed URL."""
    app = Starlette(routes=routes, exception_handlers=HANDLERS)
    app.router.redirect_slashes = False
    return app


def operations_app(checks: Mapping[str, Check]) -> Starlette:
    """The whole HTTP side of a process that serves nothing else (the consumers)."""
    return application(operations(checks))


class Server(uvicorn.Server):
    """uvicorn without its own signal handlers: the process's composition root decides when to stop."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture nothing: see `stop_event`."""
        yield


def config(app: Any, host: str, port: int, **options: Any) -> uvicorn.Config:
    """uvicorn as we run it everywhere: uvloop, our guarded protocol, our own logging, no server header.

    No WebSocket unless asked for: where there is none, a request to upgrade is answered like any other request.
    """
    return uvicorn.Config(
        app, host=host, port=port, loop="uvloop", http=options.pop("http", GuardedProtocol),
        ws=options.pop("ws", "none"), log_config=None,
        access_log=False, server_header=False, date_header=False, lifespan="off", timeout_keep_alive=30,
        timeout_graceful_shutdown=options.pop("timeout_graceful_shutdown", 5), **options,
    )  # fmt: skip


def stop_event() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set, for the running loop."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, event.set)
    return event


@asynccontextmanager
async def operations_server(checks: Mapping[str, Check], host: str, port: int) -> AsyncIterator[None]:
    """Serve `operations_app` beside a process's work.

    A port that is taken (a second consumer on one machine) costs the metrics, not the work: it is logged.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        logs.get().warning("no metrics here: the port is taken", port=port, error=str(error))
        listener.close()
        yield
        return
    server = Server(config(operations_app(checks), "", 0))
    task = asyncio.create_task(server.serve([listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await task
        listener.close()
