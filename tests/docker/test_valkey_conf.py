"""The Valkey of compose.yaml, as a real server reads its configuration."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from core.local.redis_server import arguments
from core.settings import Settings
from tests.docker.files import services
from tests.docker.stack import running_valkey, valkey_client

pytestmark = pytest.mark.redis

SETTINGS_COMPARED = {
    "appendonly", "appendfsync", "aof-use-rdb-preamble", "save", "maxmemory-policy", "stream-node-max-bytes",
}  # fmt: skip


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of the running server."""
    with running_valkey(tmp_path_factory.mktemp("valkey")) as number:
        yield number


def reported(port: int, *names: str) -> dict[str, str]:
    """Values of configuration parameters, by the server's own word."""
    result: dict[str, str] = valkey_client(port).config_get(*names)  # type: ignore[assignment]
    return result


def test_it_is_configured_like_the_embedded_server(port: int) -> None:
    words = arguments(Path("/data"), Path("/socket"), 2048)
    embedded = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    assert reported(port, *SETTINGS_COMPARED) == {name: embedded[name] for name in SETTINGS_COMPARED}


def test_its_memory_budget_is_the_settings_default(port: int) -> None:
    assert int(reported(port, "maxmemory")["maxmemory"]) == Settings().redis_maxmemory_mb << 20


def test_nobody_gets_in_without_the_password(port: int) -> None:
    with pytest.raises(redis.AuthenticationError):
        valkey_client(port, password=None).ping()


def test_its_data_is_on_a_volume() -> None:
    """It writes to its working directory, which is /data in the image."""
    assert "valkey-data:/data" in services()["valkey"]["volumes"]
