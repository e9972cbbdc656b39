"""Plots of one run, as PNG bytes."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # no display; must be said before pyplot is imported

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from loadtests.judge import Judged
from loadtests.outcome import P95_MS, P99_MS, per_second

_STYLE: dict[Any, Any] = {
    "figure.figsize": (9.0, 3.6), "figure.dpi": 110, "axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False,
    "axes.spines.right": False, "font.size": 9, "legend.frameon": False, "axes.titlesize": 10,
}  # fmt: skip
_SECONDS = "seconds since the start"


def draw(run: Judged) -> dict[str, bytes]:
    """Name to PNG."""
    with plt.rc_context(_STYLE):
        return {
            "throughput": _throughput(run),
            "latency": _latency(run),
            "cdf": _cdf(run),
            "cpu": _cpu(run),
        }


class _Figure:
    """A figure that is being drawn, and its bytes afterwards."""

    png = b""


@contextmanager
def _figure(title: str, x: str, y: str) -> Iterator[tuple[_Figure, Axes]]:
    result = _Figure()
    figure, axes = plt.subplots(layout="constrained")
    axes.set_title(title, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    yield result, axes
    axes.legend(loc="best")
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    result.png = buffer.getvalue()


def _throughput(run: Judged) -> bytes:
    start, seconds, requests = run.trace.start, run.seconds, run.trace.requests
    answered = requests.status == 202
    items = per_second([requests.answered[answered]], [requests.items[answered].astype(float)], start, seconds)
    received = [at for tallies in run.views.tallies for _, at in tallies.values()] + run.views.events_at
    with _figure("Throughput", _SECONDS, "events per second") as (result, axes):
        moments = np.arange(seconds)
        axes.plot(moments, [run.curve.rate(t + 0.5) for t in moments], "--", color="grey", label="due")
        axes.plot(moments, items, label="acknowledged")
        axes.set_ylim(bottom=0)
        right = axes.twinx()
        right.plot(moments, per_second(received, None, start, seconds), color="tab:green", alpha=0.6)
        right.set_ylabel("tallies and events received per second", color="tab:green")
        right.set_ylim(bottom=0)
        right.grid(visible=False)
    return result.png


def _latency(run: Judged) -> bytes:
    grid = run.deliveries.votes
    with _figure("Latency of votes by when they were due, end to end", _SECONDS, "ms (logarithmic)") as (result, axes):
        for q in (50.0, 95.0, 99.0, 99.9):
            axes.plot(grid.over_time(q), label=f"p{q:g}")
        axes.axhline(P95_MS, linestyle=":", color="tab:orange", label=f"p95 objective {P95_MS:g} ms")
        axes.axhline(P99_MS, linestyle=":", color="tab:red", label=f"p99 objective {P99_MS:g} ms")
        axes.set_yscale("log")
    return result.png


def _cdf(run: Judged) -> bytes:
    with _figure("Share of deliveries within a latency", "ms (logarithmic)", "share") as (result, axes):
        for name, grid in (("votes", run.deliveries.votes), ("match events", run.deliveries.events)):
            latency, share = grid.cdf()
            shown = share < 1.0
            axes.plot(latency[shown], share[shown], label=f"{name}, {grid.counts.sum():,} deliveries")
        axes.axvline(P95_MS, linestyle=":", color="tab:orange")
        axes.axvline(P99_MS, linestyle=":", color="tab:red")
        axes.set_xscale("log")
        axes.set_ylim(0, 1.02)
    return result.png


def _cpu(run: Judged) -> bytes:
    at = np.asarray(run.samples.at) - run.trace.start
    with _figure("CPU", _SECONDS, "% of one core") as (result, axes):
        for role, usage in sorted(run.samples.roles.items(), key=lambda item: -item[1].mean):
            axes.plot(at, usage.percent, label=f"{role} ({usage.mean:.0f} %)", linewidth=1.2)
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, run.seconds)
    return result.png
