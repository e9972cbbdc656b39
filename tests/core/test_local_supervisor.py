"""Children as real processes: order, restarts, bounds, and nothing left behind."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from core.errors import Fatal
from core.local import supervisor as module
from core.local.supervisor import Keeper, Service, Supervisor, backoff_s
from tests.support.processes import descendants, is_alive
from tests.support.waiting import wait_until, wait_until_sync

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")

STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"


class Stage:
    """Services of a test: short Python programs that set something up, leave a file, and stay."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.said: list[str] = []
        self._before = set(descendants(os.getpid()))  # servers of other tests

    def service(self, name: str, setup: str = "", **options: object) -> Service:
        ready = self.directory / f"{name}.ready"
        source = f"""
import os, pathlib, signal, subprocess, sys
{setup}
pathlib.Path({str(ready)!r}).write_text(str(os.getpid()))
while True:
    signal.pause()
"""

        async def is_ready() -> bool:
            return ready.exists() and is_alive(int(ready.read_text() or 0))

        defaults: dict[str, object] = {"is_ready": is_ready, "ready_within_s": 10.0, "stop_within_s": 5.0}
        return Service(name, [sys.executable, "-c", source], dict(os.environ), **(defaults | options))  # type: ignore[arg-type]

    def children(self) -> set[int]:
        """Every process that was started in this test and lives."""
        return set(descendants(os.getpid())) - self._before

    async def nothing_is_left(self) -> None:
        """All of them have ended. A process that has been killed is there for another moment."""
        await wait_until(lambda: not self.children(), 5, f"{self.children()} have ended")

    def pid(self, name: str) -> int:
        """Of the service's newest child that came up."""
        return int((self.directory / f"{name}.ready").read_text())

    async def run(self, stages: list[list[Service]], then: Callable[[Supervisor], Awaitable[None]]) -> Supervisor:
        """Run stages until all is ready, then `then`, then an orderly stop."""
        supervisor = Supervisor(stages, self.directory, self.said.append)
        ready = asyncio.Event()
        running = asyncio.create_task(supervisor.run(ready.set))
        waiting = asyncio.create_task(ready.wait())
        try:
            await asyncio.wait([running, waiting], timeout=30, return_when=asyncio.FIRST_COMPLETED)
            if ready.is_set():
                await then(supervisor)
        finally:
            waiting.cancel()
            supervisor.stop()
            await asyncio.wait_for(running, 30)
        return supervisor


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


async def never() -> bool:
    """A service that does not get ready."""
    return False


async def nothing(_supervisor: Supervisor) -> None:
    """All is ready: stop again."""


def log_of(stage: Stage, name: str) -> str:
    return (stage.directory / f"{name}.log").read_text()


async def test_stage_starts_when_the_one_before_it_is_ready_and_stops_in_reverse_order(stage: Stage) -> None:
    order = stage.directory / "order"

    def setup(name: str) -> str:
        return f"""
file = open({str(order)!r}, "a", buffering=1)
def end(*_):
    file.write("-{name}\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
file.write("+{name}\\n")
"""

    await stage.run([[stage.service(name, setup(name))] for name in ("a", "b", "c")], nothing)
    assert order.read_text().split() == ["+a", "+b", "+c", "-c", "-b", "-a"]
    assert stage.said == []


async def test_killed_child_is_restarted_and_it_is_said(stage: Stage) -> None:
    async def then(supervisor: Supervisor) -> None:
        first = stage.pid("a")
        os.kill(first, signal.SIGKILL)
        await wait_until(lambda: stage.pid("a") != first and "a is ready again" in stage.said)
        assert supervisor.keepers[0].restarts == 1

    await stage.run([[stage.service("a"), stage.service("b")]], then)
    assert stage.said == ["a ended with signal SIGKILL, restart 1 in 0.25 s", "a is ready again"]
    assert not is_alive(stage.pid("a"))


async def test_child_that_leaves_by_itself_is_restarted_too(stage: Stage) -> None:
    marker = stage.directory / "once"
    setup = f"""
marker = pathlib.Path({str(marker)!r})
if marker.exists():
    marker.unlink()
    print("going")
    sys.exit(3)
"""

    async def then(_: Supervisor) -> None:
        marker.touch()
        os.kill(stage.pid("a"), signal.SIGKILL)
        await wait_until(lambda: "a is ready again" in stage.said)

    await stage.run([[stage.service("a", setup)]], then)
    assert "a ended with exit code 3, restart 2 in 0.5 s: going" in stage.said


def test_back_off_grows_to_a_bound() -> None:
    assert [backoff_s(n) for n in (1, 2, 3)] == [0.25, 0.5, 1.0]
    assert backoff_s(10_000) == module.BACKOFF_MAX_S


async def test_service_that_never_starts_is_given_up_with_its_last_words(stage: Stage) -> None:
    failing = stage.service("b", "sys.exit('arenacast: ARENACAST_ACK must be something else')")
    with pytest.raises(Fatal, match=r"^b does not start \(exit code 1\): ARENACAST_ACK must be .*b\.log"):
        await stage.run([[stage.service("a")], [failing], [stage.service("c")]], nothing)
    assert not is_alive(stage.pid("a"))
    assert not (stage.directory / "c.ready").exists()
    assert len([text for text in stage.said if "trying again" in text]) == module.START_ATTEMPTS - 1


async def test_service_that_never_gets_ready_is_given_up_after_its_bound(stage: Stage) -> None:
    with pytest.raises(Fatal, match=r"^a is not ready after 0\.3 s"):
        await stage.run([[stage.service("a", is_ready=never, ready_within_s=0.3)]], nothing)
    await stage.nothing_is_left()


async def test_task_runs_once_and_to_its_end_before_the_next_stage(stage: Stage) -> None:
    task = stage.service("migrate", "print('done', os.getpid())\nsys.exit(0)", is_task=True)

    async def then(supervisor: Supervisor) -> None:
        done, pid = log_of(stage, "migrate").split()
        assert done == "done"
        assert not is_alive(int(pid))
        assert is_alive(stage.pid("a"))

    supervisor = await stage.run([[task], [stage.service("a")]], then)
    assert [keeper.restarts for keeper in supervisor.keepers] == [0, 0]


async def test_task_that_fails_ends_the_start(stage: Stage) -> None:
    task = stage.service("migrate", "sys.exit('arenacast: the schema is newer')", is_task=True)
    with pytest.raises(Fatal, match=r"^migrate failed \(exit code 1\): the schema is newer"):
        await stage.run([[stage.service("a")], [task]], nothing)
    assert not is_alive(stage.pid("a"))


async def test_task_that_hangs_ends_the_start(stage: Stage) -> None:
    with pytest.raises(Fatal, match=r"^migrate did not end within 0\.5 s"):
        await stage.run([[stage.service("migrate", is_task=True, ready_within_s=0.5)]], nothing)
    await stage.nothing_is_left()


async def test_child_that_ignores_sigterm_is_killed_after_its_bound(stage: Stage) -> None:
    await stage.run([[stage.service("a", STUBBORN, stop_within_s=0.3)]], nothing)
    assert stage.said == ["a did not stop within 0.3 s and is killed"]
    assert not is_alive(stage.pid("a"))


async def test_second_ctrl_c_kills_at_once(stage: Stage) -> None:
    async def then(supervisor: Supervisor) -> None:
        supervisor.stop()
        await asyncio.sleep(0)
        supervisor.kill()

    await asyncio.wait_for(stage.run([[stage.service("a", STUBBORN, stop_within_s=60.0)]], then), 5)
    assert not is_alive(stage.pid("a"))


async def test_stop_in_the_middle_of_the_start_leaves_nothing(stage: Stage) -> None:
    """At any moment of it, so at several."""

    for delay_s in (0.0, 0.005, 0.02, 0.1):
        stages = [[stage.service("a"), stage.service("b", is_ready=never)], [stage.service("c")]]
        supervisor = Supervisor(stages, stage.directory, stage.said.append)
        running = asyncio.create_task(supervisor.run(lambda: pytest.fail("it was never ready")))
        await asyncio.sleep(delay_s)
        supervisor.stop()
        await asyncio.wait_for(running, 10)
        await stage.nothing_is_left()


async def test_what_a_child_started_goes_with_it(stage: Stage) -> None:
    setup = "subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])"

    async def then(_: Supervisor) -> None:
        await wait_until(lambda: len(stage.children()) == 2)
        os.kill(stage.pid("a"), signal.SIGKILL)
        await wait_until(lambda: "a is ready again" in stage.said)
        await wait_until(lambda: len(stage.children()) == 2)

    await stage.run([[stage.service("a", setup)]], then)
    await stage.nothing_is_left()


async def test_children_are_in_sessions_of_their_own_so_that_ctrl_c_reaches_only_us(stage: Stage) -> None:
    async def then(_: Supervisor) -> None:
        assert os.getsid(stage.pid("a")) == stage.pid("a")
        assert os.getpgid(stage.pid("a")) == stage.pid("a")

    await stage.run([[stage.service("a")]], then)


async def test_output_goes_to_the_log_and_warnings_to_the_terminal(stage: Stage) -> None:
    setup = """
print('{"event":"quiet","level":"info"}')
print('{"event":"loud","level":"warning","shard":3}', flush=True)
"""

    async def then(_: Supervisor) -> None:
        await wait_until(lambda: stage.said)

    await stage.run([[stage.service("a", setup)]], then)
    assert stage.said == ["a: warning loud shard=3"]
    assert [line[:16] for line in log_of(stage, "a").splitlines()] == ['{"event":"quiet"', '{"event":"loud",']


async def test_restart_goes_on_when_the_child_cannot_even_be_started(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BACKOFF_MAX_S", 0.05)
    refusals = 2

    async def prepare() -> None:
        nonlocal refusals
        if (stage.directory / "a.ready").exists() and refusals:
            refusals -= 1
            raise Fatal("its port is in use")

    async def then(_: Supervisor) -> None:
        os.kill(stage.pid("a"), signal.SIGKILL)
        await wait_until(lambda: "a is ready again" in stage.said)

    await stage.run([[stage.service("a", prepare=prepare)]], then)
    assert stage.said.count("a cannot be started: its port is in use") == 2


def test_children_die_when_we_are_killed(tmp_path: Path) -> None:
    """kill -9 of the supervisor's process: nothing of it runs any more a moment later."""
    program = f"""
import asyncio, os, pathlib, sys
from core.local.supervisor import Service, Supervisor
stay = "import signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"
services = [Service(name, [sys.executable, "-c", stay], dict(os.environ)) for name in "abc"]
asyncio.run(Supervisor([services], pathlib.Path({str(tmp_path)!r}), print).run(lambda: print("ready", flush=True)))
"""
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=root)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        children = set(descendants(process.pid))
        assert len(children) == 3
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
    wait_until_sync(lambda: not any(map(is_alive, children)), 5)


def test_keeper_without_a_child_can_be_stopped(tmp_path: Path) -> None:
    keeper = Keeper(Service("a", ["/bin/true"], {}), tmp_path, print)
    asyncio.run(keeper.stop())
