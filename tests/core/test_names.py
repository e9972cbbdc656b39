"""Ids, topics and shards."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.names import RESERVED_TYPES, Topic, is_event_type, is_id, match_topic, parse_topic, poll_topic, shard_of

ids = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)


@pytest.mark.parametrize("text", ["a", "A-b_9", "x" * 64])
def test_id_of_the_contract_is_an_id(text: str) -> None:
    assert is_id(text)


@pytest.mark.parametrize("text", ["", "x" * 65, "a b", "a.b", "a\n", "ä", "a/b", "a:b", "٣", "{s00}", "a\0"])
def test_anything_else_is_no_id(text: str) -> None:
    assert not is_id(text)


@pytest.mark.parametrize("text", ["round_end", "x", "a9_", "x" + "_" * 63])
def test_event_type_of_the_contract_is_one(text: str) -> None:
    assert is_event_type(text)


@pytest.mark.parametrize(
    "text",
    ["", "Round_end", "9a", "_a", "round-end", "round_end\n", "round_end\nid: 1", "round_end\r", "x" * 65, "tally\n"],
)
def test_event_type_that_could_forge_a_stream_line_is_none(text: str) -> None:
    assert not is_event_type(text)


@pytest.mark.parametrize("text", sorted(RESERVED_TYPES))
def test_message_kind_is_no_event_type(text: str) -> None:
    assert not is_event_type(text)


def test_every_kind_of_the_contract_is_reserved() -> None:
    kinds = {"welcome", "snapshot", "poll", "tally", "state", "prediction", "heartbeat", "bye"}
    assert kinds | {"open", "error", "message"} <= RESERVED_TYPES


@given(match_id=ids, map_id=ids)
def test_topic_survives_being_written_and_parsed(match_id: str, map_id: str) -> None:
    for text in (poll_topic(match_id), match_topic(match_id, map_id), f"match.{match_id}.*"):
        assert str(parse_topic(text)) == text
    assert parse_topic(match_topic(match_id, map_id)) == Topic("match", match_id, map_id)


def test_pattern_is_recognised() -> None:
    assert parse_topic("match.m1.*").is_pattern
    assert not parse_topic("match.m1.1").is_pattern
    assert not parse_topic("poll.p1").is_pattern


@pytest.mark.parametrize(
    "text",
    ["", "poll", "poll.", "poll.a.b", "poll.*", "match.m1", "match.m1.", "match..1", "match.m1.1.2", "match.*.1",
     "match.*.*", "match.m1.**", "match.m1.*.1", "Poll.a", "poll.a\n", " poll.a", "round.a"],
)  # fmt: skip
def test_malformed_topic_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_topic(text)


@given(st.text(max_size=80))
def test_any_text_is_a_topic_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert str(parse_topic(text)) == text


@given(match_id=ids, maps=st.lists(ids, min_size=1, max_size=5), shards=st.integers(1, 64))
def test_all_maps_of_a_match_and_its_pattern_share_a_shard(match_id: str, maps: list[str], shards: int) -> None:
    found = {shard_of(match_topic(match_id, map_id), shards) for map_id in [*maps, "*", "series"]}
    assert len(found) == 1
    assert found.pop() in range(shards)


def test_shard_of_a_topic_never_changes() -> None:
    """A change of the hash would orphan every stored topic: these values are part of the data format."""
    assert [shard_of(topic, 4) for topic in ("poll.p1", "poll.p2", "match.m1.1", "match.m2.1")] == [1, 1, 0, 2]


def test_topics_spread_over_the_shards() -> None:
    counts = [0] * 4
    for number in range(4000):
        counts[shard_of(poll_topic(f"poll-{number}"), 4)] += 1
    assert min(counts) > 850
