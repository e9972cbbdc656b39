"""The state consumer's process: settings in, leases and shard workers around one Redis client, a clean stop out."""

import asyncio
import os
import secrets
import socket
import time

import uvloop

from consumers.lease import Leases, Ownership, lease_sources
from consumers.shard_worker import ShardWorker, state_sources
from core import http, logs, redis_client
from core.errors import Retry
from core.redis_client import Redis, Scripts
from core.settings import Settings


def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. Raises Fatal when the settings contradict the log."""
    logs.configure("state", settings)
    uvloop.run(_main(settings))


def unique_owner() -> str:
    """Name of this process among all consumers, new at every start."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


async def open_log(client: Redis, settings: Settings) -> tuple[str, int]:
    """(log id, shards), waiting for Redis for as long as it takes; says so every few seconds."""
    delay_s = 0.1
    while True:
        try:
            return await redis_client.identify(
                client, settings, proposal=secrets.token_hex(8), now_ms=time.time_ns() // 1_000_000
            )
        except Retry as error:
            logs.get().warning("waiting for Redis", error=str(error))
            await asyncio.sleep(delay_s)
            delay_s = min(5.0, delay_s * 2)


async def _main(settings: Settings) -> None:
    stop = http.stop_event()
    client = redis_client.connect(settings, connections_max=80)
    opening = asyncio.create_task(open_log(client, settings))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([opening, stopping], return_when=asyncio.FIRST_COMPLETED)
    if not opening.done():
        opening.cancel()
        return
    _log_id, shards = opening.result()
    scripts = Scripts(client, shards, {**lease_sources(), **state_sources()})
    leases = Leases(scripts, "state", shards, unique_owner(), settings.lease_ttl_s)

    async def work(ownership: Ownership) -> None:
        await ShardWorker(client, scripts, settings, ownership).run()

    async def check_redis() -> str:
        try:
            await redis_client.call(client.ping())
        except Retry as error:
            return str(error)
        return ""

    async with http.operations_server({"redis": check_redis}, settings.metrics_host, settings.state_metrics_port):
        await leases.run(work, stop)
    stopping.cancel()
    await client.aclose()
