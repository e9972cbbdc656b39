"""What a 202 promises (ARENACAST_ACK), made true on every script call, and whether the server can keep it.

    fsync        on disk. A server with `appendonly yes` and `appendfsync always` replies after the fsync anyway; on
                 others `WAITAOF 1 0` follows each call (Valkey, Redis >= 7.2). A server that has neither gives less.
    replicas:N   `WAIT N` follows each call; fewer replicas within the time: the caller hears Retry.
    memory       the server's reply.

WAIT and WAITAOF speak for the writes of their own connection only, so they are sent in one transmission with the
script. Sent apart, a reconnect in between would put them on a connection without writes, and they would say yes.
"""

from collections.abc import Mapping
from typing import Any

import redis.asyncio as redis
from msgspec import Struct
from redis.exceptions import ResponseError

from core.errors import Retry
from core.redis_client import Redis, call
from core.settings import Settings

WAIT_MS = 3000
"""Longest wait for disk or replicas: `appendfsync everysec` may take 2 s; below the client's socket timeout of 5 s."""


class Durability(Struct, frozen=True):
    """How calls are acknowledged on the server as it is configured now."""

    wait: tuple[str | int, ...] = ()  # command sent after each script call
    wanted: int = 0  # what its (first) reply must reach
    weakness: str = ""  # how far the server stays behind ARENACAST_ACK, for an operator; "" when it keeps it


class Server(Struct, frozen=True):
    """What we need to know about a server. None: it does not say (managed servers hide CONFIG)."""

    has_aof: bool
    fsync: str | None
    has_waitaof: bool
    replicas: int


def durability(settings: Settings, server: Server) -> Durability:
    """What to do for ARENACAST_ACK on this server."""
    if settings.ack == "memory":
        return Durability()
    if wanted := settings.ack_replicas:
        missing = "" if server.replicas >= wanted else f"ack is replicas:{wanted}, the server has {server.replicas}"
        return Durability(("WAIT", wanted, WAIT_MS), wanted, missing)
    if not server.has_aof:
        return Durability(weakness="warning: ack is fsync, but the server has appendonly off: 202 means memory only")
    if server.fsync == "always":
        return Durability()
    if server.has_waitaof:
        return Durability(("WAITAOF", 1, 0, WAIT_MS), 1)
    return Durability(
        weakness=f"warning: ack is fsync, but the server has appendfsync {server.fsync or 'unknown'} and no WAITAOF:"
        " a crash may lose what the last seconds acknowledged"
    )


async def inspect(client: Redis) -> Server:
    """Ask the server. Raises Retry when it is away."""
    pipe = client.pipeline(transaction=False)
    pipe.info("persistence")
    pipe.info("replication")
    pipe.execute_command("WAITAOF", 0, 0, 1)  # waits for nothing: an error where the command does not exist
    pipe.config_get("appendfsync")
    persistence, replication, waitaof, config = await call(pipe.execute(raise_on_error=False))
    for reply in (persistence, replication):
        if isinstance(reply, Exception):
            raise Retry("Redis: INFO failed") from reply
    return Server(
        has_aof=persistence.get("aof_enabled") == 1,
        fsync=config.get("appendfsync") if isinstance(config, Mapping) else None,
        has_waitaof=not isinstance(waitaof, Exception),
        replicas=sum(1 for replica in replication.values() if _is_online(replica)),
    )


def _is_online(entry: object) -> bool:
    """Of INFO replication: `slave<n>` of a replica that follows; one that still copies cannot confirm anything."""
    return isinstance(entry, Mapping) and entry.get("state") == "online"


class AckRedis(redis.Redis):
    """A client whose script calls are acknowledged as `durability` says; everything else is a plain client."""

    durability = Durability()

    async def evalsha(self, sha: str, numkeys: int, *keys_and_args: Any) -> Any:
        """Run a script and wait as promised. Raises Retry when the promise cannot be kept: the effect is there."""
        expected = self.durability
        if not expected.wait:
            return await super().evalsha(sha, numkeys, *keys_and_args)
        pipe = self.pipeline(transaction=False)
        pipe.execute_command("EVALSHA", sha, numkeys, *keys_and_args)
        pipe.execute_command(*expected.wait)
        reply, reached = await pipe.execute(raise_on_error=False)
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reached, ResponseError):
            raise Retry(f"Redis: {expected.wait[0]} failed: {reached}") from reached
        count = reached[0] if isinstance(reached, list) else reached
        if count < expected.wanted:
            raise Retry(f"Redis: {expected.wait[0]} reached {count} of {expected.wanted} within {WAIT_MS} ms")
        return reply
