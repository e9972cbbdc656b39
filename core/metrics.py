"""Every metric's name and labels, in one place (CONTRACT "Metrics": dashboards and alerts rely on them).

Labels are closed sets: topic, match, poll and subscriber are never labels. Hot loops count in local integers and
flush; see `WeightedHistogram` for latencies that hold for many deliveries at once.
"""

import os

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.utils import INF

LATENCY_BUCKETS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 300, 500, 1000, 2000, 5000, INF)
"""300 and 500 are the objectives for p95 and p99."""

SOURCES = frozenset({"api", "web", "twitch", "telegram", "matchzy", "get5", "gsi", "load"})
"""Values of the label `source`; everything else counts as `other`, because clients choose the field freely."""


class WeightedHistogram(Histogram):
    """A histogram that takes one value for many equal observations: one frame, many sockets."""

    def observe_many(self, amount: float, count: int) -> None:
        """Like `count` calls of `observe(amount)`, at the price of one."""
        self._sum.inc(amount * count)
        for index, bound in enumerate(self._upper_bounds):
            if amount <= bound:
                self._buckets[index].inc(count)
                break


E2E = WeightedHistogram(
    "e2e_latency_ms",
    "Received by ingest until written to the client's socket",
    ["event_type"],
    buckets=LATENCY_BUCKETS_MS,
)
STAGE = WeightedHistogram("stage_latency_ms", "Time spent in one stage", ["stage"], buckets=LATENCY_BUCKETS_MS)
SLO_VIOLATIONS = Counter("latency_slo_violations", "Deliveries slower than the objective", ["slo"])

INGESTED = Counter("ingest_events", "Items received, by what became of them", ["source", "result"])
LAG_ENTRIES = Gauge("stream_lag_entries", "Entries of the input log not yet processed", ["group"])
LAG_SECONDS = Gauge("stream_lag_seconds", "Age of the oldest entry not yet processed", ["group"])
UNACCOUNTED = Gauge("votes_unaccounted", "Votes accepted up to a common position, less applied, less dead")
RECONCILED = Counter("reconciliations", "Comparisons of log, hot state, raw and aggregates", ["verdict"])
DIFFERENCES = Gauge("reconcile_differences", "Differences the last comparison found, by who is wrong", ["place"])
DEAD = Counter("dead_letters", "Entries that could not be processed", ["group"])
LOOP_ERRORS = Counter("loop_errors", "Failures that a loop survived and backed off from", ["loop"])

CONNECTIONS = Gauge("gateway_connections", "Open subscriber connections", ["transport"], multiprocess_mode="livesum")
DELIVERIES = Counter("gateway_deliveries", "Messages written to subscribers", ["transport", "class"])
CONFLATED = Counter("gateway_conflated", "State messages skipped for a lagging subscriber")
EVICTIONS = Counter("gateway_evictions", "Connections closed by the server for the reader's slowness", ["reason"])
CATCH_UP_READS = Counter(
    "gateway_catch_up_reads", "Reads for readers behind the ring, each for all who want the same", ["tier"]
)
RESUMES = Counter("gateway_resumes", "Verdicts given on cursors", ["verdict"])

AUDIT_LOST = Counter("audit_lost", "Audit records that found no room on their way to the archive")
REPLAYS = Gauge("gateway_replays", "Replays being sent", multiprocess_mode="livesum")

ARCHIVE_ROWS = Counter("archive_rows", "Rows committed to ClickHouse", ["table"])
ARCHIVE_INSERT = Histogram("archive_insert_seconds", "Duration of one insert")
ARCHIVE_STUCK = Gauge("archive_stuck_logs", "Logs of owned shards whose archive needs an operator")
MENDS_PARKED = Gauge("archive_parked_mends", "Polls or matches of aggregates given up, until somebody asks again")
SPILLED = Counter("archive_spilled_entries", "Entries put on disk because they could not be archived in time")
SPILL_SEGMENTS = Gauge("archive_spill_segments", "Segment files that owned shards have not archived yet")
SPILL_BYTES = Gauge("archive_spill_bytes", "Bytes in the spill directory")
SPILL_BUDGET = Gauge("archive_spill_budget_bytes", "Bytes the spill directory may hold")


def exposition() -> bytes:
    """All metrics in Prometheus' text format: of this process, or of all workers that share a port.

    The workers of one gateway keep their values in files (prometheus_client's multiprocess mode, which its own variable
    switches on before it is imported); whichever of them is asked gives the sum.
    """
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def source_label(source: str) -> str:
    """The label value for a client-given source."""
    return source if source in SOURCES else "other"
