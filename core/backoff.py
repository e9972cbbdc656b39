"""How long a loop that failed waits before it tries again."""

FIRST_S = 0.1
_DOUBLINGS_MAX = 30  # far beyond any longest delay; without it a long outage ends in an overflow and with it the loop


def delay_s(failures: int, longest_s: float) -> float:
    """Seconds to wait after so many failures in a row (1, 2, …): `FIRST_S`, doubled each time, at most `longest_s`."""
    return min(longest_s, FIRST_S * 2.0 ** min(failures - 1, _DOUBLINGS_MAX))
