"""Many scenarios on all cores: `python -m tests.gateway.simulation [COUNT [FIRST_SEED]]`; exit code 1 when one breaks.

A broken one is repeated with `python -m tests.gateway.simulation 1 SEED`.
"""

import gc
import logging
import multiprocessing
import sys
import time
from collections import Counter

import structlog

from tests.gateway.simulation.client import Broken
from tests.gateway.simulation.scenario import play

COUNT = 10_000
CHUNK = 25
BROKEN_SHOWN = 20


def main() -> int:
    count, first = (int(sys.argv[n]) if len(sys.argv) > n else default for n, default in ((1, COUNT), (2, 0)))
    started = time.monotonic()
    verdicts: Counter[str] = Counter()
    broken: list[str] = []
    with multiprocessing.get_context("spawn").Pool(initializer=_quiet) as pool:
        for seen, error in pool.imap_unordered(_play, range(first, first + count), CHUNK):
            verdicts.update(seen)
            if error:
                broken.append(error)
    took_s = time.monotonic() - started
    print(f"{count} scenarios from seed {first} in {took_s:.0f} s ({count / took_s:.0f}/s), {len(broken)} broken")
    print("scenarios with a verdict: " + ", ".join(f"{name} {number}" for name, number in sorted(verdicts.items())))
    for text in broken[:BROKEN_SHOWN]:
        print(text)
    return 1 if broken else 0


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


if __name__ == "__main__":
    sys.exit(main())
