"""Elo ratings: the formula, and what follows from being a function of the maps in their order."""

from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.ratings import START, FinishedMap, expected, margin_factor, rate

TEAMS = st.sampled_from(["A", "B", "C", "D"])


def played(team1: str, team2: str, score1: int, score2: int) -> FinishedMap:
    winner = "team1" if score1 > score2 else "team2" if score2 > score1 else "draw"
    return FinishedMap("m", "0", team1, team2, score1, score2, winner, 1)


def test_the_first_map_of_two_new_teams_by_hand() -> None:
    ((only,), ratings) = rate([played("A", "B", 13, 7)])
    assert (only.before1, only.before2, only.expected1, only.result1) == (START, START, 0.5, 1.0)
    assert only.change1 == pytest.approx(20 * log(7) * 0.5)
    assert ratings == {"A": START + only.change1, "B": START - only.change1}


def test_a_difference_of_400_is_ten_to_one() -> None:
    assert expected(1900, 1500) == pytest.approx(10 / 11)
    assert expected(1500, 1900) == pytest.approx(1 / 11)


def test_a_favourites_clear_win_counts_less_than_an_outsiders() -> None:
    assert margin_factor(10, 200) == pytest.approx(log(11) * 2.2 / 2.4)
    assert margin_factor(10, 200) < margin_factor(10, 0) < margin_factor(10, -200)
    assert margin_factor(0, None) == pytest.approx(log(2) * 2.2)


def test_no_upset_counts_without_bound() -> None:
    assert margin_factor(13, -5000) == pytest.approx(log(14) * 2.2)


MAPS = st.lists(
    st.tuples(TEAMS, TEAMS, st.integers(0, 16), st.integers(0, 16)).filter(lambda game: game[0] != game[1]), max_size=40
)


@given(MAPS)
def test_points_are_only_handed_over_and_history_is_a_prefix(games: list[tuple[str, str, int, int]]) -> None:
    maps = [played(*game) for game in games]
    rated, ratings = rate(maps)
    assert sum(ratings.values()) == pytest.approx(START * len(ratings))
    for item in rated:
        assert (item.change1 > 0) == (item.result1 > item.expected1)
    assert rate(maps[:-1])[0] == rated[:-1]
    assert rate(maps) == (rated, ratings)
