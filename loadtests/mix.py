"""What is sent: polls, bodies of votes, and the events of a CS2 match. Pure functions of a seeded random source.

The mix: bodies of 1 to 10 votes; three polls, one for each counting rule, that get 60, 25 and 15 % of the votes; voters
drawn from a crowd small enough that many vote twice; 2 % of the bodies are sent a second time a little later, whole, as
a client does that lost the answer; 1 % of the events are match events.
"""

import random
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from core.events import Vote

OPTIONS = ("a", "b", "c")
VOTING = ("first", "last", "unlimited")
POLL_SHARES = (0.60, 0.25, 0.15)
BODY_MAX_VOTES = 10
REPEAT_SHARE = 0.02
EVENT_SHARE = 0.01
VOTERS = 200_000
SOURCE = "load"

_DEATHS_PER_ROUND = 8
_ROUNDS_TO_WIN = 13


class Scenario(Struct, frozen=True):
    """One run's names, and what its subscribers follow."""

    run_id: str
    seed: int = 1

    @property
    def polls(self) -> tuple[str, ...]:
        """Ids, one for each of `VOTING`."""
        return tuple(f"{self.run_id}-{voting}" for voting in VOTING)

    @property
    def match_id(self) -> str:
        """The one match."""
        return f"{self.run_id}-match"

    def definition(self, poll_id: str) -> dict[str, Any]:
        """Body of the PUT that creates a poll."""
        voting = poll_id.rpartition("-")[2]
        options = [{"id": option, "label": f"Option {option.upper()}"} for option in OPTIONS]
        return {"title": f"Load test, {voting}", "options": options, "voting": voting, "match_id": self.match_id}

    def topics(self, subscriber: int, follow: str) -> tuple[str, ...]:
        """What a subscriber follows: the match, and `follow` one poll (as a viewer does) or all of them."""
        polls = self.polls if follow == "all" else (self.polls[subscriber % len(self.polls)],)
        return (*(f"poll.{poll_id}" for poll_id in polls), f"match.{self.match_id}.*")


class Ballots:
    """Bodies of votes, each vote with an id of its own."""

    def __init__(self, scenario: Scenario) -> None:
        self._polls = scenario.polls
        self._random = random.Random(scenario.seed)
        self._prefix = scenario.run_id
        self._number = 0

    def size(self) -> int:
        """How many votes the next body shall have."""
        return self._random.randint(1, BODY_MAX_VOTES)

    def is_repeated(self) -> bool:
        """Whether the body at hand is sent a second time."""
        return self._random.random() < REPEAT_SHARE

    def body(self, size: int) -> list[Vote]:
        """New votes; most bodies are of one poll, as those of one source are."""
        draw = self._random.random
        mixed = draw() < 0.2
        poll_id = self._poll()
        votes = []
        for _ in range(size):
            self._number += 1
            votes.append(
                Vote(
                    f"{self._prefix}-{self._number:x}",
                    self._poll() if mixed else poll_id,
                    OPTIONS[int(draw() * len(OPTIONS))],
                    f"load:{int(draw() * VOTERS)}",
                    source=SOURCE,
                )
            )
        return votes

    def _poll(self) -> str:
        return self._random.choices(self._polls, POLL_SHARES)[0]


def match_events(scenario: Scenario) -> Iterator[dict[str, Any]]:
    """Events of one match without end: map after map of rounds, each with its deaths, a score and a result."""
    source = random.Random(scenario.seed)
    numbers = iter(range(10**9))
    teams = ("Alpha", "Bravo")

    def event(map_id: str, type_: str, data: dict[str, Any], round_no: int | None = None) -> dict[str, Any]:
        return {
            "event_id": f"{scenario.run_id}-e{next(numbers):06d}", "match_id": scenario.match_id, "map_id": map_id,
            "type": type_, "round_no": round_no, "source": SOURCE, "data": data,
        }  # fmt: skip

    yield event("series", "series_start", {"num_maps": 5, "team1": {"name": teams[0]}, "team2": {"name": teams[1]}})
    maps_won = [0, 0]
    for number in range(10**6):
        map_id = str(number)
        yield event(map_id, "going_live", {"map_number": number, "map_name": "de_mirage"})
        score = [0, 0]
        while max(score) < _ROUNDS_TO_WIN:
            round_no = sum(score) + 1
            for victim in range(_DEATHS_PER_ROUND):
                yield event(map_id, "player_death", {"player": f"player_{victim}", "weapon": "ak47"}, round_no)
            score[source.random() < 0.5] += 1
            yield event(map_id, "round_end", {"reason": 8, **_teams(teams, score)}, round_no)
        maps_won[score[1] > score[0]] += 1
        yield event(map_id, "map_result", _teams(teams, score, maps_won))


def _teams(names: tuple[str, str], score: list[int], maps_won: list[int] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {f"team{n + 1}": {"name": names[n], "score": score[n]} for n in (0, 1)}
    if maps_won is not None:
        for n in (0, 1):
            found[f"team{n + 1}"]["series_score"] = maps_won[n]
    return found
