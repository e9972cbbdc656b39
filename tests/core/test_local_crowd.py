"""The demo's crowd: bounded in rate and in size, and lively."""

import random

from core.local.crowd import BASE_PER_S, BODY_MAX_VOTES, RUSH_PER_S, Crowd, opinion, rate_per_s


def test_rate_rushes_after_a_round_and_falls_back() -> None:
    rates = [rate_per_s(seconds) for seconds in (0, 1, 2, 4, 100, float("inf"))]
    assert rates[0] == RUSH_PER_S
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == BASE_PER_S


def test_crowd_casts_as_many_votes_as_its_rate_says_in_bodies_of_1_to_10() -> None:
    crowd = Crowd(random.Random(1))
    bodies = [body for _ in range(1000) for body in crowd.bodies(0.1, float("inf"), 0.5)]
    assert {len(body) for body in bodies} <= set(range(1, BODY_MAX_VOTES + 1))
    assert len({len(body) for body in bodies}) > 2
    assert abs(sum(map(len, bodies)) - 100 * BASE_PER_S) <= 1


def test_some_vote_again_and_most_do_not() -> None:
    crowd = Crowd(random.Random(1))
    voters = [ballot.voter for _ in range(100) for body in crowd.bodies(1, 0, 0.5) for ballot in body]
    assert 0.6 < len(set(voters)) / len(voters) < 0.98


def test_opinion_follows_the_lead_and_is_never_unanimous() -> None:
    assert opinion(5, 0, 0) > opinion(0, 0, 0) == 0.5 > opinion(0, 5, 0)
    assert 0.1 <= opinion(0, 13, -1) < opinion(13, 0, 1) <= 0.9
