"""What one run found: the proof, the latencies, what it cost, and whether the generator can be believed. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from msgspec import Struct

from loadtests.latency import Floats, LatencyGrid, Summary, coverage, exact, ranks
from loadtests.machine import OTHERS, Samples, Usage
from loadtests.seen import Counts, Views
from loadtests.trace import Trace
from loadtests.verify import Check

P95_MS, P99_MS, ERRORS_PERCENT = 300.0, 500.0, 0.1
GOAL_P99_MS = 100.0
"""Our own aim for the sustained 1000 events/s on two cores."""

BUSY_PERCENT = 85.0
LATE_MS = 50.0
NOISE_PERCENT = 20.0


class Objective(Struct, frozen=True):
    """One limit and what was measured."""

    name: str
    limit: float
    measured: float
    unit: str

    @property
    def is_met(self) -> bool:
        """Whether the measured value is below the limit."""
        return self.measured < self.limit


class Deliveries(Struct):
    """Latencies from due to received: of votes (by the tally that covers them) and of match events."""

    votes: LatencyGrid
    events: LatencyGrid
    uncovered: int = 0
    """Deliveries that never happened: votes without a tally that covers them, by subscriber."""


class Outcome(Struct):
    """Numbers of one run, for people and for `summary.json`."""

    name: str
    seconds: float
    peak: float
    subscribers: int
    checks: list[Check]
    objectives: list[Objective]
    votes: Summary
    events: Summary
    answers: Summary
    gateway_ms: dict[str, float]
    """p50, p95, p99 of the gateway's own e2e_latency_ms: received by ingest until written to the socket."""
    requests: int
    failed_requests: int
    acknowledged: int
    repeated: int
    messages: dict[str, int]
    verdicts: dict[str, int]
    lost_connections: int
    reasons: list[str]
    """Of the first ones."""
    hot_drained_s: float
    cold_drained_s: float
    lateness: Summary
    loop_lag: Summary
    cpu_percent: dict[str, float]
    cpu_p95_percent: dict[str, float]
    memory_mb: dict[str, float]
    doubts: list[str]
    """Why the generator or the machine, and not the pipeline, may have set these latencies."""

    @property
    def is_proven(self) -> bool:
        """Whether everything agrees."""
        return all(check.is_met for check in self.checks)

    @property
    def is_fast(self) -> bool:
        """Whether every objective is met."""
        return all(objective.is_met for objective in self.objectives)


def deliveries(trace: Trace, views: Views, orders: Mapping[str, Counts], seconds: int) -> Deliveries:
    """Latency of every vote and event for every subscriber. `orders`: poll to event hashes in the order of the log."""
    found = Deliveries(LatencyGrid(seconds), LatencyGrid(seconds))
    ranked = {poll: ranks(orders[poll], hashes)[0] for poll, (hashes, _) in trace.votes.items() if poll in orders}
    for tallies, events_at, seen in zip(views.tallies, views.events_at, views.seen, strict=True):
        for poll, (applied, at) in tallies.items():
            if poll not in ranked:
                continue
            due, latency_ms, uncovered = coverage(ranked[poll], trace.votes[poll][1], applied, at)
            found.votes.add(due - trace.start, latency_ms)
            found.uncovered += uncovered
        event_due = np.asarray([trace.events.get(event_id, np.nan) for event_id in seen.events], dtype=np.float64)
        known = ~np.isnan(event_due)
        found.events.add(event_due[known] - trace.start, (events_at[known] - event_due[known]) * 1000)
    return found


def objectives(name: str, votes: Summary, events: Summary, error_percent: float) -> list[Objective]:
    """The limits; of votes and events the slower counts. Without deliveries there is no latency that could meet one."""
    found = [Objective("failed requests and lost connections", ERRORS_PERCENT, error_percent, "%")]
    if not votes.count + events.count:
        return found
    p95, p99 = max(votes.p95, events.p95), max(votes.p99, events.p99)
    found = [Objective("p95 end to end", P95_MS, p95, "ms"), Objective("p99 end to end", P99_MS, p99, "ms"), *found]
    if name == "sustained":
        found.append(Objective("p99 end to end, our aim", GOAL_P99_MS, p99, "ms"))
    return found


def doubts(samples: Samples, generators: Sequence[str], trace: Trace, loop_lag: Summary, cores: int) -> list[str]:
    """Reasons to distrust the latencies. Empty = they are the pipeline's.

    A generator that is late on a full machine is late because of the machine, and that is what is said then.
    """
    found = []
    totals = np.sum([usage.percent for usage in samples.roles.values()], axis=0) if samples.roles else np.empty(0)
    is_full = len(totals) > 0 and float(np.median(totals)) > 95.0 * cores
    blame = "the machine is the bottleneck" if is_full else "the generator is the bottleneck"
    if is_full:
        found.append(f"the machine is the bottleneck: all {cores} cores were busy half of the time")
    for name in generators:
        busy = samples.roles.get(name, Usage()).p95
        if busy > BUSY_PERCENT:
            found.append(f"the generator is the bottleneck: {name} used {busy:.0f} % of a core (p95)")
    late = exact((trace.requests.sent - trace.requests.due) * 1000)
    if trace.open_max >= trace.senders:
        found.append(f"all {trace.senders} senders were busy at once: the pipeline held up the schedule")
    elif late.p99 > LATE_MS:
        found.append(f"{blame}: bodies left {late.p99:.0f} ms late (p99)")
    if loop_lag.p99 > LATE_MS:
        found.append(f"{blame}: subscribers read {loop_lag.p99:.0f} ms late (p99)")
    others = samples.roles.get(OTHERS, Usage()).mean
    sees_pipeline = bool(samples.roles.keys() - {*generators, OTHERS})  # otherwise the pipeline is among the others
    if sees_pipeline and others > NOISE_PERCENT:
        found.append(f"other programs used {others:.0f} % of a core meanwhile")
    return found


def per_second(times: Sequence[Floats], weights: Sequence[Floats] | None, start: float, seconds: int) -> Floats:
    """Sum of `weights` (1 unless given) per second since `start`."""
    found = np.zeros(seconds)
    for number, at in enumerate(times):
        if len(at):
            cells = np.clip((at - start).astype(np.int64), 0, seconds - 1)
            found += np.bincount(cells, None if weights is None else weights[number], minlength=seconds)
    return found


def message_counts(views: Views) -> dict[str, int]:
    """Messages received by kind, over all subscribers."""
    total: Counter[str] = Counter()
    for seen in views.seen:
        total.update(seen.kinds)
    return dict(total.most_common())


def verdict_counts(views: Views) -> dict[str, int]:
    """Verdicts on cursors, over all subscribers and topics."""
    total: Counter[str] = Counter()
    for seen in views.seen:
        total.update(seen.verdicts)
    return dict(total)
