"""What a 202 promises, on servers configured in different ways."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis.asyncio as redis

from core.errors import Retry
from core.redis_client import connect
from core.settings import Settings
from ingest import ack
from ingest.ack import AckRedis, Durability, Server, durability, inspect
from tests.ingest.conftest import Log, event, http_client
from tests.support.ports import free_port
from tests.support.redis_server import RedisServer, redis_binary, running_redis
from tests.support.waiting import wait_until

STRONG = Server(has_aof=True, fsync="always", has_waitaof=True, replicas=0)
SCRIPT = "return redis.call('INCR', KEYS[1])"


def asked(mode: str) -> Settings:
    return Settings(ack=mode)


@pytest.mark.parametrize(
    ("mode", "server", "command", "weakness"),
    [
        ("memory", STRONG, None, ""),
        ("fsync", STRONG, None, ""),
        ("fsync", msgspec.structs.replace(STRONG, fsync="everysec"), "WAITAOF", ""),
        ("fsync", msgspec.structs.replace(STRONG, fsync=None), "WAITAOF", ""),
        ("fsync", msgspec.structs.replace(STRONG, fsync="everysec", has_waitaof=False), None, "warning: "),
        ("fsync", msgspec.structs.replace(STRONG, fsync=None, has_waitaof=False), None, "warning: "),
        ("fsync", msgspec.structs.replace(STRONG, has_aof=False), None, "warning: "),
        ("replicas:2", msgspec.structs.replace(STRONG, replicas=2), "WAIT", ""),
        ("replicas:2", msgspec.structs.replace(STRONG, replicas=1), "WAIT", "ack is replicas:2"),
    ],
)
def test_what_is_done_for_a_mode_on_a_server(mode: str, server: Server, command: str | None, weakness: str) -> None:
    found = durability(asked(mode), server)
    assert (found.wait[0] if found.wait else None) == command
    assert found.weakness.startswith(weakness)
    assert bool(found.weakness) == bool(weakness)


@pytest.fixture(params=["valkey", "redis"])
def everysec(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """A server that fsyncs once a second: Valkey, which has WAITAOF, and Debian's Redis 7.0, which has not."""
    if request.param == "redis" and redis_binary() is None:
        pytest.skip("no redis-server on this machine")
    with running_redis(tmp_path / "everysec", request.param, appendfsync="everysec") as server:
        yield server


@asynccontextmanager
async def writer(url: str, durability: Durability) -> AsyncIterator[AckRedis]:
    plain = connect(Settings(redis_url=url))
    client = AckRedis(connection_pool=plain.connection_pool)
    client.durability = durability
    try:
        yield client
    finally:
        await plain.aclose(close_connection_pool=True)


async def calls(client: redis.Redis, command: str) -> int:
    stats: Any = await client.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])


async def test_a_server_is_seen_as_it_is_and_waited_for_as_it_needs(everysec: RedisServer) -> None:
    async with writer(everysec.url, Durability()) as client:
        seen = await inspect(client)
        has_waitaof = "valkey_version" in await client.info("server")
        assert seen == Server(has_aof=True, fsync="everysec", has_waitaof=has_waitaof, replicas=0)
        client.durability = durability(asked("fsync"), seen)
        before = await calls(client, "waitaof")
        assert await client.evalsha(await client.script_load(SCRIPT), 1, "n") == 1
        assert await calls(client, "waitaof") - before == (1 if has_waitaof else 0)
        await client.config_set("appendfsync", "always")
        assert not durability(asked("fsync"), await inspect(client)).weakness
        await client.config_set("appendonly", "no")
        assert "appendonly off" in durability(asked("fsync"), await inspect(client)).weakness


async def test_a_server_that_hides_its_configuration_is_asked_to_wait(redis_url: str) -> None:
    async with connect(Settings(redis_url=redis_url)) as admin:
        await admin.acl_setuser("managed", enabled=True, passwords=["+pw"], commands=["+@all", "-config"], keys="*")
        path = redis_url.removeprefix("unix://")
        try:
            async with redis.Redis(unix_socket_path=path, username="managed", password="pw", protocol=2) as client:
                assert (await inspect(client)).fsync is None
        finally:
            await admin.acl_deluser("managed")


async def test_too_few_replicas_are_told_although_the_effect_is_there(redis_url: str) -> None:
    async with writer(redis_url, Durability(("WAIT", 1, 20), 1)) as client:
        sha = await client.script_load(SCRIPT)
        with pytest.raises(Retry):
            await client.evalsha(sha, 1, "n")
        assert await client.get("n") == b"1"
        with pytest.raises(redis.ResponseError):  # the script's own error comes first
            await client.evalsha("0" * 40, 1, "n")


async def test_a_failing_wait_is_told(redis_url: str) -> None:
    async with writer(redis_url, Durability(("WAITAOF", "x", 0, 20), 1)) as client:
        with pytest.raises(Retry):
            await client.evalsha(await client.script_load(SCRIPT), 1, "n")


async def test_a_replica_confirms(redis_url: str, tmp_path: Path) -> None:
    port = free_port()
    with running_redis(tmp_path / "replica") as replica:
        async with (
            writer(redis_url, Durability(("WAIT", 1, 3000), 1)) as client,
            redis.Redis.from_url(replica.url) as follower,
        ):
            await client.config_set("port", port)
            await client.config_set("repl-diskless-sync-delay", 0)
            try:
                await follower.replicaof("127.0.0.1", port)

                async def is_following() -> bool:
                    return (await inspect(client)).replicas == 1

                await wait_until(is_following, what="the replica follows")
                assert not durability(asked("replicas:1"), await inspect(client)).weakness
                assert await client.evalsha(await client.script_load(SCRIPT), 1, "n") == 1
                assert await follower.get("n") == b"1"
            finally:
                await client.config_set("port", 0)


async def test_a_promise_that_fails_is_503_and_the_repeat_counts_duplicates(
    settings: Settings, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ack, "WAIT_MS", 20)
    body = [event("e1"), event("e2")]
    async with http_client(msgspec.structs.replace(settings, ack="replicas:1")) as client:
        answer = await client.post("/api/v1/events", json=body)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["redis"]) == (503, "ack is replicas:1, the server has 0")
    assert len(await log.entries()) == 2
    async with http_client(settings) as client:
        assert (await client.post("/api/v1/events", json=body)).json() == {"accepted": 0, "duplicates": 2}


async def test_many_batches_share_one_wait_for_a_disk_that_syncs_once_a_second(
    settings: Settings, tmp_path: Path
) -> None:
    with running_redis(tmp_path / "everysec", appendfsync="everysec") as server:
        own = msgspec.structs.replace(settings, redis_url=server.url)
        async with connect(own) as admin, http_client(own) as client:
            before = await calls(admin, "waitaof")
            bodies = [[event(f"{number}-{n}") for n in range(500)] for number in range(32)]
            answers = await asyncio.gather(*(client.post("/api/v1/events", json=body) for body in bodies))
            assert [answer.json() for answer in answers] == [{"accepted": 500, "duplicates": 0}] * 32
            looks = 8  # the watch asks for the command too, about once a second
            assert await calls(admin, "waitaof") - before <= 4 + looks
            assert len(await Log(admin).entries()) == 16_000


async def test_a_weak_server_is_ready_with_a_warning(
    settings: Settings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with running_redis(tmp_path / "weak") as server:
        weak = msgspec.structs.replace(settings, redis_url=server.url)
        async with connect(weak) as admin, http_client(weak) as client:
            assert (await client.get("/readyz")).json()["checks"]["redis"] == "ok"
            await admin.config_set("appendonly", "no")
            ready = await client.get("/readyz")
            assert ready.status_code == 200
            assert ready.json()["checks"]["redis"].startswith("warning: ack is fsync")
            assert (await client.post("/api/v1/events", json=event("e1"))).status_code == 202
    assert "appendonly off" in "".join(capfd.readouterr())
