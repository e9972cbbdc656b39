"""The composition root of ingest: reads the settings, makes the clients, serves until told to stop."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvloop
from starlette.types import ASGIApp

from core import collector, logs
from core.clock import Clock, now_us
from core.digest import voter_key
from core.errors import Fatal
from core.http import Server, application, config, operations, stop_event
from core.redis_client import connect, find_log, reach
from core.settings import Settings
from ingest.ack import AckRedis
from ingest.api import Api
from ingest.append import Appender, sources
from ingest.batcher import Batcher
from ingest.door import Door
from ingest.polls import Polls
from ingest.watch import Watch, WatchedScripts

CONNECTIONS_SPARE = 4
"""Writing connections beside one per shard: poll changes, and the scripts of a new incarnation."""
CONNECTIONS_READING = 8
"""For definitions and the watch: apart, so that many votes for unknown polls cannot hold up the log."""


def run(settings: Settings) -> None:
    """The service `ingest`, until SIGTERM or SIGINT. Raises Fatal with one line when it cannot work."""
    logs.configure("ingest", settings)
    collector.relax()
    uvloop.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    stop = stop_event()
    with _listen(settings.ingest_host, settings.ingest_port) as listener:
        async with service(settings, stop) as app:
            if app is None:
                return
            server = Server(config(app, settings.ingest_host, settings.ingest_port))
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            stopping = asyncio.create_task(stop.wait())
            logs.get().info("listening", host=settings.ingest_host, port=listener.getsockname()[1])
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            server.should_exit = True  # finishes the requests at hand, at most for the grace period
            await serving
            stopping.cancel()
    logs.get().info("stopped")


@asynccontextmanager
async def service(settings: Settings, stop: asyncio.Event, clock: Clock = now_us) -> AsyncIterator[ASGIApp | None]:
    """The ASGI application with everything behind it; None when `stop` came before Redis did. Raises Fatal."""
    key, voter_secret = settings.secret("ingest_key"), settings.secret("voter_secret")
    async with connect(settings, connections_max=CONNECTIONS_READING) as reader:
        identity = await find_log(reader, settings, stop)
        if identity is None:
            yield None
            return
        log_id, shards = identity
        logs.get().info("writing to", log_id=log_id, shards=shards)
        pool = connect(settings, connections_max=shards + CONNECTIONS_SPARE).connection_pool
        writer = AckRedis(connection_pool=pool)
        watch = Watch(reader, writer, settings)
        scripts = WatchedScripts(writer, shards, sources(), watch)
        await reach(stop, scripts.load)
        watching = asyncio.create_task(watch.run())
        appender = Appender(scripts, shards, settings.vote_dedup_window_s)
        batching = Batcher(
            appender,
            batch_max=settings.append_batch_max,
            queue_max=settings.append_queue_max,
            waits=lambda: bool(writer.durability.wait),
        )
        try:
            async with batching as batcher:
                api = Api(Polls(reader, scripts, shards, clock), batcher, watch, voter_key(voter_secret), clock)
                routes = [*api.routes(), *operations({"redis": watch.check})]
                yield Door(application(routes), key)
        finally:
            watching.cancel()
            await pool.disconnect()


def _listen(host: str, port: int) -> socket.socket:
    """Bind before anything else, so that a taken port is one clear line."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise Fatal(f"ARENACAST_INGEST_PORT: cannot listen on {host}:{port}: {error.strerror}") from error
