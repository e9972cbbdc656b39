"""A foreign program dies with whoever started it, on either kind of system."""

import subprocess
import sys
from pathlib import Path

import pytest

from core.local import launch
from tests.support.processes import descendants, is_alive
from tests.support.waiting import wait_until_sync

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")

ROOT = Path(__file__).resolve().parents[2]
SLEEPER = "/bin/sleep 60"

LINUX = """
from core.local import launch
command = launch.wrap(["/bin/sleep", "60"])
"""
ELSEWHERE = """
import os, sys
from core.local import launch
main = "import sys, runpy; sys.platform = 'darwin'; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
command = [sys.executable, "-c", main, launch.__file__, str(os.getpid()), "/bin/sleep", "60"]
"""
PARENT = """
import subprocess
child = subprocess.Popen(command)
print(child.pid, flush=True)
child.wait()
print(child.returncode, flush=True)
"""


def started(how: str) -> "tuple[subprocess.Popen[str], int]":
    """A process that has started a sleeper, and the sleeper's pid."""
    parent = subprocess.Popen([sys.executable, "-c", how + PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    wait_until_sync(lambda: descendants(parent.pid).get(pid) == SLEEPER)
    return parent, pid


@pytest.mark.parametrize("how", [LINUX, ELSEWHERE], ids=["linux", "elsewhere"])
def test_program_dies_when_its_parent_is_killed(how: str) -> None:
    parent, pid = started(how)
    family = set(descendants(parent.pid))
    parent.kill()
    parent.wait()
    wait_until_sync(lambda: not any(map(is_alive, family)), 5)
    parent.communicate()
    assert pid in family


@pytest.mark.parametrize("how", [LINUX, ELSEWHERE], ids=["linux", "elsewhere"])
def test_pid_is_that_of_the_program_and_nothing_stays_when_it_ends(how: str) -> None:
    parent, pid = started(how)
    family = set(descendants(parent.pid))
    subprocess.run(["/bin/kill", "-TERM", str(pid)], check=True)
    output, _ = parent.communicate(timeout=10)
    assert output == "-15\n"
    wait_until_sync(lambda: not any(map(is_alive, family)), 5)


def test_program_is_not_started_for_a_parent_that_is_gone() -> None:
    dead = subprocess.Popen(["/bin/true"])
    dead.wait()
    assert subprocess.run(launch.wrap(["/bin/echo", "ran"], dead.pid), capture_output=True, check=False).stdout == b""


def test_program_that_does_not_exist_fails() -> None:
    done = subprocess.run(launch.wrap(["/no/such/program"]), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "No such file" in done.stderr
