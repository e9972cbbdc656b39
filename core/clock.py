"""Wall-clock time in the units the log uses. One place, so that tests can pass another clock."""

import time
from collections.abc import Callable

Clock = Callable[[], int]
"""Returns Unix time in microseconds."""


def now_us() -> int:
    """Unix time in microseconds."""
    return time.time_ns() // 1000
