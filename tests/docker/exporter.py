"""A process that exposes every metric of ours and moves them, until it is terminated: `python -m … PORT`.

A process of its own, because metrics are global and the other tests' should stay theirs.
"""

import sys
import time

from prometheus_client import Counter, Gauge, Histogram, start_http_server

from core import metrics

LABELS = {
    "event_type": "tally", "stage": "state", "slo": "500ms", "source": "api", "result": "accepted", "group": "state",
    "loop": "state", "transport": "sse", "class": "event", "reason": "bytes", "verdict": "complete", "table": "votes",
    "place": "raw", "tier": "redis",
}  # fmt: skip
INTERVAL_S = 0.1


def exercise() -> None:
    """Move every metric as the services do. Gauges grow, too: votes are unaccounted for."""
    for metric in vars(metrics).values():
        if not isinstance(metric, Counter | Gauge | Histogram):
            continue
        series = metric.labels(*(LABELS[label] for label in metric._labelnames)) if metric._labelnames else metric
        if isinstance(series, Histogram):
            series.observe(0.7)
        else:
            series.inc()


if __name__ == "__main__":
    start_http_server(int(sys.argv[1]), "127.0.0.1")
    while True:
        exercise()
        time.sleep(INTERVAL_S)
