"""The Valkey of compose.yaml, as a real server reads its configuration."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from core.local.redis_server import arguments, binary
from core.settings import Settings
from tests.docker.files import DOCKER, interpolate, services
from tests.support.ports import free_port
from tests.support.waiting import wait_until_sync

PASSWORD = "only-a-test"
SETTINGS_COMPARED = {
    "appendonly", "appendfsync", "aof-use-rdb-preamble", "save", "maxmemory-policy", "stream-node-max-bytes",
}  # fmt: skip


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of a server started with the command and the flags of compose.yaml; only the port is ours."""
    service = services()["valkey"]
    program, configuration = service["command"]
    assert program == "valkey-server"
    mounted = {target: source for source, target, *_ in (volume.split(":") for volume in service["volumes"])}
    flags = interpolate(service["environment"], {"VALKEY_PASSWORD": PASSWORD})["VALKEY_EXTRA_FLAGS"].split()
    number = free_port()
    directory: Path = tmp_path_factory.mktemp("valkey")
    own = ["--port", str(number), "--bind", "127.0.0.1"]
    command = [str(binary()), str(DOCKER / mounted[configuration]), *flags, *own]
    with subprocess.Popen(command, cwd=directory, stdout=subprocess.DEVNULL) as process:
        try:
            wait_until_sync(lambda: answers(number), 10.0, "Valkey answers")
            yield number
        finally:
            process.terminate()
            process.wait(10)


def answers(port: int) -> bool:
    try:
        return bool(client(port).ping())
    except redis.ConnectionError:
        return False


def client(port: int, password: str | None = PASSWORD) -> redis.Redis:
    return redis.Redis(port=port, password=password, decode_responses=True)


def test_it_is_configured_like_the_embedded_server(port: int) -> None:
    words = arguments(Path("/data"), Path("/socket"), 2048)
    embedded = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    reported: dict[str, str] = client(port).config_get(*SETTINGS_COMPARED)  # type: ignore[assignment]
    assert reported == {name: embedded[name] for name in SETTINGS_COMPARED}


def test_its_memory_budget_is_the_settings_default(port: int) -> None:
    reported: dict[str, str] = client(port).config_get("maxmemory")  # type: ignore[assignment]
    assert int(reported["maxmemory"]) == Settings().redis_maxmemory_mb << 20


def test_nobody_gets_in_without_the_password(port: int) -> None:
    with pytest.raises(redis.AuthenticationError):
        client(port, password=None).ping()
