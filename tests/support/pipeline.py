"""A whole installation for tests: every service a real process of its own, to be killed and started again at will.

    with running_pipeline(tmp_path) as pipeline:
        pipeline["state"].kill9()
        pipeline["state"].start()

The processes are those of `arenacast up`, started the same way, without its supervisor: a test decides who lives. There
are two gateways, so that a reader can resume on another one than before.
"""

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import redis

from core.local import launch, redis_server
from core.local.child import python_command, python_environment
from core.local.services import environment
from core.settings import Settings
from tests.support.ports import free_port
from tests.support.waiting import wait_until_sync

READY_WITHIN_S = 60.0
STOPS_WITHIN_S = 20.0


class Process:
    """One service; its output goes to a file beside its data."""

    def __init__(self, name: str, command: list[str], environ: dict[str, str], is_ready: Callable[[], bool]) -> None:
        self.name = name
        self._command = command
        self._environ = environ
        self._is_ready = is_ready
        self._process: subprocess.Popen[bytes] | None = None
        self._log = Path(environ["ARENACAST_DATA_DIR"]) / f"{name}.log"

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has written since it was first started."""
        return self._log.read_text() if self._log.exists() else ""

    def start(self, *, wait: bool = True) -> None:
        """Start it, and by default wait until it is ready."""
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                launch.wrap(self._command), env=self._environ, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until it answers; fail with its output when it died instead."""

        def ready_or_dead() -> bool:
            assert self._process is not None
            code = self._process.poll()
            if code is not None:
                raise RuntimeError(f"{self.name} ended with {code}:\n{self.log[-4000:]}")
            return self._is_ready()

        wait_until_sync(ready_or_dead, READY_WITHIN_S, f"{self.name} is ready")

    def pause(self) -> None:
        """Stop its clock (SIGSTOP), so that what it was doing can be looked at."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def revive(self) -> None:
        """Start it when it is dead, resume it when it is paused."""
        if self._process is None or self._process.poll() is not None:
            self.start()
        else:
            self.resume()

    def kill9(self) -> None:
        """End it as a crash does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(STOPS_WITHIN_S)
        self._process = None

    def terminate(self) -> int:
        """Ask it to stop; returns its exit code."""
        assert self._process is not None
        self._process.terminate()
        code = self._process.wait(STOPS_WITHIN_S)
        self._process = None
        return code

    def end(self) -> None:
        """Leave nothing behind."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            try:
                self._process.wait(STOPS_WITHIN_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None


class Pipeline:
    """Processes by name: redis, clickhouse, state, archive, ingest, gateway, gateway2."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.second_gateway_port = free_port()
        environ = python_environment(environment(settings, os.environ))
        second = environment(msgspec.structs.replace(settings, gateway_port=self.second_gateway_port), os.environ)
        self.ingest_url = f"http://127.0.0.1:{settings.ingest_port}"
        self.gateway_url = f"http://127.0.0.1:{settings.gateway_port}"
        self.second_gateway_url = f"http://127.0.0.1:{self.second_gateway_port}"
        self.clickhouse_url = f"http://127.0.0.1:{settings.clickhouse_port}"
        ready = {
            "redis": lambda: redis_server.answers(settings.redis_socket),
            "clickhouse": _answers(f"{self.clickhouse_url}/ping"),
            "state": _answers(f"http://127.0.0.1:{settings.state_metrics_port}/readyz"),
            "archive": _answers(f"http://127.0.0.1:{settings.archive_metrics_port}/readyz"),
            "ingest": _answers(f"{self.ingest_url}/readyz"),
            "gateway": _answers(f"{self.gateway_url}/readyz"),
            "gateway2": _answers(f"{self.second_gateway_url}/readyz"),
        }
        commands = {
            "redis": redis_server.command(settings),
            "clickhouse": python_command("clickhouse"),
            "state": python_command("consume", "state"),
            "archive": python_command("consume", "archive"),
            "ingest": python_command("ingest"),
            "gateway": python_command("gateway"),
            "gateway2": python_command("gateway"),
        }
        self._processes = {
            name: Process(name, command, python_environment(second) if name == "gateway2" else environ, ready[name])
            for name, command in commands.items()
        }
        self._environ = environ

    def add_archive(self) -> None:
        """Start one more archive process, named archive2."""
        settings = msgspec.structs.replace(self.settings, archive_metrics_port=free_port())
        self._processes["archive2"] = Process(
            "archive2", python_command("consume", "archive"), python_environment(environment(settings, os.environ)),
            _answers(f"http://127.0.0.1:{settings.archive_metrics_port}/readyz"),
        )  # fmt: skip
        self["archive2"].start()

    def __getitem__(self, name: str) -> Process:
        return self._processes[name]

    @property
    def redis(self) -> "redis.Redis":
        """A client of the pipeline's Redis."""
        return redis.Redis.from_url(self.settings.redis_target)

    def start(self) -> None:
        """Start everything, in order."""
        redis_server.prepare(self.settings)
        self["redis"].start()
        self["clickhouse"].start()
        subprocess.run(python_command("migrate"), env=self._environ, check=True, timeout=READY_WITHIN_S)
        rest = ("state", "archive", "ingest", "gateway", "gateway2")
        for name in rest:
            self[name].start(wait=False)
        for name in rest:
            self[name].wait_ready()

    def revive(self) -> None:
        """Let everybody run again who was killed or paused."""
        for process in self._processes.values():
            process.revive()

    def end(self) -> None:
        """Stop everything, in reverse order."""
        for process in reversed(self._processes.values()):
            process.end()

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """A command of ours, with the settings of the installation."""
        return subprocess.run(
            python_command(*arguments), env=self._environ, capture_output=True, text=True, timeout=120, check=False
        )

    def query(self, sql: str) -> list[list[str]]:
        """Rows of a ClickHouse query, every value as text."""
        request = urllib.request.Request(
            f"{self.clickhouse_url}/?database=arenacast",
            sql.encode(),
            {"X-ClickHouse-User": "default", "X-ClickHouse-Key": self.settings.clickhouse_password},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return [line.split("\t") for line in answer.read().decode().splitlines()]

    def logs(self) -> str:
        """The end of everybody's output, for a failure's message."""
        return "\n".join(f"--- {name}\n{process.log[-4000:]}" for name, process in self._processes.items())


def pipeline_settings(directory: Path, **changes: object) -> Settings:
    """Settings of an installation in `directory`, on free ports."""
    settings = Settings(
        data_dir=directory,
        ingest_key="test-ingest-key",
        voter_secret="test-voter-secret-0123456789",
        clickhouse_password="test-clickhouse-password",
        clickhouse_port=free_port(),
        ingest_port=free_port(),
        gateway_port=free_port(),
        state_metrics_port=free_port(),
        archive_metrics_port=free_port(),
        lease_ttl_s=1.0,
        archive_linger_s=0.2,
        heartbeat_s=2.0,
    )
    return msgspec.structs.replace(settings, **changes)


@contextmanager
def running_pipeline(directory: Path, **changes: object) -> Iterator[Pipeline]:
    """A pipeline with an empty log; `changes` are settings. Leases are short, so that takeovers are."""
    directory.mkdir(parents=True, exist_ok=True)
    pipeline = Pipeline(pipeline_settings(directory, **changes))
    try:
        pipeline.start()
        yield pipeline
    except BaseException:
        print(pipeline.logs())
        raise
    finally:
        pipeline.end()


def _answers(url: str) -> Callable[[], bool]:
    def ask() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError, ValueError):
            time.sleep(0.05)
            return False

    return ask
