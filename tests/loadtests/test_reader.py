"""What one subscriber remembers, and what it notices."""

import msgspec

from loadtests.reader import Reader
from loadtests.wire import Message, parse_vector

TOPICS = ("poll.p", "match.m.*")


def message(kind: str, place: str = "", **fields: object) -> Message:
    base = Message(kind, "", "", (), "", -1, "", "", b"{}")
    cursor = f"1~f~{place}" if place else ""
    return msgspec.structs.replace(base, cursor=cursor, vector=parse_vector(cursor), **fields)


def welcome(verdict: str) -> Message:
    data = {"topics": {topic: {"resume": verdict} for topic in TOPICS}}
    return message("welcome", data=msgspec.json.encode(data))


def tally(place: str, applied: int) -> Message:
    return message("tally", place, poll_id="p", applied=applied, digest=f"d{applied}")


def event(place: str, event_id: str) -> Message:
    return message("player_death", place, event_id=event_id)


def read(*messages: Message) -> Reader:
    reader = Reader("r", TOPICS)
    for number, one in enumerate(messages):
        reader.take(one, float(number))
    return reader


def test_it_keeps_tallies_events_and_the_last_cursor() -> None:
    reader = read(
        welcome("snapshot"),
        message("snapshot", "0.1.5.0.9~1.1.0.0.0", poll_id="p", applied=3, digest="d3"),
        message("snapshot", "0.1.5.0.9~1.1.4.0.9"),
        tally("0.1.6.0.1~1.1.4.0.9", 4),
        event("0.1.6.0.1~1.1.7.0.1", "e1"),
        message("heartbeat", "0.1.6.0.1~1.1.7.0.1"),
    )
    assert (reader.backwards, reader.repeats) == (0, 0)
    assert list(reader.tallies["p"].applied) == [3, 4]
    assert list(reader.tallies["p"].at) == [1.0, 3.0]
    assert reader.tallies["p"].digest == "d4"
    assert (reader.events, list(reader.events_at)) == (["e1"], [4.0])
    assert reader.cursor == "1~f~0.1.6.0.1~1.1.7.0.1"
    assert reader.kinds["snapshot"] == 2


def test_it_notices_a_position_that_goes_back_in_one_shard_only() -> None:
    assert read(welcome("snapshot"), tally("0.1.5.0.1~1.1.5.0.1", 1), event("0.1.6.0.1~1.1.4.0.1", "e")).backwards == 1


def test_it_notices_a_message_that_comes_twice() -> None:
    assert read(welcome("snapshot"), event("0.1.5.0.1", "e"), event("0.1.5.0.1", "e")).repeats == 1


def test_it_notices_a_count_that_shrinks() -> None:
    reader = read(welcome("snapshot"), tally("0.1.5.0.1", 9), tally("0.1.6.0.1", 8))
    assert reader.backwards == 1
    assert reader.tallies["p"].digest == "d9"


def test_a_resumed_connection_must_go_on_where_the_last_one_ended() -> None:
    reader = read(welcome("snapshot"), event("0.1.5.0.1", "e"), welcome("complete"), event("0.1.5.0.1", "e"))
    assert reader.repeats == 1
    assert reader.connections == 2
    assert reader.verdicts == {"snapshot": 2, "complete": 2}


def test_after_a_reset_any_position_may_follow() -> None:
    reader = read(welcome("snapshot"), event("0.2.5.0.1", "e"), welcome("reset"), message("snapshot", "0.1.1.0.9"))
    assert (reader.backwards, reader.repeats) == (0, 0)


def test_it_knows_when_it_has_seen_enough() -> None:
    reader = read(welcome("snapshot"), tally("0.1.5.0.1", 2), event("0.1.6.0.1", "e"))
    assert reader.has_seen({"p": 2, "another": 99}, 1)
    assert not reader.has_seen({"p": 3}, 1)
    assert not reader.has_seen({"p": 2}, 2)
