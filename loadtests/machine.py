"""What the load costs: CPU and memory of every process that takes part, the generator's own among them.

CPU is in percent of one core, so on two cores everything together has 200. What neither the pipeline nor the generator
used is shown as `others`: on a shared machine that is the noise in the latencies.
"""

import threading
import time
from collections.abc import Mapping
from contextlib import suppress

import psutil
from msgspec import Struct, field

INTERVAL_S = 0.5
TREE_ATTEMPTS = 3
OTHERS = "others"
SUPERVISOR = "supervisor"
_ROLES = {
    "valkey-server": "redis", "consume state": "state", "consume archive": "archive", "core.cli ingest": "ingest",
    "core.cli gateway": "gateway", "core.cli clickhouse": "clickhouse", "core.cli up": SUPERVISOR,
}  # fmt: skip
"""Part of a command line to the name in the report."""


class Usage(Struct):
    """One process, or several of one role: CPU in percent of a core at each of `Samples.at`, and most memory seen."""

    percent: list[float] = field(default_factory=list)
    memory_mb: float = 0.0

    @property
    def mean(self) -> float:
        """Over all samples."""
        return sum(self.percent) / len(self.percent) if self.percent else 0.0

    @property
    def p95(self) -> float:
        """Of all samples: what it needs at the peak of a burst."""
        return sorted(self.percent)[int(0.95 * (len(self.percent) - 1))] if self.percent else 0.0


class Samples(Struct):
    """`at` are Unix times; every role has as many values."""

    at: list[float] = field(default_factory=list)
    roles: dict[str, Usage] = field(default_factory=dict)

    def between(self, start: float, end: float) -> "Samples":
        """Those of a span of time."""
        chosen = [number for number, at in enumerate(self.at) if start <= at <= end]
        roles = {
            role: Usage([usage.percent[number] for number in chosen], usage.memory_mb)
            for role, usage in self.roles.items()
        }
        return Samples([self.at[number] for number in chosen], roles)


class Sampler(threading.Thread):
    """Samples until `finish`. Costs about 1 % of a core."""

    def __init__(self, generators: Mapping[str, int], supervisor_pid: int | None) -> None:
        """`generators` maps name to pid. The pipeline is what runs below `supervisor_pid`; None = not ours to see."""
        super().__init__(daemon=True)
        self.samples = Samples()
        self._generators = dict(generators)
        self._supervisor_pid = supervisor_pid
        self._used: dict[int, float] = {}
        self._roles: dict[int, str] = {}
        self._stop_event = threading.Event()

    def run(self) -> None:
        """Thread body."""
        before, busy_s = time.monotonic(), self._sample(0.0, 0.0)
        while not self._stop_event.wait(INTERVAL_S):
            now = time.monotonic()
            before, busy_s = now, self._sample(now - before, busy_s)

    def finish(self) -> Samples:
        """Stop and give what was measured."""
        self._stop_event.set()
        self.join()
        return self.samples

    def _sample(self, elapsed_s: float, busy_before_s: float) -> float:
        """Measure; the machine's busy time so far. Nothing is recorded for an `elapsed_s` of 0."""
        machine = psutil.cpu_times()
        busy_s = machine.user + machine.nice + machine.system
        used_s: dict[str, float] = {}
        memory: dict[str, float] = {}
        for process, role in self._processes():
            try:
                times, resident = process.cpu_times(), process.memory_info().rss
            except psutil.Error:
                continue  # it ended while we looked
            total = times.user + times.system
            used_s[role] = used_s.get(role, 0.0) + max(0.0, total - self._used.get(process.pid, total))
            memory[role] = memory.get(role, 0.0) + resident / 1e6
            self._used[process.pid] = total
        if elapsed_s:
            used_s[OTHERS] = max(0.0, busy_s - busy_before_s - sum(used_s.values()))
            self._append(elapsed_s, used_s, memory)
        return busy_s

    def _append(self, elapsed_s: float, used_s: dict[str, float], memory: dict[str, float]) -> None:
        samples = self.samples
        for role in used_s.keys() - samples.roles.keys():
            samples.roles[role] = Usage([0.0] * len(samples.at))
        samples.at.append(time.time())
        for role, usage in samples.roles.items():
            usage.percent.append(100 * used_s.get(role, 0.0) / elapsed_s)
            usage.memory_mb = max(usage.memory_mb, memory.get(role, 0.0))

    def _processes(self) -> list[tuple[psutil.Process, str]]:
        found = [(process, name) for name, pid in self._generators.items() for process in _alive(pid)]
        if self._supervisor_pid is not None:
            for process in _tree(self._supervisor_pid):
                role = self._roles.get(process.pid) or _role(process)
                if role != SUPERVISOR:  # a child looks like its parent until it has become its program
                    self._roles[process.pid] = role
                found.append((process, role))
        return found


def _alive(pid: int) -> list[psutil.Process]:
    """The process, if it is there."""
    try:
        return [psutil.Process(pid)]
    except psutil.Error:
        return []


def _tree(pid: int) -> list[psutil.Process]:
    """A process and everything below it; nothing when it has ended."""
    found = _alive(pid)
    for _ in range(TREE_ATTEMPTS):
        # psutil reads every process of the machine for that, and fails when one of them ends at an awkward moment.
        with suppress(psutil.Error):
            return found + [child for process in found for child in process.children(recursive=True)]
    return found


def _role(process: psutil.Process) -> str:
    """Name of a process of the pipeline; a worker has the name of the service that started it."""
    try:
        for candidate in (process, *process.parents()):
            line = " ".join(candidate.cmdline())
            for part, role in _ROLES.items():
                if part in line:
                    return role
    except psutil.Error:
        pass  # it ended while we looked
    return SUPERVISOR
