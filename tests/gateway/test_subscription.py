"""What may be asked for, and what it is reduced to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.names import TOPICS_MAX
from gateway.subscription import pattern_of, split, subscription


def test_same_request_in_another_order_is_the_same_subscription() -> None:
    one = subscription(["poll.b", "poll.a", "poll.b"], ["round_end", "going_live"])
    other = subscription(["poll.a", "poll.b"], ["going_live", "round_end"])
    assert one == other
    assert hash(one) == hash(other)
    assert one.topics == ("poll.a", "poll.b")


def test_pattern_takes_its_maps_in() -> None:
    wanted = subscription(["match.m1.1", "match.m1.*", "match.m2.1", "poll.p"])
    assert wanted.routes == ("match.m1.*", "match.m2.1", "poll.p")
    assert wanted.topics == ("match.m1.*", "match.m1.1", "match.m2.1", "poll.p")


def test_routes_of_a_match_share_a_shard() -> None:
    wanted = subscription(["match.m1.1", "match.m1.2", "match.m1.series"])
    assert len(wanted.routes_by_shard(64)) == 1


@pytest.mark.parametrize(
    "topics", [[], ["poll"], ["poll."], ["poll.a\n"], ["match.m"], ["match.*.1"], ["match.m.1.2"], ["poll.*"], ["x.y"]]
)
def test_malformed_topics_are_refused(topics: list[str]) -> None:
    with pytest.raises(ValueError):
        subscription(topics)


def test_sixty_four_topics_and_no_more() -> None:
    subscription([f"poll.p{n}" for n in range(TOPICS_MAX)])
    with pytest.raises(ValueError):
        subscription([f"poll.p{n}" for n in range(TOPICS_MAX + 1)])


@pytest.mark.parametrize("types", [["Round"], ["a b"], ["open"], ["error"], ["x"] * 65, ["\n"]])
def test_malformed_types_are_refused(types: list[str]) -> None:
    with pytest.raises(ValueError):
        subscription(["poll.a"], types)


def test_filter_of_state_kinds_only_asks_for_no_events() -> None:
    assert subscription(["poll.a"], ["tally", "state"]).types == frozenset()
    assert subscription(["poll.a"], []).types is None


@given(st.lists(st.sampled_from(["poll.a", "match.m.1", "match.m.2", "match.m.*"]), min_size=1))
def test_taking_away_leaves_the_rest(topics: list[str]) -> None:
    wanted = subscription(topics)
    rest = wanted.without(["match.m.*"])
    assert (rest.topics if rest else ()) == tuple(topic for topic in wanted.topics if topic != "match.m.*")


def test_helpers() -> None:
    assert split(["a,b", "", "c,,d"]) == ["a", "b", "c", "d"]
    assert pattern_of("match.m1.3") == "match.m1.*"
    assert pattern_of("poll.p1") == ""
