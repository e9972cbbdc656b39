"""`arenacast up` with every real service: starts, restarts what dies, stops clean, dies whole, finds its data again."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from core.local.keyfiles import locked
from core.settings import Settings, load
from tests.support.ports import free_port
from tests.support.processes import descendants, is_alive
from tests.support.waiting import wait_until_sync

pytestmark = [
    pytest.mark.redis,
    pytest.mark.clickhouse,
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc"),
]

ROOT = Path(__file__).resolve().parents[2]
STARTS_WITHIN_S = 90.0
STOPS_WITHIN_S = 60.0
SERVICES = ["archive", "clickhouse", "elo", "gateway", "ingest", "redis", "state"]


class Up:
    """One data directory and the `arenacast up` that runs on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.redis_url = ""  # empty: the embedded one
        self.ports = {
            name: free_port() for name in ("ingest", "gateway", "clickhouse", "state_metrics", "archive_metrics")
        }
        self.reader = httpx.Client(base_url=f"http://127.0.0.1:{self.ports['gateway']}", trust_env=False)
        self.writer = httpx.Client(base_url=f"http://127.0.0.1:{self.ports['ingest']}", trust_env=False)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def environ(self) -> dict[str, str]:
        """Variables of the command."""
        variables = {f"ARENACAST_{name.upper()}_PORT": str(port) for name, port in self.ports.items()}
        rest = {name: value for name, value in os.environ.items() if not name.startswith("ARENACAST_")}
        variables |= {"ARENACAST_REDIS_URL": self.redis_url, "ARENACAST_ELO": "on"}
        return {**rest, **variables, "ARENACAST_DATA_DIR": str(self.directory), "PYTHONPATH": str(ROOT)}

    @property
    def settings(self) -> Settings:
        """As the command reads them."""
        return load(self.environ)

    def start(self, *arguments: str) -> None:
        """Start it and wait until it says that all is ready."""
        before = self.terminal.count("Arenacast is running")
        with self.log.open("ab") as output:
            command = [sys.executable, "-m", "core.cli", "up", *arguments]
            self.process = subprocess.Popen(
                command,
                cwd=self.directory.parent,
                env=self.environ,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

        def is_running() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                pytest.fail(self.terminal)
            return self.terminal.count("Arenacast is running") > before

        wait_until_sync(is_running, STARTS_WITHIN_S, "everything is ready")
        self.writer.headers["Authorization"] = f"Bearer {(self.directory / 'ingest.key').read_text().strip()}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> Path:
        """What a terminal would show."""
        return self.directory.parent / "terminal.log"

    @property
    def terminal(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def says(self, text: str) -> bool:
        """Whether the terminal has shown `text`."""
        return text in self.terminal

    def children(self) -> dict[str, int]:
        """Pid of each service, by the name of its log."""
        words = {
            "valkey-server": "redis", "core.cli clickhouse": "clickhouse", "consume state": "state",
            "consume archive": "archive", "core.cli ingest": "ingest", "core.cli gateway": "gateway",
            "core.cli demo": "demo", "core.cli elo": "elo",
        }  # fmt: skip
        found: dict[str, int] = {}
        for pid, line in descendants(self.pid).items():
            for word, name in words.items():
                if word in line:
                    found[name] = min(pid, found.get(name, pid))  # a service may have children of its own
        return found

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal it and wait for its end; its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(STOPS_WITHIN_S)

    def vote(self, number: int, poll: str = "p1") -> None:
        """Cast one vote."""
        body = {"event_id": f"e{number}", "poll_id": poll, "option": "a", "voter": f"v{number}"}
        answer = self.writer.post("/api/v1/votes", json=body)
        assert answer.status_code == 202, answer.text

    def poll(self, poll: str = "p1") -> dict[str, Any]:
        """Hot state of a poll."""
        answer = self.reader.get(f"/api/v1/polls/{poll}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def archived_votes(self) -> int:
        """Rows of raw votes in ClickHouse, asked as an analyst does."""
        key = (self.directory / "clickhouse.key").read_text().strip()
        answer = httpx.post(
            f"http://127.0.0.1:{self.ports['clickhouse']}/",
            content="SELECT count() FROM arenacast.votes",
            headers={"X-ClickHouse-User": "default", "X-ClickHouse-Key": key},
            trust_env=False,
        )
        assert answer.status_code == 200, answer.text
        return int(answer.text)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    up = Up(tmp_path / "da ta")  # a path may hold anything
    yield up
    if up.process is not None and up.process.poll() is None:
        up.process.kill()
        up.process.wait()
    up.reader.close()
    up.writer.close()


POLL = {"title": "t", "options": [{"id": "a", "label": "A"}, {"id": "b", "label": "B"}]}


@pytest.mark.timeout(240)
def test_life_of_an_installation(up: Up) -> None:
    """One start is a few seconds, so one test goes through a life: votes, crashes, stop, second start, kill -9."""
    up.start()
    assert sorted(up.children()) == SERVICES
    assert up.writer.put("/api/v1/polls/p1", json=POLL).status_code == 201
    for number in range(10):
        up.vote(number)
    wait_until_sync(lambda: up.poll()["total"] == 10)
    wait_until_sync(lambda: up.archived_votes() == 10, 20)

    first = up.children()
    for name in SERVICES:
        os.kill(first[name], signal.SIGKILL)
        wait_until_sync(partial(up.says, f"{name} is ready again"), 60, f"{name} is back")
    assert up.terminal.count("ended with signal SIGKILL, restart 1") == len(SERVICES)
    assert not set(first.values()) & set(up.children().values())
    wait_until_sync(lambda: up.writer.get("/readyz").status_code == 200, 20)
    up.vote(10)
    wait_until_sync(lambda: up.poll()["total"] == 11, 20)

    children = descendants(up.pid)
    assert up.stop() == 0
    assert not [line for pid, line in children.items() if is_alive(pid)]
    assert up.terminal.splitlines()[-1].endswith("stopped")
    assert "is killed" not in up.terminal, "everybody stopped within its bound"

    key = (up.directory / "ingest.key").read_text()
    up.start()
    assert (up.directory / "ingest.key").read_text() == key
    assert up.poll()["total"] == 11
    up.vote(3)  # a repeat from before the restart
    up.vote(11)
    wait_until_sync(lambda: up.poll()["total"] == 12)
    wait_until_sync(lambda: up.archived_votes() == 12, 20)

    children = descendants(up.pid)
    up.stop(signal.SIGKILL)
    wait_until_sync(lambda: not [pid for pid in children if is_alive(pid)], 5, "its children died with it")

    up.start()  # at once, with whatever the killed ones left
    assert up.poll()["total"] == 12
    assert up.stop(signal.SIGINT) == 0


@pytest.mark.timeout(120)
def test_demo_moves_within_a_minute_and_leaves_no_secret_in_sight(up: Up, redis_url: str) -> None:
    """With a Redis that runs already, so that the embedded one is not started."""
    up.redis_url = redis_url
    up.start("--demo")
    assert sorted(up.children()) == sorted({*SERVICES, "demo"} - {"redis"})
    key = (up.directory / "ingest.key").read_text().strip()

    def is_moving() -> bool:
        polls = up.reader.get("/api/v1/polls").json()
        matches = up.reader.get("/api/v1/matches").json()
        return "demo-" in str(matches) and any(poll.get("total", 0) > 0 for poll in items(polls))

    wait_until_sync(is_moving, 60)
    assert key in up.terminal, "whoever started it needs it"
    for line in descendants(up.pid).values():
        assert key not in line
    for log in (up.directory / "logs").iterdir():
        assert key not in log.read_text()
    assert "refused" not in (up.directory / "logs" / "demo.log").read_text()
    assert up.stop() == 0


def items(answer: Any) -> list[dict[str, Any]]:
    """The polls of a listing, whichever way it is wrapped."""
    return list(answer) if isinstance(answer, list) else list(answer["polls"])


def test_second_up_on_the_same_data_is_refused_with_one_line(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    with locked(settings):
        environ = {**os.environ, "ARENACAST_DATA_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-m", "core.cli", "up"],
            env=environ,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == f"arenacast: another `arenacast up` runs on {tmp_path} (ARENACAST_DATA_DIR)\n"


def test_lock_ends_with_its_process(tmp_path: Path) -> None:
    """A file that merely exists would outlive a kill -9."""
    settings = Settings(data_dir=tmp_path)
    with locked(settings), contextlib.suppress(OSError):
        assert (tmp_path / "up.lock").exists()
    with (tmp_path / "up.lock").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with locked(settings):
        pass
