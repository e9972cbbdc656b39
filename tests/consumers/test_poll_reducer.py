"""The counting rules of a poll, as properties over arbitrary votes."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from consumers.reducers.poll import Poll, create
from core.digest import MASK, vote_hash
from core.events import Option, PollDefinition, Vote

votes = st.lists(st.tuples(st.sampled_from("abcz"), st.sampled_from(["v1", "v2", "v3", "v4"])), max_size=40)


def poll(voting: str, **more: object) -> Poll:
    options = tuple(Option(letter, letter.upper()) for letter in "abc")
    return create(PollDefinition("p", "Title", options, voting, **more), 0)  # type: ignore[arg-type]


def cast(state: Poll, ballots: list[tuple[str, str]]) -> dict[str, str]:
    """Apply ballots (option, voter) as the batch reducer does; returns the counted vote of each voter."""
    chosen: dict[str, str] = {}
    for number, (option, voter) in enumerate(ballots):
        if state.vote(Vote(f"e{number}", "p", option, voter), chosen.get(voter)):
            chosen[voter] = option
    return chosen


@given(votes, st.sampled_from(["first", "last", "unlimited"]))
def test_every_vote_is_counted_replaced_or_rejected(ballots: list[tuple[str, str]], voting: str) -> None:
    state = poll(voting)
    cast(state, ballots)
    assert state.applied == len(ballots)
    assert sum(state.counts.values()) + sum(state.rejected.values()) + state.replaced == state.applied
    assert state.digest == sum(vote_hash(f"e{i}", option) for i, (option, _) in enumerate(ballots)) & MASK


@given(votes)
def test_first_counts_the_first_valid_vote_of_each_voter(ballots: list[tuple[str, str]]) -> None:
    state = poll("first")
    cast(state, ballots)
    first: dict[str, str] = {}
    for option, voter in ballots:
        if option in "abc":
            first.setdefault(voter, option)
    assert {key: count for key, count in state.counts.items() if count} == dict(Counter(first.values()))
    assert state.voters == len(first)


@given(votes)
def test_last_counts_the_newest_valid_vote_of_each_voter(ballots: list[tuple[str, str]]) -> None:
    state = poll("last")
    chosen = cast(state, ballots)
    newest = {voter: option for option, voter in ballots if option in "abc"}
    assert chosen == newest
    assert {key: count for key, count in state.counts.items() if count} == dict(Counter(newest.values()))
    assert sum(state.counts.values()) == state.voters == len(newest)


@given(votes)
def test_unlimited_counts_every_valid_vote(ballots: list[tuple[str, str]]) -> None:
    state = poll("unlimited")
    cast(state, ballots)
    assert sum(state.counts.values()) == sum(option in "abc" for option, _ in ballots)
    assert state.voters == len({voter for option, voter in ballots if option in "abc"})


@given(votes, votes)
def test_votes_after_the_close_are_late_and_stay_in_the_digest(
    before: list[tuple[str, str]], after: list[tuple[str, str]]
) -> None:
    state = poll("first")
    cast(state, before)
    counts = dict(state.counts)
    assert state.close()
    cast(state, after)
    assert state.counts == counts
    assert state.rejected.get("late", 0) == len(after)
    assert state.applied == len(before) + len(after)


def test_a_vote_before_the_opening_is_early() -> None:
    from datetime import UTC, datetime

    state = poll("first", opens_at=datetime(2030, 1, 1, tzinfo=UTC))
    assert state.status == "pending"
    cast(state, [("a", "v1")])
    assert state.rejected == {"early": 1}
    assert state.open()
    assert not state.open()
    cast(state, [("a", "v1")])
    assert state.counts["a"] == 1


def test_an_option_with_votes_survives_a_definition_without_it() -> None:
    state = poll("first")
    cast(state, [("a", "v1")])
    assert state.redefine(PollDefinition("p", "New", (Option("b", "B"),)), 0)
    assert state.counts == {"b": 0, "a": 1}
    assert state.definition.title == "New"


def test_nothing_changes_a_closed_poll() -> None:
    state = poll("first")
    assert state.close()
    assert not state.close()
    assert not state.redefine(PollDefinition("p", "New", (Option("b", "B"),)), 0)
    assert not state.open()


def test_snapshot_shows_definition_and_tally_side_by_side() -> None:
    state = poll("last")
    cast(state, [("a", "v1"), ("b", "v1")])
    shown = state.snapshot()
    assert shown["title"] == "Title"
    assert shown["options"] == {"a": 0, "b": 1, "c": 0}
    assert shown["replaced"] == 1
    assert shown["definition"]["options"][0] == {"id": "a", "label": "A"}  # type: ignore[index]
