"""Which body is due when: a curve and a mix made into a schedule. Pure; all times are Unix seconds.

The schedule does not know of answers. Whoever sends takes the next body, waits until it is due, and if that moment has
passed sends it at once: late, and the lateness counts as latency.
"""

import heapq
import random
from collections.abc import Iterator
from itertools import count
from typing import Any

from msgspec import Struct

from core.events import Vote
from loadtests.curves import Curve
from loadtests.mix import EVENT_SHARE, Ballots, Scenario, match_events

REPEAT_AFTER_S = (0.2, 2.0)


class Body(Struct, frozen=True):
    """Votes to be sent together. `is_repeat`: the same votes were due a moment before."""

    due: float
    votes: list[Vote]
    is_repeat: bool = False


class Plan:
    """The bodies of votes of one run, in the order in which they are due."""

    def __init__(self, curve: Curve, scenario: Scenario, start: float) -> None:
        """`start` is the Unix time of the curve's beginning."""
        self._curve = curve
        self._ballots = Ballots(scenario)
        self._start = start
        self._share = 1.0 - EVENT_SHARE
        self._used = 0.0  # votes already due, in units of the curve's events
        self._random = random.Random(scenario.seed + 1)
        self._repeats: list[tuple[float, int, list[Vote]]] = []
        self._numbers = count()

    def next(self) -> Body | None:
        """The next body, or None after the last one. Repeats take the place of new votes: the rate stays."""
        when = self._curve.when(self._used / self._share)
        if when is None:
            return None
        due = self._start + when
        if self._repeats and self._repeats[0][0] <= due:
            _, _, votes = heapq.heappop(self._repeats)
            self._used += len(votes)
            return Body(due, votes, is_repeat=True)
        votes = self._ballots.body(self._ballots.size())
        if self._ballots.is_repeated():
            again = due + self._random.uniform(*REPEAT_AFTER_S)
            heapq.heappush(self._repeats, (again, next(self._numbers), votes))
        self._used += len(votes)
        return Body(due, votes)


class MatchPlan:
    """The match events of one run. They are sent one body after another, because their order is part of the proof."""

    def __init__(self, curve: Curve, scenario: Scenario, start: float) -> None:
        """As for `Plan`."""
        self._due = _due_times(curve, start)
        self._events = match_events(scenario)
        self._next: float | None = next(self._due)

    @property
    def due(self) -> float | None:
        """When the next event is due; None after the last one."""
        return self._next

    def take(self, now: float, most: int) -> list[tuple[float, dict[str, Any]]]:
        """Every event due by `now`, at most `most`, each with the time at which it was due."""
        taken: list[tuple[float, dict[str, Any]]] = []
        while self._next is not None and self._next <= now and len(taken) < most:
            taken.append((self._next, next(self._events)))
            self._next = next(self._due, None)
        return taken


def _due_times(curve: Curve, start: float) -> Iterator[float]:
    # At half steps, so that an event is not due at the same moment as the first body.
    for number in count():
        when = curve.when((number + 0.5) / EVENT_SHARE)
        if when is None:
            return
        yield start + when
