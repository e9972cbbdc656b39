"""The highest rate a server keeps up with: doubling until it fails, then halving the gap. Pure but for its probe."""

from collections.abc import Callable

from loadtests.fanout.summary import Measured

START = 250
CEILING = 16_000
REFINEMENTS = 2
P99_MAX_MS = 100.0
DELIVERED_MIN = 0.97
"""Of what was published in a window; the edges of the window account for a little."""

SATURATED = 0.9
"""A server that fails below this share of its core was not given the rest."""


def keeps_up(measured: Measured) -> bool:
    """p99 within bounds and nothing piling up."""
    return measured.p99_ms <= P99_MAX_MS and measured.delivered >= DELIVERED_MIN * measured.expected


def highest_rate(probe: Callable[[int], Measured]) -> tuple[int, str]:
    """(messages per second that were kept up with, what stopped it). 0 when even the lowest was too much."""
    good, bad, why = 0, 0, ""
    rate = START
    while not bad and rate <= CEILING:
        good, bad, why = _try(probe, rate, good, bad, why)
        rate *= 2
    for _ in range(REFINEMENTS if good and bad else 0):
        good, bad, why = _try(probe, (good + bad) // 2, good, bad, why)
    return good, why or "the end of the search"


def _try(probe: Callable[[int], Measured], rate: int, good: int, bad: int, why: str) -> tuple[int, int, str]:
    measured = probe(rate)
    if keeps_up(measured):
        return rate, bad, why
    return good, rate, _limit(measured)


def _limit(measured: Measured) -> str:
    if measured.is_client_bound:
        return "the measuring client"
    return "the server" if measured.server_busy > SATURATED else "not the server: others had its core"
