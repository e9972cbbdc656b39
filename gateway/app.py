"""Composition root of the gateway: takes its settings, makes every client, hands them down, and ends in order."""

import asyncio
import multiprocessing
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp

from clickhouse.client import ClickHouse
from clickhouse.history import History
from core import audit, collector, http, logs
from core.errors import Fatal, Retry
from core.redis_client import Redis, Scripts, check, connect, find_log
from core.settings import Settings
from gateway.api import contract, history, site, state, stream, updates, ws
from gateway.auditor import Auditor
from gateway.listing import Listing
from gateway.policy import Policy
from gateway.service import Service
from gateway.source import RedisSource
from gateway.takeover import TakeoverProtocol, TakeoverServer
from gateway.uring import sender
from gateway.websocket import WebSocket
from gateway.workers import BACKLOG, run_workers

REDIS_CONNECTIONS_EXTRA = 16
"""Connections to Redis beside one blocking read per shard."""

SHARDS_MAX = 64

GZIP_MIN_BYTES = 1024
"""Of a REST answer. Below that a packet holds it either way."""

GZIP_LEVEL = 6
"""Level 9, the middleware's default, takes three times as long for a fifth less (a page of 1000 events: 8 ms)."""


def make_app(service: Service, client: Redis, clickhouse: ClickHouse) -> Any:
    """The ASGI application."""
    auditor = Auditor(Scripts(client, service.shards, audit.sources()), service.shards)
    service.at_stop.append(auditor.close)
    past = History(clickhouse, client, service.shards)
    routes = [
        *stream.routes(service),
        *ws.routes(service),
        *updates.routes(service),
        *state.routes(service, Listing(client, service.shards)),
        *history.routes(past, client, auditor, service.settings),
        *http.operations({"redis": _redis_check(service, client), "clickhouse": _clickhouse_check(clickhouse)}),
        *contract.routes(service.settings),
        *site.routes(),
    ]
    app: ASGIApp = http.application(routes)
    if service.settings.compression == "on":  # of what is no event stream; those have their own way
        app = GZipMiddleware(app, minimum_size=GZIP_MIN_BYTES, compresslevel=GZIP_LEVEL)
    return Policy(app, service.settings.cors_origins)


def run(settings: Settings, workers: int = 1) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises Fatal when it cannot serve at all."""
    if workers == 1:
        logs.configure("gateway", settings)
        with _listen(settings) as listener:
            work(settings, listener)
        return
    logs.configure("gateway-parent", settings)
    with _listen(settings) as listener:
        run_workers(settings, workers, listener, work)


def work(settings: Settings, listener: socket.socket) -> None:
    """One worker's life."""
    collector.relax()
    uvloop.run(_serve(settings, listener))


async def _serve(settings: Settings, listener: socket.socket) -> None:
    stop = http.stop_event()
    parent = multiprocessing.parent_process()
    if parent is not None:  # its death, however sudden, is ours too
        asyncio.get_running_loop().add_reader(parent.sentinel, stop.set)
    async with clients(settings) as (client, clickhouse):
        identity = await find_log(client, settings, stop)
        if identity is not None:
            service = Service(settings, RedisSource(client, clickhouse), *identity, sender(settings))
            await serve_readers(service, client, clickhouse, listener, stop)


@asynccontextmanager
async def clients(settings: Settings) -> AsyncIterator[tuple[Redis, ClickHouse]]:
    """Clients of the two servers, closed at the end."""
    client = connect(settings, connections_max=SHARDS_MAX + REDIS_CONNECTIONS_EXTRA)
    clickhouse = ClickHouse(settings.clickhouse_target)
    try:
        yield client, clickhouse
    finally:
        await clickhouse.close()
        await client.aclose()


async def serve_readers(
    service: Service, client: Redis, clickhouse: ClickHouse, listener: socket.socket, stop: asyncio.Event
) -> None:
    """Accept and serve on `listener` until `stop`, then drain."""
    settings = service.settings
    config = http.config(
        make_app(service, client, clickhouse),
        settings.gateway_host,
        settings.gateway_port,
        http=TakeoverProtocol,
        ws=lambda: WebSocket(service),
        backlog=BACKLOG,
    )
    server = TakeoverServer(config, lambda: service.pace.is_crowded)
    clock = asyncio.create_task(service.run())
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stopping = asyncio.create_task(stop.wait())
    try:
        done, _ = await asyncio.wait({clock, serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if stopping not in done:
            (clock if clock in done else serving).result()  # neither ends by itself: this raises why it did
            raise Fatal("the server ended by itself")
        for accepting in server.servers:  # stop accepting; the socket itself too, or the kernel goes on queueing
            accepting.close()
        listener.close()
        await service.drain()  # ask to reconnect elsewhere
        server.should_exit = True  # let requests under way finish, with uvicorn's own bound
        await serving
    finally:
        for task in (clock, serving, stopping):
            task.cancel()
        await asyncio.gather(clock, serving, stopping, return_exceptions=True)
        await service.stop()


def _listen(settings: Settings) -> socket.socket:
    host, port = settings.gateway_host, settings.gateway_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise Fatal(f"ARENACAST_GATEWAY_PORT: cannot listen on {host}:{port}: {error.strerror}") from error


def _redis_check(service: Service, client: Redis) -> http.Check:
    async def reachable() -> str:
        return "draining" if service.is_draining else await check(client)

    return reachable


def _clickhouse_check(clickhouse: ClickHouse) -> http.Check:
    async def check() -> str:
        try:
            await clickhouse.query("SELECT 1", timeout_s=http.CHECK_TIMEOUT_S / 2)
        except (Retry, Fatal) as error:
            return f"warning: {error}; live goes on, stored events and replays do not"
        return ""

    return check
