"""Scores, rounds and results of CS2 maps from the bodies that feeds really send."""

from typing import Any

import msgspec
import pytest

from consumers.reducers.cs2_map import Change, Cs2Map
from consumers.reducers.series import Series
from consumers.reducers.win_chance import round_probability, win_probability
from core.events import MatchEvent


def event(type_: str, data: dict[str, Any], source: str = "matchzy", **more: Any) -> MatchEvent:
    return MatchEvent("e", "m", "0", type_, source=source, data=data, **more)


def round_end(score1: int, score2: int, leader: str = "team2", reason: int = 9) -> MatchEvent:
    """A round_end as MatchZy 0.8.15 sends it: `winner.team` is the leader, the side is a number as text."""
    return event(
        "round_end",
        {
            "map_number": 0,
            "round_number": score1 + score2,
            "reason": reason,
            "winner": {"side": "2", "team": leader},
            "team1": {"id": "", "name": "Alpha", "score": score1, "score_ct": 0, "score_t": 0},
            "team2": {"id": "", "name": "Bravo", "score": score2, "score_ct": 0, "score_t": 0},
        },
    )


def played(*scores: tuple[int, int]) -> Cs2Map:
    state = Cs2Map("m", "0")
    state.apply(event("going_live", {"map_number": 0}))
    for score in scores:
        state.apply(round_end(*score))
    return state


def winners(state: Cs2Map) -> list[str | None]:
    return [known.winner for known in state.rounds]


def test_the_round_winner_is_the_team_whose_score_grew_not_the_leader() -> None:
    state = played((1, 0), (2, 0), (2, 1))  # Alpha leads throughout
    assert winners(state) == ["team1", "team1", "team2"]
    assert state.view()["team2"] == {"name": "Bravo", "score": 1}
    assert state.status == "live"


def test_a_restore_replaces_the_round_and_takes_later_ones_back() -> None:
    state = played((1, 0), (2, 0), (2, 1), (3, 1))
    change = state.apply(round_end(1, 1))
    assert winners(state) == ["team1", "team2"]
    assert [known.round_no for known in change.rounds] == [2]
    assert [known.round_no for known in change.void] == [3, 4]
    assert state.view()["round_no"] == 2


def test_missed_rounds_are_filled_in_when_the_score_tells_who_won_them() -> None:
    state = played((1, 0))
    change = state.apply(round_end(1, 2))
    assert winners(state) == ["team1", "team2", "team2"]
    assert len(change.rounds) == 2


def test_missed_rounds_with_an_unknown_order_have_no_winner() -> None:
    state = played((1, 0))
    state.apply(round_end(2, 2))
    assert [(known.round_no, known.winner) for known in state.rounds] == [(1, "team1"), (4, None)]


def test_a_round_end_after_the_result_changes_nothing() -> None:
    state = played((1, 0))
    final = {"team1": {"name": "Alpha", "score": 13}, "team2": {"name": "Bravo", "score": 9}}
    assert state.apply(event("map_result", {**final, "winner": {"team": "team2", "side": "3"}})).state
    before = state.snapshot()
    assert state.apply(round_end(13, 9)) == Change()
    assert state.snapshot() == before
    assert (state.status, state.winner) == ("finished", "team1")


def test_a_result_before_its_last_round_end_completes_the_rounds() -> None:
    state = played(*[(n, 0) for n in range(1, 13)])
    state.apply(event("map_result", {"team1": {"score": 13}, "team2": {"score": 0}}))
    assert winners(state) == ["team1"] * 13


def test_a_draw_is_told_from_the_scores_whatever_the_feed_names() -> None:
    state = played((1, 0))
    state.apply(event("map_result", {"winner": {"team": "team2"}, "team1": {"score": 12}, "team2": {"score": 12}}))
    assert state.winner == "draw"


def test_flat_scores_of_forks_are_understood() -> None:
    state = Cs2Map("m", "0")
    state.apply(event("map_result", {"team1_score": 9, "team2_score": 13, "winner": "team1"}))
    assert (state.score1, state.score2, state.winner) == (9, 13, "team2")


def test_a_feed_without_scores_counts_the_named_winner() -> None:
    state = Cs2Map("m", "0")
    for number, winner in enumerate(["team1", "team2", "team1"], 1):
        state.apply(event("round_end", {"winner": winner}, source="api", round_no=number))
    assert (state.score1, state.score2) == (2, 1)


def test_going_live_again_starts_the_map_over() -> None:
    state = played((1, 0), (1, 1))
    change = state.apply(event("going_live", {}))
    assert [known.round_no for known in change.void] == [1, 2]
    assert (state.score1, state.score2, state.rounds) == (0, 0, [])


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"team1": None, "team2": 5},
        {"team1": {"score": "13"}, "team2": {"score": -1}},
        {"team1": {"score": True}, "team2": {"score": 1e9}},
        {"team1": {"score": 10**30}, "team2": {"score": 0}},
        {"winner": []},
    ],
)
def test_bodies_of_any_shape_are_taken_without_a_change(data: dict[str, Any]) -> None:
    state = played((1, 0))
    before = state.snapshot()
    state.apply(event("round_end", data))
    assert state.snapshot() == before


def test_the_series_remembers_picks_and_takes_its_score_from_results() -> None:
    series = Series("m")
    assert series.apply(event("series_start", {"num_maps": 3, "team1": {"name": "Alpha"}, "team2": {"name": "Bravo"}}))
    assert series.apply(event("map_picked", {"map_number": 1, "map_name": "de_mirage", "team": "team1"}))
    assert not series.apply(event("map_picked", {"map_number": 1, "map_name": "de_mirage", "team": "team1"}))
    assert series.map_finished(event("map_result", {"team1": {"series_score": 1}, "team2": {"series_score": 0}}))
    assert series.apply(event("series_end", {"team1_series_score": 2, "team2_series_score": 0, "winner": {}}))
    view = series.view()
    assert (view["status"], view["winner"], view["maps"]) == (
        "finished",
        "team1",
        [{"map_id": "0", "map_name": "de_mirage"}],
    )


@pytest.mark.parametrize(
    ("score1", "score2", "chance"),
    [(0, 0, 0.5), (12, 12, 0.5), (13, 4, 1.0), (4, 13, 0.0), (12, 11, 0.75), (15, 14, 0.75), (16, 14, 1.0)],
)
def test_win_probability_of_known_positions(score1: int, score2: int, chance: float) -> None:
    assert win_probability(score1, score2) == pytest.approx(chance)


def test_win_probability_satisfies_its_recursion_everywhere() -> None:
    """P(a, b) = p P(a+1, b) + (1-p) P(a, b+1): the defining property of the race, overtimes included."""
    p = 0.57
    undecided = [(a, b) for a in range(13) for b in range(13)] + [(13, 12), (14, 13), (15, 15), (15, 14)]
    for a, b in undecided:
        after = p * win_probability(a + 1, b, p) + (1 - p) * win_probability(a, b + 1, p)
        assert win_probability(a, b, p) == pytest.approx(after), (a, b)
        assert win_probability(a, b, p) + win_probability(b, a, 1 - p) == pytest.approx(1)


def test_a_named_winner_is_trusted_from_feeds_that_name_it_rightly() -> None:
    state = Cs2Map("m", "0")
    body = {"team1": {"score": 6}, "team2": {"score": 4}, "winner": {"team": "team1", "side": "ct"}, "reason": 7}
    state.apply(event("round_end", body, source="get5"))
    assert [(known.round_no, known.winner, known.reason) for known in state.rounds] == [(10, "team1", "ct_elimination")]


@pytest.mark.parametrize("chance", [0.01, 0.3, 0.5, 0.731, 0.99])
def test_a_prior_for_the_map_becomes_a_chance_per_round(chance: float) -> None:
    p_round = round_probability(chance)
    assert win_probability(0, 0, p_round) == pytest.approx(chance, abs=1e-12)
    assert round_probability(1 - chance) == pytest.approx(1 - p_round, abs=1e-12)


def test_a_prior_counts_from_its_place_in_the_log() -> None:
    state = Cs2Map("m", "1")
    change = state.apply(event("win_prior", {"p_team1": 0.7, "model": "elo-mov/1"}))
    assert (change.state, change.prediction, state.prediction()) == (False, False, None), "nothing is live yet"
    state.apply(event("going_live", {}))
    found = state.prediction()
    assert found is not None
    assert (found["p_team1"], found["model"]) == (pytest.approx(0.7), "mr12-race/1+elo-mov/1")
    assert state.apply(event("win_prior", {"p_team1": 0.6, "model": "mine"})).prediction
    assert state.p_team1 == pytest.approx(0.6)


@pytest.mark.parametrize(
    "data",
    [
        {}, {"p_team1": 0.7}, {"p_team1": "0.7", "model": "m"}, {"p_team1": 1.0, "model": "m"},
        {"p_team1": 0.001, "model": "m"}, {"p_team1": True, "model": "m"}, {"p_team1": 0.7, "model": "no spaces"},
        {"p_team1": 0.7, "model": "m" * 33}, {"p_team1": 10**400, "model": "m"},
    ],
)  # fmt: skip
def test_a_senseless_prior_changes_nothing(data: dict[str, Any]) -> None:
    state = Cs2Map("m", "1")
    state.apply(event("going_live", {}))
    before = msgspec.structs.asdict(state)
    assert not state.apply(event("win_prior", data)).prediction
    assert msgspec.structs.asdict(state) == before


def test_no_round_is_in_the_list_twice_when_a_feed_sends_scores_only_sometimes() -> None:
    state = Cs2Map("m", "0")
    state.apply(round_end(1, 0))
    state.apply(event("round_end", {"winner": "team1"}, source="api", round_no=3))  # the score is 2:0 now
    state.apply(round_end(4, 0))
    assert [known["round_no"] for known in state.view()["rounds"]] == [1, 3, 4]  # type: ignore[attr-defined]
    assert state.view()["team1"] == {"name": "Alpha", "score": 4}
