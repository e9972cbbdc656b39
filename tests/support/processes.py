"""Looking at processes through /proc (Linux; elsewhere nothing is seen and nothing is claimed)."""

import ctypes
import os
import sys
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """From now on, descendants of this process whose parent dies become children of this process (Linux)."""
    if sys.platform == "linux":
        assert ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def descendants(pid: int) -> dict[int, str]:
    """Pid -> command line of every living process below `pid`, zombies excluded."""
    children: dict[int, list[int]] = {}
    living: set[int] = set()
    pids = os.listdir("/proc") if sys.platform == "linux" else []
    for entry in filter(str.isdecimal, pids):
        try:
            name, _, rest = Path("/proc", entry, "stat").read_text().rpartition(")")
        except OSError:
            continue  # it ended while we looked
        state, parent = rest.split()[:2]
        number = int(name.split(" ", 1)[0])
        children.setdefault(int(parent), []).append(number)
        if state != "Z":
            living.add(number)
    found: dict[int, str] = {}
    todo = children.get(pid, [])
    while todo:
        number = todo.pop()
        todo.extend(children.get(number, []))
        if number in living:
            found[number] = command_line(number)
    return found


def command_line(pid: int) -> str:
    """Arguments of a process, "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
