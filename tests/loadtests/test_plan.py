"""Which body is due when."""

from collections import Counter

import pytest

from loadtests.curves import burst, sustained
from loadtests.mix import BODY_MAX_VOTES, EVENT_SHARE, Scenario, match_events
from loadtests.plan import Body, MatchPlan, Plan

SCENARIO = Scenario("t")


def bodies(plan: Plan) -> list[Body]:
    return list(iter(plan.next, None))


def test_votes_and_events_together_have_the_rate_of_the_curve() -> None:
    curve = sustained(1000, 10)
    votes = sum(len(body.votes) for body in bodies(Plan(curve, SCENARIO, 0.0)))
    events = len(MatchPlan(curve, SCENARIO, 0.0).take(10.0, 10**6))
    assert votes + events == pytest.approx(10_000, abs=BODY_MAX_VOTES)
    assert events == 10_000 * EVENT_SHARE


def test_every_second_gets_its_share_of_a_burst() -> None:
    curve = burst(seconds=12)
    per_second = Counter[int]()
    for body in bodies(Plan(curve, SCENARIO, 0.0)):
        per_second[int(body.due)] += len(body.votes)
    for second in range(12):
        expected = (curve.count(second + 1) - curve.count(second)) * (1 - EVENT_SHARE)
        assert per_second[second] == pytest.approx(expected, abs=2 * BODY_MAX_VOTES)


def test_bodies_have_1_to_10_votes_and_come_in_order() -> None:
    found = bodies(Plan(sustained(1000, 5), SCENARIO, 100.0))
    assert {len(body.votes) for body in found} == set(range(1, BODY_MAX_VOTES + 1))
    assert [body.due for body in found] == sorted(body.due for body in found)
    assert found[0].due == 100.0


def test_a_repeat_is_a_body_that_was_due_before_whole_and_unchanged() -> None:
    earlier: dict[str, Body] = {}
    repeats = 0
    for body in bodies(Plan(sustained(2000, 10), SCENARIO, 0.0)):
        first = body.votes[0].event_id
        if body.is_repeat:
            repeats += 1
            assert earlier[first].votes == body.votes
            assert earlier[first].due < body.due
        else:
            assert first not in earlier
            earlier[first] = body
    assert repeats == pytest.approx(0.02 * len(earlier), rel=0.5)


def test_the_same_scenario_gives_the_same_bodies() -> None:
    plans = [bodies(Plan(sustained(500, 2), SCENARIO, 0.0)) for _ in range(2)]
    assert plans[0] == plans[1]


def test_match_events_that_are_overdue_are_taken_together() -> None:
    plan = MatchPlan(sustained(1000, 10), SCENARIO, 50.0)
    assert plan.due == pytest.approx(50.05)
    assert plan.take(50.0, 99) == []
    taken = plan.take(50.3, 2)
    assert [due for due, _ in taken] == pytest.approx([50.05, 50.15])
    assert len(plan.take(99.0, 10**6)) == 98
    assert plan.due is None


def test_match_events_have_ids_of_their_own_and_scores_that_grow() -> None:
    events = [event for event, _ in zip(match_events(SCENARIO), range(600), strict=False)]
    assert len({event["event_id"] for event in events}) == 600
    assert {event["type"] for event in events} >= {"series_start", "going_live", "round_end", "map_result"}
    for event in events:
        if event["type"] == "round_end":
            assert event["data"]["team1"]["score"] + event["data"]["team2"]["score"] == event["round_no"]
