"""Composition root of the gateway: reads nothing but its settings, makes every client, hands them down."""

import asyncio
import secrets
import time
from typing import Any

import uvloop
from starlette.applications import Starlette

from core import http, logs
from core.errors import Retry
from core.problem import HANDLERS
from core.redis_client import Redis, connect, identify
from core.settings import Settings
from gateway.api import stream
from gateway.policy import Policy
from gateway.service import Service
from gateway.takeover import TakeoverProtocol

CONNECTIONS_EXTRA = 16
"""Connections to Redis beside one blocking read per shard."""


def make_app(service: Service) -> Any:
    """The ASGI application."""
    checks: dict[str, http.Check] = {}
    routes = [*stream.routes(service), *http.operations(checks)]
    return Policy(Starlette(routes=routes, exception_handlers=HANDLERS), service.settings.cors_origins)


def run(settings: Settings, workers: int = 1) -> None:
    """Serve until SIGTERM or SIGINT, then drain."""
    logs.configure("gateway", settings)
    uvloop.run(serve(settings))


async def serve(settings: Settings) -> None:
    """One worker."""
    stop = http.stop_event()
    client = connect(settings, connections_max=64 + CONNECTIONS_EXTRA)
    log_id, shards = await _identify(client, settings)
    service = Service(settings, client, log_id, shards)
    config = http.config(make_app(service), settings.gateway_host, settings.gateway_port, http=TakeoverProtocol)
    server = http.Server(config)
    clock = asyncio.create_task(service.run())
    serving = asyncio.create_task(server.serve())
    await stop.wait()
    for listener in server.servers:
        listener.close()
    await service.drain()
    server.should_exit = True
    await serving
    clock.cancel()
    await service.stop()
    await client.aclose()


async def _identify(client: Redis, settings: Settings) -> tuple[str, int]:
    log = logs.get()
    delay_s = 0.1
    while True:
        try:
            return await identify(client, settings, proposal=secrets.token_hex(8), now_ms=int(time.time() * 1000))
        except Retry as error:
            log.warning("waiting for Redis", error=str(error))
            await asyncio.sleep(delay_s)
            delay_s = min(2.0, delay_s * 2)
