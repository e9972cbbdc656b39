"""From times to latencies: which tally covered which vote, and percentiles of millions of deliveries. Pure.

A tally says how many votes of its poll's log it covers (`applied`), not which. The archive knows the order of the log,
so the rank of a vote in it is exactly the `applied` that covers it: the vote's latency for a subscriber is the receipt
of the first tally with `applied` >= rank, less the moment at which the vote was due. Nothing is matched by guess.
"""

from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LOWEST_MS = 0.1
_STEP = 1.01
_BINS = 1600
"""Logarithmic bins of 1 % from 0.1 ms to about 13 minutes: a percentile read from them is at most 1 % too high."""

PERCENTILES = (50.0, 95.0, 99.0, 99.9)


class Summary(Struct, frozen=True):
    """Percentiles in ms over `count` deliveries."""

    count: int
    p50: float
    p95: float
    p99: float
    p999: float
    highest: float


class LatencyGrid:
    """Counts of deliveries by the second in which they were due and by latency: its memory does not grow with them."""

    def __init__(self, seconds: int) -> None:
        self.counts = np.zeros((max(1, seconds), _BINS), dtype=np.int64)
        self.highest = 0.0

    def add(self, due_s: Floats, latency_ms: Floats) -> None:
        """`due_s` is relative to the start of the run."""
        if not len(due_s):
            return
        seconds = np.clip(due_s.astype(np.int64), 0, len(self.counts) - 1)
        bins = np.log(np.maximum(latency_ms, LOWEST_MS) / LOWEST_MS) / np.log(_STEP)
        cells = seconds * _BINS + np.minimum(bins.astype(np.int64), _BINS - 1)
        self.counts += np.bincount(cells, minlength=self.counts.size).reshape(self.counts.shape)
        self.highest = max(self.highest, float(latency_ms.max()))

    def percentile(self, q: float) -> float:
        """Latency in ms that `q` % of all deliveries do not exceed; 0 when there were none."""
        return float(_percentiles(self.counts.sum(axis=0)[np.newaxis], q)[0])

    def over_time(self, q: float) -> Floats:
        """The same for each second; NaN where nothing was due."""
        found = _percentiles(self.counts, q)
        found[self.counts.sum(axis=1) == 0] = np.nan
        return found

    def cdf(self) -> tuple[Floats, Floats]:
        """(latency in ms, share of deliveries up to it)."""
        totals = self.counts.sum(axis=0)
        return _upper(np.arange(_BINS)), np.cumsum(totals) / max(1, totals.sum())

    def summary(self) -> Summary:
        """The percentiles that people ask for."""
        p50, p95, p99, p999 = (min(self.percentile(q), self.highest) for q in PERCENTILES)
        return Summary(int(self.counts.sum()), p50, p95, p99, p999, self.highest)


def _upper(bins: Integers) -> Floats:
    edges: Floats = LOWEST_MS * np.power(_STEP, bins + 1.0)
    return edges


def _percentiles(counts: Integers, q: float) -> Floats:
    """Upper edge of the bin that holds the q-th percentile of each row."""
    sums = np.cumsum(counts, axis=1)
    wanted = _nearest_rank(sums[:, -1:], q)
    return np.where(sums[:, -1] > 0, _upper(np.argmax(sums >= wanted, axis=1)), 0.0)


def _nearest_rank(count: Integers, q: float) -> Integers:
    """Rank from 1 of the q-th percentile among `count` values; the small number undoes what floats add to 99.9 * n."""
    found: Integers = np.maximum(1, np.ceil(count * q / 100 - 1e-6)).astype(np.int64)
    return found


def ranks(order: NDArray[np.uint64], hashes: NDArray[np.uint64]) -> tuple[Integers, int]:
    """Rank from 1 of each of `hashes` in `order`, 0 where it does not occur; and how many do not.

    `order` are the event hashes of one poll's votes in the order of the log.
    """
    if not len(order):
        return np.zeros(len(hashes), dtype=np.int64), len(hashes)
    by_value = np.argsort(order, kind="stable")
    places = np.minimum(np.searchsorted(order, hashes, sorter=by_value), len(order) - 1)
    candidates = by_value[places]
    found = order[candidates] == hashes
    return np.where(found, candidates + 1, 0), int(np.count_nonzero(~found))


def coverage(rank: Integers, due: Floats, applied: NDArray[np.uint64], at: Floats) -> tuple[Floats, Floats, int]:
    """(due, latency in ms) of every vote that a subscriber's tallies covered, and how many no tally covered.

    `applied` never decreases; votes of rank 0 are not in the log and are left out.
    """
    logged = rank > 0
    rank, due = rank[logged], due[logged]
    first = np.searchsorted(applied, rank.astype(np.uint64), side="left")
    covered = first < len(applied)
    latency_ms = (at[first[covered]] - due[covered]) * 1000
    return due[covered], latency_ms, int(np.count_nonzero(~covered))


def exact(values_ms: Sequence[float] | Floats) -> Summary:
    """Percentiles of values few enough to be kept (answers, lateness)."""
    values = np.sort(np.asarray(values_ms, dtype=np.float64))
    if not len(values):
        return Summary(0, 0.0, 0.0, 0.0, 0.0, 0.0)
    count = np.asarray(len(values))
    p50, p95, p99, p999 = (float(values[int(_nearest_rank(count, q)) - 1]) for q in PERCENTILES)
    return Summary(len(values), p50, p95, p99, p999, float(values[-1]))
