"""From a finished run to its `Outcome`: the proof, the latencies, the doubts. Reads the run's files."""

import os
from math import ceil

import numpy as np
from msgspec import Struct

from loadtests import outcome, seen, trace, verify
from loadtests.curves import Curve, burst, sustained
from loadtests.latency import exact
from loadtests.machine import Samples
from loadtests.observe import quantile
from loadtests.outcome import Deliveries, Outcome
from loadtests.run import Finished, Options
from loadtests.seen import Views
from loadtests.trace import Trace
from loadtests.verify import Check

RECOVERS_WITHIN_S = 10
"""Seconds after the curve's end that latencies over time still show."""


class Judged(Struct):
    """An outcome, and the series that its plots are drawn from."""

    outcome: Outcome
    options: Options
    curve: Curve
    deliveries: Deliveries
    trace: Trace
    views: Views
    samples: Samples

    @property
    def seconds(self) -> int:
        """Length of the plots."""
        return ceil(self.curve.seconds) + RECOVERS_WITHIN_S


def judge(finished: Finished) -> Judged:
    """Compare, measure and weigh."""
    options, places = finished.options, finished.places
    curve = (burst if options.shape == "burst" else sustained)(options.rate, options.seconds)
    sent, views = trace.load(finished.sender), seen.load(finished.readers)
    delivered = outcome.deliveries(sent, views, places.orders, ceil(curve.seconds) + 1)
    votes, events = delivered.votes.summary(), delivered.events.summary()
    requests = sent.requests
    failed = int(np.count_nonzero(requests.status != 202))
    lag = exact(views.loop_lag_ms)
    reconnects = sum(max(0, one.connections - 1) for one in views.seen)
    tries = len(requests.status) + sum(one.connections for one in views.seen)
    under_load = finished.samples.between(sent.start, sent.start + curve.seconds)
    result = Outcome(
        name=curve.name,
        seconds=curve.seconds,
        peak=curve.peak,
        subscribers=len(views.seen),
        checks=_checks(finished, views, delivered),
        objectives=outcome.objectives(curve.name, votes, events, 100.0 * (failed + reconnects) / max(1, tries)),
        votes=votes,
        events=events,
        answers=exact((requests.answered - requests.due)[requests.status == 202] * 1000),
        gateway_ms={f"p{q:g}": quantile(places.e2e_before, places.e2e_after, q) for q in (50.0, 95.0, 99.0)},
        requests=len(requests.status),
        failed_requests=failed,
        acknowledged=finished.books.acknowledged,
        repeated=finished.books.repeated,
        messages=outcome.message_counts(views),
        verdicts=outcome.verdict_counts(views),
        lost_connections=reconnects,
        reasons=views.failures,
        hot_drained_s=places.hot_drained_s,
        cold_drained_s=places.cold_drained_s,
        lateness=exact((requests.sent - requests.due) * 1000),
        loop_lag=lag,
        cpu_percent={role: usage.mean for role, usage in under_load.roles.items()},
        cpu_p95_percent={role: usage.p95 for role, usage in under_load.roles.items()},
        memory_mb={role: usage.memory_mb for role, usage in under_load.roles.items()},
        doubts=outcome.doubts(under_load, finished.generators, sent, lag, os.cpu_count() or 1),
    )  # fmt: skip
    return Judged(result, options, curve, delivered, sent, views, finished.samples)


def _checks(finished: Finished, views: Views, delivered: Deliveries) -> list[Check]:
    books, places = finished.books, finished.places
    return [
        *verify.sender_checks(books, finished.refusals),
        *verify.hot_checks(books, places.hot),
        *verify.archive_checks(books, places.cold),
        *verify.event_checks(books, places.events),
        *verify.subscriber_checks(books, views.seen),
        verify.check("subscribers", "votes that no tally covers", 0, delivered.uncovered),
        *verify.metric_checks(places.unaccounted, places.dead),
    ]
