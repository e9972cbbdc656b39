"""The pipeline under test: our own `arenacast up` in an empty data directory, or one that runs already."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from core.errors import Fatal
from core.local import launch
from core.local.child import python_command, python_environment
from core.local.services import environment
from core.settings import Settings
from loadtests.observe import Endpoints

READY_WITHIN_S = 120.0
STOPS_WITHIN_S = 60.0
_POLL_S = 0.1


@contextmanager
def embedded(directory: Path, shards: int = 4) -> Iterator[tuple[Endpoints, int]]:
    """Run `arenacast up` as a user would, on free ports; gives its endpoints and its pid. Raises Fatal."""
    settings = Settings(
        data_dir=directory / "data", shards=shards, clickhouse_port=_free_port(), ingest_port=_free_port(),
        gateway_port=_free_port(), state_metrics_port=_free_port(), archive_metrics_port=_free_port(),
    )  # fmt: skip
    command = launch.wrap(python_command("up", "--no-demo"))
    environ = python_environment(environment(settings, os.environ))
    log = directory / "up.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,  # Ctrl-C is for us, and we stop it in order
        )  # fmt: skip
    try:
        _wait_ready(process, settings, log)
        yield endpoints(settings), process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOPS_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def endpoints(settings: Settings) -> Endpoints:
    """Where a pipeline with these settings is, on this machine."""
    return Endpoints(
        f"http://127.0.0.1:{settings.ingest_port}",
        [f"http://127.0.0.1:{settings.gateway_port}"],
        settings.clickhouse_target,
        f"http://127.0.0.1:{settings.state_metrics_port}",
        settings.secret("ingest_key"),
    )


def _wait_ready(process: subprocess.Popen[bytes], settings: Settings, log: Path) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    ports = (settings.ingest_port, settings.gateway_port, settings.state_metrics_port, settings.archive_metrics_port)
    while not all(map(_is_ready, ports)):
        if process.poll() is not None or time.monotonic() > deadline:
            raise Fatal(f"the pipeline did not start:\n{log.read_text()[-3000:]}")
        time.sleep(_POLL_S)


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=3.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
