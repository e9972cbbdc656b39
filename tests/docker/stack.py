"""Services of compose.yaml as processes of this machine: their commands, their environment, other addresses."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from core.local.child import python_command, python_environment
from core.local.redis_server import binary
from core.settings import PREFIX
from tests.docker.files import DOCKER, interpolate, read_env, services
from tests.support.pipeline import Process
from tests.support.ports import free_port
from tests.support.waiting import wait_until_sync

ENV = {
    name: value or f"{name.lower().replace('_', '')}0123456789abcdef"
    for name, value in read_env((DOCKER / ".env.example").read_text()).items()
}
"""What new-env.sh would write, with secrets that are none."""


def environment(service: str) -> dict[str, str]:
    """Environment of a service, as its process sees it."""
    result: dict[str, str] = interpolate(services()[service].get("environment", {}), ENV)
    return result


@contextmanager
def running_valkey(directory: Path) -> Iterator[int]:
    """Port of a Valkey with the stack's command, configuration and flags."""
    service = services()["valkey"]
    program, configuration = service["command"]
    assert program == "valkey-server"
    sources = {volume.split(":")[1]: volume.split(":")[0] for volume in service["volumes"]}
    flags = environment("valkey")["VALKEY_EXTRA_FLAGS"].split()
    port = free_port()
    command = [str(binary()), str(DOCKER / sources[configuration]), *flags, "--port", str(port), "--bind", "127.0.0.1"]
    with subprocess.Popen(command, cwd=directory, stdout=subprocess.DEVNULL) as process:
        try:
            wait_until_sync(lambda: _answers(port), 10.0, "Valkey answers")
            yield port
        finally:
            process.terminate()
            process.wait(10)


def valkey_client(port: int, password: str | None = ENV["VALKEY_PASSWORD"]) -> redis.Redis:
    """A client of `running_valkey`."""
    return redis.Redis(port=port, password=password, decode_responses=True, retry=Retry(NoBackoff(), 0))


def service(name: str, directory: Path, valkey_port: int, address: str, port: int) -> Process:
    """A service of ours at `address`:`port` instead of in a container; not started yet."""
    environ = {
        variable: value.replace("@valkey:6379", f"@127.0.0.1:{valkey_port}").replace("@clickhouse:8123", "@127.0.0.1:1")
        for variable, value in environment(name).items()
    }
    for variable in environ:
        if variable.startswith(PREFIX) and variable.endswith("_HOST"):
            environ[variable] = address
        elif variable.startswith(PREFIX) and variable.endswith("_PORT"):
            environ[variable] = str(port)
    environ[f"{PREFIX}DATA_DIR"] = str(directory)
    command = python_command(*services()[name]["command"])
    return Process(
        f"{name}-{address}-{port}", command, python_environment(environ), lambda: _is_ready(f"http://{address}:{port}")
    )


def _is_ready(url: str) -> bool:
    try:
        with urlopen(f"{url}/readyz", timeout=3) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _answers(port: int) -> bool:
    try:
        return bool(valkey_client(port).ping())
    except redis.ConnectionError:
        return False
