"""What is measured, and what is left out because it could not be served anyway. Pure."""

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from loadtests.fanout.message import Variant

Transport = Literal["sse", "ws"]


class Point(Struct, frozen=True):
    """One load; `rate` in messages per second."""

    transport: Transport
    subscribers: int
    rate: float
    variant: Variant = "event"

    @property
    def deliveries(self) -> float:
        """Per second."""
        return self.subscribers * self.rate


HEADLINE = Point("sse", 500, 100)
REPETITIONS = 3
COALESCED = Point("sse", 500, 1000)
STATE = Point("sse", 500, 100, "state")

_LOADS = ((1, 100), (1, 1000), (100, 100), (100, 1000), (500, 100), (500, 1000), (5000, 20), (5000, 100))

CORE_SHARE_MAX = 1.6
"""A load that needs this much of the server's core by its cost at a smaller load tells nothing but that."""

CROWD_MIN = 100
"""Below this the cost per delivery is mostly the cost per message, and says nothing about more subscribers."""


PARTS = ("memory", "headline", "grid", "scenarios", "search")
"""Of a run, each below five minutes for one transport."""


class Plan(Struct, frozen=True):
    """One run. Headlines are repeated, the servers taking turns."""

    headlines: list[Point]
    grid: list[Point]
    window_s: float
    idle_subscribers: int
    parts: tuple[str, ...] = PARTS


def plan(transports: list[Transport], *, is_quick: bool) -> Plan:
    """Everything, or what fits into two minutes."""
    if is_quick:
        quick = [Point(transport, 500, 100) for transport in transports] + [COALESCED]
        return Plan(quick, [], 1.5, 1000, ("memory", "headline"))
    headlines = [Point(transport, 500, rate) for transport in transports for rate in (100, 1000)]
    grid = [Point(transport, count, rate) for transport in transports for count, rate in _LOADS]
    grid = [point for point in grid if point not in headlines]
    return Plan(headlines, [*grid, STATE] if "sse" in transports else grid, 3.5, 5000)


def is_hopeless(point: Point, costs_us: Mapping[Point, float]) -> bool:
    """Whether a server that had these costs per delivery needs far more than one core for a point.

    Compared with its cost for the largest crowd at the same rate and transport, where batching is alike.
    """
    similar = {
        seen.subscribers: cost
        for seen, cost in costs_us.items()
        if (seen.transport, seen.rate) == (point.transport, point.rate) and seen.subscribers >= CROWD_MIN
    }
    return bool(similar) and similar[max(similar)] * point.deliveries / 1e6 > CORE_SHARE_MAX
