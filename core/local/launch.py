"""Run a program that is not ours so that it dies with us: `launch.py PARENT_PID PROGRAM [ARGUMENT…]`.

Executed as a file (standard library only, ~15 ms), it arranges for the death of its parent to kill it, then becomes
the program by exec: same pid, same process group, so the parent supervises the program itself.

Linux: PR_SET_PDEATHSIG, which survives exec. It is tied to the *thread* that started us, so start from one that lives
as long as the process. Elsewhere (macOS) there is no such thing: a small forked watcher polls
twice a second and kills the program when the parent is gone; the watcher ends with the program.
SIGKILL and not SIGTERM, because it must not depend on the state the program is in; with an append-only file that is
fsynced on every write, nothing acknowledged is lost by it.
"""

import ctypes
import os
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1
_POLL_S = 0.5


def wrap(command: list[str], parent_pid: int | None = None) -> list[str]:
    """The command line that runs `command` bound to the life of `parent_pid` (default: this process)."""
    parent = os.getpid() if parent_pid is None else parent_pid
    return [sys.executable, "-I", "-S", __file__, str(parent), *command]


def _bind_to(parent_pid: int) -> None:
    if sys.platform == "linux":
        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    else:
        _fork_watcher(parent_pid)
    if os.getppid() != parent_pid:  # it died before the line above
        os._exit(1)


def _fork_watcher(parent_pid: int) -> None:
    program_pid = os.getpid()
    if os.fork() != 0:
        return
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # whoever reads the program's output shall see its end, not ours
        os.dup2(nowhere, descriptor)
    while os.getppid() == program_pid:  # otherwise the program has ended, and so does its watcher
        try:
            os.kill(parent_pid, 0)
        except OSError:
            os.kill(program_pid, signal.SIGKILL)
        time.sleep(_POLL_S)
    os._exit(0)


def main() -> None:
    """Bind, then become the program."""
    parent_pid, *command = sys.argv[1:]
    _bind_to(int(parent_pid))
    os.execv(command[0], command)  # noqa: S606 - the caller's own command line, no shell


if __name__ == "__main__":
    main()
