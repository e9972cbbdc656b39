"""What the generator's processes tell each other: a specification as a file, then lines of JSON over pipes."""

from typing import Literal

import msgspec
from msgspec import Struct, field

from loadtests import curves
from loadtests.mix import Scenario

Shape = Literal["sustained", "burst"]


class SenderSpec(Struct):
    """What `loadtests.users` runs. `sse`, `ws`, `topics`: subscribers in the same process; usually none, see there."""

    ingest_url: str
    key: str
    shape: Shape
    rate: float
    seconds: float
    scenario: Scenario
    directory: str
    senders: int
    gateway_urls: list[str] = []
    sse: int = 0
    ws: int = 0
    topics: list[tuple[str, ...]] = []

    def curve(self) -> curves.Curve:
        """Events per second over time; `rate` is the burst's peak."""
        return (curves.burst if self.shape == "burst" else curves.sustained)(self.rate, self.seconds)


class SubscribersSpec(Struct):
    """What `loadtests.subscribers` runs. `topics`: one tuple each; the first `sse` use SSE, the rest WebSocket."""

    gateway_urls: list[str]
    sse: int
    topics: list[tuple[str, ...]]
    directory: str


class Go(Struct):
    """Begin: the curve's second 0 is this Unix time."""

    start: float


class Finish(Struct):
    """What every subscriber must have seen: `applied` by poll and the number of match events; and how long to wait."""

    applied: dict[str, int] = field(default_factory=dict)
    events: int = 0
    within_s: float = 10.0


class Report(Struct, omit_defaults=True):
    """What a child says: one of the first four, or how far it has come."""

    ready: int | None = None
    sent: bool | None = None
    done: bool | None = None
    error: str | None = None
    acknowledged: int = 0
    open: int = 0


def say(report: Report) -> None:
    """One line to whoever started us."""
    print(msgspec.json.encode(report).decode(), flush=True)
