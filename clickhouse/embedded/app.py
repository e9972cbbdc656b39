"""The process: start, routes, orderly stop."""

import asyncio
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from clickhouse.embedded.endpoint import StatementEndpoint
from clickhouse.embedded.engine import Engine
from clickhouse.embedded.limits import Limits
from clickhouse.embedded.protocol import StatementProtocol
from clickhouse.embedded.sessions import Sessions
from clickhouse.embedded.users import ANALYST, DEFAULT_USER, Users
from clickhouse.embedded.workers import Workers
from core import http, logs
from core.errors import Fatal
from core.settings import PREFIX, Settings

_EXPIRE_EVERY_S = 10.0
_CANCEL_EVERY_S = 0.2
_CANCEL_WITHIN_S = 5.0


def run(settings: Settings) -> None:
    """Composition root of `arenacast clickhouse`. Raises Fatal when it cannot start."""
    logs.configure("clickhouse", settings)
    uvloop.run(
        serve(settings.data_dir / "clickhouse", settings.backups_dir, settings.clickhouse_port, passwords(settings))
    )


def passwords(settings: Settings) -> dict[str, str]:
    """Users and their passwords; `analyst` exists only where it has one. Raises Fatal."""
    found = {DEFAULT_USER: settings.secret("clickhouse_password")}
    if settings.analyst_password or settings.secret_file("analyst_password").exists():
        found[ANALYST] = settings.secret("analyst_password")
    return found


async def serve(
    data_dir: Path,
    backups_dir: Path,
    port: int,
    passwords: Mapping[str, str],
    host: str = "127.0.0.1",
    limits: Limits | None = None,
) -> None:
    """Serve the data in `data_dir` until SIGTERM or SIGINT.

    Stops within `limits.drain_s` and a few seconds: the listener closes, statements may finish, then they are
    cancelled. Raises Fatal when the directory is in use, the port is taken, or the password is empty.
    """
    if not all(passwords.values()):
        raise Fatal(f"{PREFIX}CLICKHOUSE_PASSWORD or {PREFIX}ANALYST_PASSWORD is empty")
    limits = limits or Limits()
    stop = http.stop_event()
    listener = _listener(host, port)
    try:
        engine = Engine(data_dir, backups_dir)
    except BaseException:
        listener.close()
        raise
    workers = Workers(limits.running_max, limits.waiting_max, limits.wait_max_s)
    sessions = Sessions(engine.connect, limits.sessions_max)
    app = create_app(StatementEndpoint(engine, Users(passwords), sessions, workers, limits))
    server = http.Server(
        http.config(
            app, host, port, http=StatementProtocol, limit_concurrency=limits.connections_max,
            timeout_graceful_shutdown=int(limits.drain_s + _CANCEL_WITHIN_S) + 1,
        )
    )  # fmt: skip
    serving = asyncio.create_task(server.serve([listener]))
    expiring = asyncio.create_task(_expire(sessions))
    address = listener.getsockname()
    logs.get().info("listening", host=address[0], port=address[1], engine=engine.version, data=str(data_dir))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    logs.get().info("stopping", statements=workers.busy)
    server.should_exit = True
    stopping.cancel()
    expiring.cancel()
    await _drain(serving, engine, workers, limits.drain_s)
    if not await workers.idle(_CANCEL_WITHIN_S):
        # Threads cannot be ended, and waiting for them would be for ever; the data survives worse (kill -9).
        logs.get().error("statements do not stop, leaving without closing the data", statements=workers.busy)
        os._exit(1)
    workers.close()
    sessions.close()
    engine.close()
    logs.get().info("stopped")
    try:
        await serving
    except OSError as error:  # somebody listened between our bind and our listen
        raise Fatal(f"{PREFIX}CLICKHOUSE_PORT: cannot listen on {host}:{port}: {error.strerror}") from error


def create_app(statement: StatementEndpoint) -> Starlette:
    """The routes of ClickHouse's HTTP interface."""
    return Starlette(
        routes=[
            Route("/ping", _ok),
            Route("/replicas_status", _ok),
            Route("/", statement, methods=["GET", "POST"]),
        ]
    )


async def _ok(_request: Request) -> Response:
    return PlainTextResponse("Ok.\n")


async def _drain(serving: "asyncio.Task[None]", engine: Engine, workers: Workers, drain_s: float) -> None:
    """Let statements finish, then cancel them until none is left."""
    done, _ = await asyncio.wait({serving}, timeout=drain_s)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _CANCEL_WITHIN_S
    while not done and loop.time() < deadline:
        with suppress(RuntimeError):  # said by the engine, which may be short of memory; the next try is near
            await workers.control(engine.cancel_all)
        done, _ = await asyncio.wait({serving}, timeout=_CANCEL_EVERY_S)
    if not done:
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving


async def _expire(sessions: Sessions) -> None:
    """Sessions that nobody uses any more are closed although nobody asks."""
    while True:
        await asyncio.sleep(_EXPIRE_EVERY_S)
        sessions.expire()


def _listener(host: str, port: int) -> socket.socket:
    """Bound but not yet listening, so that nobody is kept waiting while the data is opened."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise Fatal(f"{PREFIX}CLICKHOUSE_PORT: cannot listen on {host}:{port}: {error.strerror}") from error
    return listener
