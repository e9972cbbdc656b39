"""A crowd that votes: who votes when and for what, as pure functions of a random source.

Nothing here is measured from a real audience. The shape is what one sees in any chat: a steady trickle, a rush right
after a round, a few who vote twice, and opinions that follow the score.
"""

import random
from dataclasses import dataclass

BASE_PER_S = 30.0
RUSH_PER_S = 150.0
RUSH_S = 4.0
"""After a round the rate starts at the rush and falls back to the base over this time."""

BODY_MAX_VOTES = 10
VOTERS = 20_000
AGAIN_SHARE = 0.04
"""Votes of somebody who has voted a moment ago: rejected where the first vote counts, a changed mind elsewhere."""

_RECENT = 200


@dataclass(frozen=True)
class Ballot:
    """One vote before it has an id."""

    voter: str
    option: str


class Crowd:
    """Votes of one audience."""

    def __init__(self, source: random.Random) -> None:
        self._random = source
        self._owed = 0.0
        self._recent: list[str] = []

    def bodies(self, elapsed_s: float, since_round_s: float, share_team1: float) -> list[list[Ballot]]:
        """What is cast within `elapsed_s`, in bodies of 1 to 10. `share_team1` is the opinion now, 0 to 1."""
        self._owed += rate_per_s(since_round_s) * elapsed_s
        result = []
        while self._owed >= 1:
            size = min(self._random.randint(1, BODY_MAX_VOTES), int(self._owed))
            self._owed -= size
            result.append([self._ballot(share_team1) for _ in range(size)])
        return result

    def _ballot(self, share_team1: float) -> Ballot:
        if self._recent and self._random.random() < AGAIN_SHARE:
            voter = self._random.choice(self._recent)
        else:
            voter = f"demo:{self._random.randrange(VOTERS)}"
            self._recent = [*self._recent[-_RECENT:], voter]
        return Ballot(voter, "team1" if self._random.random() < share_team1 else "team2")


def rate_per_s(since_round_s: float) -> float:
    """Votes per second this long after a round ended."""
    rush = max(0.0, 1.0 - since_round_s / RUSH_S)
    return BASE_PER_S + (RUSH_PER_S - BASE_PER_S) * rush


def opinion(score_team1: int, score_team2: int, mood: float) -> float:
    """Share of the crowd for team 1: follows the lead, swayed by a mood of -1 to 1, never unanimous."""
    return min(0.9, max(0.1, 0.5 + 0.06 * (score_team1 - score_team2) + 0.15 * mood))
