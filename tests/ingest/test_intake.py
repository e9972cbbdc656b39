"""Votes and events to groups for the log."""

import json

import msgspec
import pytest

from core.digest import voter_hash, voter_key
from core.events import MatchEvent, Vote
from core.problem import Problem
from ingest.intake import event_groups, vote_faults, vote_groups
from tests.ingest.conftest import event, vote

KEY = voter_key("a secret for tests")


def votes(*items: dict[str, object]) -> list[Vote]:
    return msgspec.convert(items, list[Vote])


def test_votes_are_grouped_by_poll_in_the_order_of_the_body() -> None:
    body = votes(vote("e1"), vote("e2", poll_id="p2", source="web"), vote("e3", source="twitch"))
    first, second = vote_groups(body, KEY, 17, "corr")
    assert (first.topic, first.items[::2], first.sources) == ("poll.p1", ["e1", "e3"], ["api", "twitch"])
    assert (second.topic, second.items[::2], second.sources) == ("poll.p2", ["e2"], ["web"])
    assert first.header == "vote poll.p1 17 corr"


def test_a_voter_is_the_same_hash_everywhere_and_not_the_name() -> None:
    groups = vote_groups(votes(vote("e1", voter="twitch:1"), vote("e2", poll_id="p2", voter="twitch:1")), KEY, 1, "c")
    hashes = {json.loads(group.items[1])["voter"] for group in groups}
    assert hashes == {voter_hash(KEY, "twitch:1")}
    assert "twitch:1" not in repr(groups)


def test_votes_for_what_is_not_there_are_told_one_by_one() -> None:
    body = votes(vote("e0"), vote("e1", poll_id="p2"), vote("e2", option="z"))
    found = vote_faults(body, {"p1": frozenset("ab")})
    assert [(error.index, error.path) for error in found] == [(1, "poll_id"), (2, "option")]


def test_events_are_grouped_by_topic_and_all_that_are_too_large_are_told() -> None:
    events = msgspec.convert([event("e1"), event("e2", map_id="2"), event("e3")], list[MatchEvent])
    first, second = event_groups(events, 17, "corr")
    assert (first.topic, first.items[::2], first.header) == ("match.m1.1", ["e1", "e3"], "match match.m1.1 17 corr")
    assert (second.topic, second.items[::2]) == ("match.m1.2", ["e2"])
    large = msgspec.convert(event("e4", data={"x": "y" * 300_000}), MatchEvent)
    with pytest.raises(Problem) as caught:
        event_groups([large, *events, large], 17, "corr")
    assert [(error.index, error.path) for error in caught.value.errors] == [(0, "data"), (4, "data")]
