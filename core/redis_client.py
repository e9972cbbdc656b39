"""Connections to Redis, its scripts, and the guard that ties writing to a known incarnation of the server.

A server that restarted or failed over may have rolled back (AOF tail lost, lagging replica, restored backup). The
script cache of a server dies with its process, so `NOSCRIPT` is a free and exact sign of a new incarnation. The rule
that makes use of it: *nobody loads a writing script into a server before having ensured the shards' epochs there*,
and both go over one connection, which cannot span two incarnations. `Scripts` is the only place that loads scripts.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from secrets import token_hex
from typing import Any, TypeVar, cast

import redis.asyncio as redis
from redis.asyncio.retry import Retry as RedisRetry
from redis.backoff import NoBackoff
from redis.exceptions import (
    BusyLoadingError,
    ConnectionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
)

from core import keys, logs
from core.backoff import delay_s
from core.clock import now_us
from core.errors import Fatal, Fenced, Retry
from core.settings import Settings

T = TypeVar("T")
Redis = redis.Redis
Argument = bytes | str | int | float

REACH_PAUSE_MAX_S = 2.0
"""Longest pause between two attempts to reach Redis at the start."""

_TRANSIENT = (ConnectionError, TimeoutError, BusyLoadingError, OutOfMemoryError, ReadOnlyError, OSError)
_TRANSIENT_CODES = ("OOM", "MISCONF", "BUSY ", "MASTERDOWN", "NOREPLICAS", "CLUSTERDOWN", "TRYAGAIN")
"""Among them MISCONF: the append-only file cannot be written (disk full), which an operator can mend."""


def connect(settings: Settings, *, connections_max: int = 16) -> Redis:
    """A client with a bounded pool. Opens nothing yet.

    No automatic retries: whoever calls knows whether a repeat is harmless, and a silent repeat of an append would
    report its own first attempt as a duplicate. `socket_timeout` exceeds the longest blocking read (1 s) so that a
    server that hangs is noticed.
    """
    pool = redis.BlockingConnectionPool.from_url(
        settings.redis_target,
        max_connections=connections_max,
        timeout=5,
        socket_timeout=5.0,
        socket_connect_timeout=2.0,
        retry=RedisRetry(NoBackoff(), 0),
        health_check_interval=0,
        protocol=2,
    )
    return redis.Redis(connection_pool=pool)


def translate(error: Exception) -> Exception:
    """What a Redis error means to the caller: Retry, Fenced, or the error itself."""
    if isinstance(error, ResponseError) and str(error).startswith("FENCED"):
        return Fenced(str(error))
    if isinstance(error, ResponseError) and str(error).startswith("STALE"):
        return Retry(str(error))
    if isinstance(error, _TRANSIENT) or str(error).startswith(_TRANSIENT_CODES):
        return Retry(f"Redis: {type(error).__name__}: {error}")
    return error


async def call(awaitable: Awaitable[Any] | Any) -> Any:
    """Await a Redis call; raises Retry or Fenced where that is what its error means."""
    try:
        return await awaitable
    except (RedisError, OSError) as error:
        raise translate(error) from error


async def memory_share(client: Redis) -> float:
    """Used share of `maxmemory` as the server itself counts it, 0.0 without a limit. Raises Retry."""
    info = await call(client.info("memory"))
    limit = int(info.get("maxmemory", 0))
    used = int(info["used_memory"]) - int(info.get("mem_not_counted_for_evict", 0))
    return used / limit if limit else 0.0


def lua(package: str, name: str) -> str:
    """Source of `<package>/lua/<name>.lua`."""
    return (files(package) / "lua" / f"{name}.lua").read_text()


class Scripts:
    """The scripts of one process, loaded under the incarnation rule of the module docstring."""

    def __init__(self, client: Redis, shards: int, sources: dict[str, str]) -> None:
        """`sources` maps a script's name to its Lua source; `shards` are the shards whose epochs it writes under."""
        self._client = client
        self._shards = shards
        self._sources = sources
        self._ensure_epoch = lua("core", "ensure_epoch")
        self._digests: dict[str, str] = {}
        self._loading = asyncio.Lock()
        self.loads = 0
        """How often scripts were loaded: a change tells that the server is another incarnation."""

    async def load(self) -> None:
        """Ensure every shard's epoch, then load all scripts, over one connection.

        One after the other and not as a pipeline, which would go on to load after an epoch that could not be
        written: then a script loaded here would serve another process that still believes in the old epoch.
        """
        self._digests = await call(self._load())
        self.loads += 1

    async def _load(self) -> dict[str, str]:
        async with self._client.client() as connection:  # fails, and does not reconnect, when the server goes away
            for shard in range(self._shards):
                await connection.eval(self._ensure_epoch, 2, keys.epochs(shard), keys.events(shard))
            return {name: await connection.script_load(source) for name, source in self._sources.items()}

    async def ensure(self) -> None:
        """Load the scripts unless this very server has them; call it before trusting what Redis says is committed."""
        loads = self.loads
        if not self._digests or not all(await call(self._client.script_exists(*self._digests.values()))):
            await self._load_once(loads)

    async def run(self, name: str, key_names: Sequence[str], args: Sequence[Argument]) -> Any:
        """Run a script by name. Raises Retry (transient; the effect may or may not have happened) or Fenced."""
        for attempt in (1, 2):
            loads = self.loads
            if not self._digests:
                await self._load_once(loads)
            try:
                return await call(self._client.evalsha(self._digests[name], len(key_names), *key_names, *args))
            except NoScriptError:
                if attempt == 2:
                    raise Retry(f"Redis lost the script {name} twice") from None
                await self._load_once(loads)
        raise AssertionError("unreachable")

    async def _load_once(self, seen_loads: int) -> None:
        async with self._loading:
            if self.loads == seen_loads:
                await self.load()


_IDENTIFY = """
-- Identity of the log, written once. KEYS[1] arenacast:log. ARGV: id, shards or "" when any will do, created_ms.
-- Returns {id, shards}. Atomic, so that services that start together agree.
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('HSET', KEYS[1], 'id', ARGV[1], 'shards', ARGV[2] ~= '' and ARGV[2] or '4', 'created_ms', ARGV[3])
end
return redis.call('HMGET', KEYS[1], 'id', 'shards')
"""


async def identify(client: Redis, settings: Settings, *, proposal: str, now_ms: int) -> tuple[str, int]:
    """(log id, number of shards), fixed in Redis by whoever comes first.

    `proposal` is the id a new log would get. Raises Fatal when ARENACAST_SHARDS contradicts what is fixed, Retry when
    Redis is away.
    """
    wanted = "" if settings.shards is None else str(settings.shards)
    reply = await call(client.eval(_IDENTIFY, 1, keys.LOG, proposal, wanted, str(now_ms)))
    log_id, shards = (cast(bytes, part).decode() for part in reply)
    if wanted and wanted != shards:
        raise Fatal(f"ARENACAST_SHARDS is {wanted}, but this log was created with {shards} shards, which is final")
    return log_id, int(shards)


async def reach(stop: asyncio.Event, attempt: Callable[[], Awaitable[T]]) -> T | None:
    """Result of `attempt`, repeated until Redis is there, which is said each time; None once told to stop."""
    stopping = asyncio.ensure_future(stop.wait())
    failures = 0
    try:
        while not stopping.done():
            trying = asyncio.ensure_future(attempt())
            await asyncio.wait({trying, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not trying.done():
                trying.cancel()
                await asyncio.wait({trying})
                break
            try:
                return trying.result()
            except Retry as error:
                failures += 1
                logs.get().warning("waiting for Redis", error=str(error))
            await asyncio.wait({stopping}, timeout=delay_s(failures, REACH_PAUSE_MAX_S))
    finally:
        stopping.cancel()
    return None


async def find_log(client: Redis, settings: Settings, stop: asyncio.Event) -> tuple[str, int] | None:
    """Which log this is and its number of shards, waiting for Redis; None once told to stop. Raises Fatal."""
    proposal = token_hex(8)
    return await reach(stop, lambda: identify(client, settings, proposal=proposal, now_ms=now_us() // 1000))


async def check(client: Redis) -> str:
    """For /readyz: "" when Redis answers, else why it does not."""
    try:
        await call(client.ping())
    except Retry as error:
        return str(error)
    return ""
