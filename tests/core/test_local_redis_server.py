"""The embedded Valkey as `arenacast up` runs it."""

import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest
import redis

from core.errors import Fatal
from core.local.redis_server import answers, binary, command, prepare
from core.settings import Settings
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until_sync

pytestmark = pytest.mark.redis


def test_binary_of_the_package_is_there_and_runs() -> None:
    output = subprocess.run([str(binary()), "--version"], capture_output=True, text=True, check=True).stdout
    assert output.startswith("Valkey server v=9")


def test_server_runs_as_configured_on_a_socket_only_we_may_use(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", redis_maxmemory_mb=77)
    prepare(settings)
    process = subprocess.Popen(command(settings), stdout=subprocess.DEVNULL)
    try:
        wait_until_sync(lambda: answers(settings.redis_socket))
        assert stat.S_IMODE(settings.redis_socket.stat().st_mode) == 0o700
        with redis.Redis.from_url(settings.redis_target) as client:
            found = client.config_get("*")
            wanted = {
                "port": "0",
                "appendonly": "yes",
                "appendfsync": "always",
                "aof-use-rdb-preamble": "yes",
                "save": "",
                "maxmemory": str(77 * 1024 * 1024),
                "maxmemory-policy": "noeviction",
                "dir": str(settings.data_dir / "redis"),
            }
            assert {name: found[name] for name in wanted} == wanted
        with pytest.raises(Fatal, match="already running"):
            prepare(settings)
    finally:
        process.terminate()
        process.wait(10)


def test_socket_that_a_killed_server_left_is_no_obstacle(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(settings.redis_socket))
    assert settings.redis_socket.exists()
    prepare(settings)
    assert not settings.redis_socket.exists()


def test_answer_means_that_the_data_is_loaded(redis_server: RedisServer, tmp_path: Path) -> None:
    assert answers(redis_server.socket)
    assert not answers(tmp_path / "nobody.sock")


def test_url_of_a_socket_with_odd_characters_is_understood(tmp_path: Path) -> None:
    """The path stands in a URL: it must arrive as it was."""
    settings = Settings(data_dir=tmp_path / "a b%41?#")
    client = redis.Redis.from_url(settings.redis_target)
    assert client.connection_pool.connection_kwargs["path"] == os.fspath(settings.redis_socket)
