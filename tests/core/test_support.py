"""The servers that every other test stands on."""

from pathlib import Path

import pytest
import redis

from tests.support.processes import is_alive
from tests.support.redis_server import Binary, redis_binary, running_redis


@pytest.mark.redis
@pytest.mark.parametrize("binary", ["valkey", "redis"])
def test_a_test_server_keeps_acknowledged_writes_over_kill_9(tmp_path: Path, binary: Binary) -> None:
    if binary == "redis" and redis_binary() is None:
        pytest.skip("no redis-server on this machine")
    with running_redis(tmp_path, binary) as server:
        with redis.Redis.from_url(server.url) as client:
            client.set("k", "v")
        before = server.pid
        server.kill9()
        server.start()
        with redis.Redis.from_url(server.url) as client:
            assert client.get("k") == b"v"
        after = server.pid
        assert not is_alive(before)
    assert not is_alive(after)


@pytest.mark.redis
def test_redis_url_is_an_empty_server(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set("left", "over")


@pytest.mark.redis
def test_redis_url_is_an_empty_server_every_time(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set("left", "over")
