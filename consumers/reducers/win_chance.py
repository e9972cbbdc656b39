"""Chance of winning a CS2 map from its score: the analytic MR12 race.

Model `mr12-race/1`: rounds are independent and each team wins one with probability p: one half, or what a prior for
the whole map says (`round_probability`). A map is a
race to 13 of at most 24 rounds; at 12:12 overtimes of 6 rounds (MR3) follow, each won with 4 rounds, repeated at 3:3
(Counter-Strike 2 Premier and Valve Major rules: mp_maxrounds 24, mp_overtime_maxrounds 6). The race is Pascal and
Fermat's "problem of points" (1654): with `a` and `b` rounds still needed, team 1 wins with the probability of at least
`a` successes in `a + b - 1` trials. The tie at the end of each overtime leads back to its start, which gives a
geometric series: P = win / (win + loss).
"""

from math import comb

MODEL = "mr12-race/1"

_REGULATION_WIN = 13
_REGULATION_TIE = 12
_OVERTIME_HALF = 3


def _race(needed1: int, needed2: int, p: float) -> float:
    """Probability that team 1 reaches its points first (problem of points)."""
    if needed1 <= 0:
        return 1.0
    if needed2 <= 0:
        return 0.0
    trials = needed1 + needed2 - 1
    return sum(comb(trials, wins) * p**wins * (1 - p) ** (trials - wins) for wins in range(needed1, trials + 1))


def _tie(needed1: int, needed2: int, p: float) -> float:
    """Probability that both teams end one point short: `needed - 1` each, in any order."""
    wins, losses = needed1 - 1, needed2 - 1
    if wins < 0 or losses < 0:
        return 0.0
    return comb(wins + losses, wins) * p**wins * (1 - p) ** losses


def _with_overtimes(needed1: int, needed2: int, p: float) -> float:
    """Race in which being tied one point short leads to a fresh overtime (win by 4 of 6, again at 3:3)."""
    fresh = _OVERTIME_HALF + 1
    fresh_tie = _tie(fresh, fresh, p)
    # `_race` plays past the tie to the last point; take that deciding round out again.
    fresh_win = _race(fresh, fresh, p) - fresh_tie * p
    overtime = fresh_win / (1 - fresh_tie)
    tie = _tie(needed1, needed2, p)
    return _race(needed1, needed2, p) - tie * p + tie * overtime


def win_probability(score1: int, score2: int, p: float = 0.5) -> float:
    """Probability, 0 to 1, that team 1 wins the map at this score; `p` is its chance to win one round.

    Raises ValueError for negative scores or p outside (0, 1). Scores that no map can have (a race already decided)
    give 1 or 0.
    """
    if score1 < 0 or score2 < 0 or not 0 < p < 1:
        raise ValueError("scores must not be negative and p must lie between 0 and 1")
    if min(score1, score2) < _REGULATION_TIE:
        return _decided_or(score1, score2, _REGULATION_WIN, p)
    # Each overtime starts at an equal score of 12 + 3 i and is won with 4 more.
    start = _REGULATION_TIE + _OVERTIME_HALF * ((min(score1, score2) - _REGULATION_TIE) // _OVERTIME_HALF)
    return _decided_or(score1, score2, start + _OVERTIME_HALF + 1, p)


def round_probability(p_map: float) -> float:
    """Chance to win one round that gives the chance `p_map` to win the map from 0:0: the race, inverted.

    By bisection, because the race is a polynomial of degree 24 that only grows with p; 53 halvings are a double's
    precision. Raises ValueError for a chance outside (0, 1).
    """
    if not 0 < p_map < 1:
        raise ValueError("the chance must lie between 0 and 1")
    low, high = 0.0, 1.0
    for _ in range(53):
        middle = (low + high) / 2
        if win_probability(0, 0, middle) < p_map:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _decided_or(score1: int, score2: int, goal: int, p: float) -> float:
    if score1 >= goal or score2 >= goal:
        return 1.0 if score1 > score2 else 0.0
    return _with_overtimes(goal - score1, goal - score2, p)
