"""Many scenarios on all cores."""

import gc
import logging
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterable

import structlog
from msgspec import Struct

from tests.gateway.simulation.client import Broken
from tests.gateway.simulation.scenario import play

CHUNK = 25


class Outcome(Struct):
    """Of a batch. `verdicts`: verdict -> scenarios in which it was given; `broken`: one line per scenario."""

    count: int
    took_s: float
    verdicts: Counter[str]
    broken: list[str]

    def __str__(self) -> str:
        met = ", ".join(f"{name} {number}" for name, number in sorted(self.verdicts.items()))
        return (
            f"{self.count} scenarios in {self.took_s:.0f} s ({self.count / self.took_s:.0f}/s), "
            f"{len(self.broken)} broken\nscenarios with a verdict: {met}"
        )


def play_many(seeds: range) -> Outcome:
    """Play each seed's scenario."""
    outcome = Outcome(len(seeds), 0.0, Counter(), [])
    started = time.monotonic()
    processes = min(os.cpu_count() or 1, len(seeds))
    if processes > 1:
        with multiprocessing.get_context("spawn").Pool(processes, initializer=_quiet) as pool:
            _collect(outcome, pool.imap_unordered(_play, seeds, CHUNK))
    else:
        _quiet()
        _collect(outcome, map(_play, seeds))
    outcome.took_s = time.monotonic() - started
    return outcome


def _collect(outcome: Outcome, played: Iterable[tuple[set[str], str]]) -> None:
    for seen, error in played:
        outcome.verdicts.update(seen)
        if error:
            outcome.broken.append(error)


def _quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    gc.freeze()
    gc.set_threshold(100_000)  # a scenario's objects are mostly freed by counting


def _play(seed: int) -> tuple[set[str], str]:
    try:
        return play(seed), ""
    except (Broken, AssertionError) as error:
        return set(), f"seed {seed}: {error}"
    except Exception as error:
        return set(), f"seed {seed}: {type(error).__name__}: {error}"
