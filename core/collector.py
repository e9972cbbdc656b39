"""Python's garbage collector, told to look less often."""

import gc

THRESHOLD = 20_000
"""Objects made and not yet freed before it looks for cycles. At the default of 700 it looks every few requests or
messages and finds next to nothing, because what these leave is freed by reference counting: a fifth of the processor
time of ingest at 900 requests/s, a quarter of that of an archived row (py-spy, loadtests.bench_archive)."""


def relax(threshold: int = THRESHOLD) -> None:
    """Call once when a process begins its work: what was imported is never walked through again."""
    gc.freeze()
    gc.set_threshold(threshold)
