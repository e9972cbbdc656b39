"""Elo ratings of teams from finished maps: pure, a function of the maps in the order in which they ended.

Model `elo-mov/1`:

    expected = 1 / (1 + 10^((rating2 - rating1) / 400))                      Elo, The Rating of Chessplayers, 1978
    change   = K * margin * (result - expected), K = 20                      result: 1, 0, or 0.5 for a draw
    margin   = ln(max(|rounds1 - rounds2|, 1) + 1) * 2.2 / (0.001 * lead + 2.2)

K and the margin's factor are FiveThirtyEight's, from their NFL ratings ("How Our NFL Predictions Work"; the code is
their repository nfl-elo-game, forecast.py). `lead` is the winner's rating minus the loser's: favourites win more
clearly, and without the second factor their ratings would run away (autocorrelation); a draw has no winner and divides
by 1. A map's margin, 1 to 13 rounds, is of the size of a football game's. Teams start at 1500 and are known by the name
their feed gives. Nothing decays and no season begins anew: whoever knows of line-ups may send priors of their own.
"""

from collections.abc import Iterable
from math import log

from msgspec import Struct

MODEL = "elo-mov/1"
START = 1500.0
_K = 20.0
_SCALE = 400.0
_DAMPING_MIN = 1.0
"""Of `0.001 * lead + 2.2`: an upset by a team 1200 points behind counts no more than this."""

_RESULTS = {"team1": 1.0, "team2": 0.0, "draw": 0.5}


class FinishedMap(Struct, frozen=True):
    """A map with a result. `winner`: team1, team2 or draw; `ended_ms`: Unix time."""

    match_id: str
    map_id: str
    team1: str
    team2: str
    score1: int
    score2: int
    winner: str
    ended_ms: int


class RatedMap(Struct, frozen=True):
    """What a map did: ratings before it, what they expected of team 1, what it achieved, what it gained."""

    ordinal: int
    played: FinishedMap
    before1: float
    before2: float
    expected1: float
    result1: float
    change1: float


def expected(rating1: float, rating2: float) -> float:
    """Chance of team 1 to win a map, by the ratings alone."""
    exponent: float = 10.0 ** ((rating2 - rating1) / _SCALE)
    return 1.0 / (1.0 + exponent)


def margin_factor(margin: int, lead: float | None) -> float:
    """How much a map counts. `lead`: winner's rating minus loser's before it, None for a draw."""
    damping = 1.0 if lead is None else max(_DAMPING_MIN, 0.001 * lead + 2.2)
    return log(max(abs(margin), 1) + 1.0) * 2.2 / damping


def rate(maps: Iterable[FinishedMap]) -> tuple[list[RatedMap], dict[str, float]]:
    """Every map with its ratings, and the ratings in the end. `maps` come in the order in which they ended."""
    ratings: dict[str, float] = {}
    rated = []
    for ordinal, played in enumerate(maps, 1):
        before1, before2 = ratings.get(played.team1, START), ratings.get(played.team2, START)
        chance, result = expected(before1, before2), _RESULTS[played.winner]
        lead = None if result == 0.5 else (before1 - before2 if result == 1.0 else before2 - before1)
        change = _K * margin_factor(played.score1 - played.score2, lead) * (result - chance)
        ratings[played.team1], ratings[played.team2] = before1 + change, before2 - change
        rated.append(RatedMap(ordinal, played, before1, before2, chance, result, change))
    return rated, ratings
