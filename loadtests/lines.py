"""What the generator's processes tell each other: one line of JSON at a time over standard input and output."""

import msgspec
from msgspec import Struct, field


class Go(Struct):
    """Begin: the curve's second 0 is this Unix time."""

    start: float


class Finish(Struct):
    """What every subscriber must have seen: `applied` by poll and the number of match events; and how long to wait."""

    applied: dict[str, int] = field(default_factory=dict)
    events: int = 0
    within_s: float = 10.0


class Report(Struct, omit_defaults=True):
    """What a child says. Exactly one of `ready`, `sent`, `done` and `error` is set, or only the progress figures."""

    ready: int | None = None
    sent: bool | None = None
    done: bool | None = None
    error: str | None = None
    acknowledged: int = 0
    open: int = 0


def say(report: Report) -> None:
    """One line to whoever started us."""
    print(msgspec.json.encode(report).decode(), flush=True)
