"""Where processes run, and what they use: CPU to the nanosecond, memory, and the kernel's share of it."""

import os
import re
from pathlib import Path

import psutil
from msgspec import Struct


class Placement(Struct, frozen=True):
    """The core of the server under test, and the one of everything else."""

    server_core: int
    client_core: int

    def server(self) -> None:
        """Called in a new process before it becomes its program."""
        os.sched_setaffinity(0, {self.server_core})

    def client(self) -> None:
        """Likewise."""
        os.sched_setaffinity(0, {self.client_core})


def placement() -> Placement:
    """The first and the last core we may use: one and the same where there is only one, which spoils latencies."""
    cores = sorted(os.sched_getaffinity(0))
    return Placement(cores[0], cores[-1])


def cpu_s(pid: int) -> float:
    """CPU seconds (user and system) of all live threads of a process."""
    total = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        total += int(path.read_text().split()[0])
    if total:
        return total / 1e9
    times = psutil.Process(pid).cpu_times()  # a kernel without CONFIG_SCHED_INFO; counts in ticks of 10 ms
    return times.user + times.system


def machine_busy_s() -> float:
    """CPU seconds that this machine has spent on anything since it started."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq


class Memory(Struct, frozen=True):
    """In bytes. `slab` and `tcp` are the whole machine's: both ends of every connection, and neighbours' noise."""

    rss: int
    pss: int
    slab: int
    tcp: int

    def per(self, before: "Memory", count: int) -> "Memory":
        """Growth since `before` divided by `count`."""
        pairs = zip(self.__struct_fields__, (getattr(before, name) for name in self.__struct_fields__), strict=True)
        return Memory(**{name: round((getattr(self, name) - was) / count) for name, was in pairs})


def memory(pid: int) -> Memory:
    """Of a process now."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    stat = Path("/proc/net/sockstat").read_text()
    pages = re.search(r"^TCP:.* mem (\d+)", stat, re.MULTILINE)
    return Memory(
        rss=_kilobytes(rollup, "Rss"),
        pss=_kilobytes(rollup, "Pss"),
        slab=_slab(),
        tcp=int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if pages else 0,
    )


def _slab() -> int:
    """Objects in use, without what the kernel keeps for the next ones; 0 where only root may know."""
    try:
        lines = Path("/proc/slabinfo").read_text().splitlines()[2:]
    except OSError:
        return 0
    return sum(int(active) * int(size) for _, active, _, size, *_ in map(str.split, lines))


def _kilobytes(text: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
