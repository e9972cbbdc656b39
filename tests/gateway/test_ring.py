"""The ring: what it holds, what it says it holds, and its bound."""

import random

from core.position import Position
from core.updates import Message
from gateway.frames import Item
from gateway.ring import LINGER_S, Ring

EDGE = Position(1, 0, 0, 0)


def item(n: int, topic: str = "poll.a", size: int = 0) -> Item:
    return Item(0, Position(1, n, 0, 1), topic, "tally", b'{"n":"%b"}' % (b"x" * size), is_state=True)


def put(ring: Ring, one: Item) -> None:
    ring.append(ring.lines(one.topic), one)


def numbers(items: list[Item] | None) -> list[int] | None:
    return None if items is None else [one.position.ms for one in items]


def test_gives_what_came_after_a_position() -> None:
    ring = Ring(1_000_000)
    ring.follow("poll.a", EDGE)
    for n in (1, 2, 5, 9):
        put(ring, item(n))
    assert numbers(ring.after("poll.a", EDGE)) == [1, 2, 5, 9]
    assert numbers(ring.after("poll.a", Position(1, 2, 0, 1))) == [5, 9]
    assert numbers(ring.after("poll.a", Position(1, 2, 0, 0))) == [2, 5, 9]
    assert numbers(ring.after("poll.a", Position(1, 9, 0, 65_535))) == []


def test_knows_nothing_of_what_was_before_a_topic_was_followed() -> None:
    ring = Ring(1_000_000)
    ring.follow("poll.a", Position(1, 5, 0, 65_535))
    assert ring.after("poll.a", Position(1, 5, 0, 1)) is None
    assert ring.after("poll.b", Position(1, 9, 0, 1)) is None
    assert ring.after("poll.a", Position(1, 5, 0, 65_535)) == []


def test_topic_that_nobody_follows_has_no_lines() -> None:
    ring = Ring(1_000_000)
    ring.follow("match.m1.*", EDGE)
    assert ring.lines("poll.a") == []
    assert ring.lines("match.m2.1") == []
    assert ring.lines("match.m1.1") == ["match.m1.*"]
    ring.follow("match.m1.1", EDGE)
    assert ring.lines("match.m1.1") == ["match.m1.1", "match.m1.*"]


def test_oldest_goes_first_and_the_floor_says_so() -> None:
    ring = Ring(5 * item(0).size)
    ring.follow("poll.a", EDGE)
    ring.follow("poll.b", EDGE)
    for n in range(1, 11):
        put(ring, item(n, "poll.a" if n % 2 else "poll.b"))
    assert ring.bytes <= 5 * item(0).size
    assert ring.after("poll.a", EDGE) is None
    assert numbers(ring.after("poll.a", Position(1, 5, 0, 1))) == [7, 9]
    assert numbers(ring.after("poll.b", Position(1, 4, 0, 1))) == [6, 8, 10]


def test_a_message_larger_than_the_ring_is_not_kept_and_not_hidden() -> None:
    ring = Ring(10_000)
    ring.follow("poll.a", EDGE)
    put(ring, item(1))
    put(ring, item(2, size=50_000))
    assert ring.bytes == 0
    assert ring.after("poll.a", Position(1, 1, 0, 1)) is None
    assert ring.after("poll.a", Position(1, 2, 0, 1)) == []


def test_topic_lingers_after_its_last_reader() -> None:
    ring = Ring(1_000_000)
    ring.follow("poll.a", EDGE)
    ring.follow("poll.a", EDGE)
    put(ring, item(1))
    ring.unfollow("poll.a", 100.0)
    ring.sweep(1000.0)
    assert "poll.a" in ring
    ring.unfollow("poll.a", 1000.0)
    ring.sweep(1000.0 + LINGER_S - 1)
    assert "poll.a" in ring
    ring.sweep(1000.0 + LINGER_S)
    assert "poll.a" not in ring
    assert ring.bytes == 0


def test_short_lived_topics_leave_nothing_behind() -> None:
    ring = Ring(1_000_000)
    for n in range(200):
        ring.follow(f"poll.p{n}", EDGE)
        put(ring, item(n + 1, f"poll.p{n}"))
        ring.unfollow(f"poll.p{n}", float(n * 100))
        ring.sweep(float(n * 100))
    assert len(ring) <= 2
    assert len(ring._order) <= 2


def test_clear_vouches_for_nothing_older() -> None:
    ring = Ring(1_000_000)
    ring.follow("poll.a", EDGE)
    put(ring, item(1))
    ring.clear(Position(2, 5, 0, 65_535))
    assert ring.after("poll.a", Position(1, 1, 0, 1)) is None
    put(ring, Item(0, Position(2, 6, 0, 1), "poll.a", "tally", b"{}", is_state=True))
    assert numbers(ring.after("poll.a", Position(2, 5, 0, 65_535))) == [6]


def test_agrees_with_a_plain_list_under_random_use() -> None:
    for seed in range(50):
        rng = random.Random(seed)
        ring = Ring(rng.choice((3, 20, 1000)) * item(0).size)
        topics = ["poll.a", "match.m.1", "match.m.*"]
        for topic in topics:
            ring.follow(topic, EDGE)
        everything: list[Item] = []
        for n in range(1, 400):
            one = item(n, rng.choice(("poll.a", "match.m.1", "match.m.2")))
            put(ring, one)
            everything.append(one)
            topic, position = rng.choice(topics), Position(1, rng.randint(0, n), 0, 1)
            found = ring.after(topic, position)
            if found is not None:
                belongs = [
                    other for other in everything
                    if other.position > position
                    and (other.topic == topic or (topic == "match.m.*" and other.topic.startswith("match.m.")))
                ]  # fmt: skip
                assert found == belongs


def test_only_what_is_followed_by_name_or_pattern_is_read() -> None:
    ring = Ring(1000)
    topics = ("poll.a", "match.m1.1", "poll.b", "match.m1.2", "match.m2.1")
    messages = [Message(topic, "tally", True, 1, 0, 1, b"{}", 0, "") for topic in topics]

    def read() -> list[str]:
        return [message.topic for message in ring.read(messages)]

    assert read() == []
    ring.follow("poll.b", EDGE)
    assert read() == ["poll.b"]
    ring.follow("match.m1.*", EDGE)
    assert read() == ["match.m1.1", "poll.b", "match.m1.2"]
    assert all(ring.lines(topic) for topic in read())
