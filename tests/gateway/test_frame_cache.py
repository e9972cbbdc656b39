"""What is encoded once for a crowd is what would have been encoded for each of them."""

from hypothesis import given
from hypothesis import strategies as st

from core.position import Position
from gateway import frame_cache
from gateway.channel import Channel
from gateway.frame_cache import FrameCache
from gateway.frames import Item
from gateway.subscription import subscription

SHARDS = 4
CHANNEL = Channel(subscription(["poll.a", "match.m1.1", "match.m2.1"]), "sse", "log", SHARDS)


def items(count: int) -> list[Item]:
    shards = list(CHANNEL.routes)
    return [
        Item(shards[n % len(shards)], Position(1, 1000 + n, 0, 1), "match.m1.1", "round_end", b'{"n":%d}' % n,
             is_state=False)
        for n in range(count)
    ]  # fmt: skip


ALL = items(40)


@given(st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39), st.integers(0, 3)), max_size=20))
def test_frame_and_position_are_those_of_encoding_anew(asked: list[tuple[int, int, int]]) -> None:
    cache = FrameCache()
    for start, end, stood in asked:
        some = ALL[start : max(start + 1, end)]
        place = dict.fromkeys(CHANNEL.routes, Position(1, 900 + stood, 0, 1))
        expected_place, found_place = dict(place), dict(place)
        expected = CHANNEL.join(CHANNEL.encode(some, expected_place))
        assert cache.joined(CHANNEL, some, found_place) == expected
        assert found_place == expected_place


def test_a_state_replaced_in_one_shard_is_not_the_frame_from_before() -> None:
    """Conflated, the ends and the number of messages may be the same, and yet one of them is newer."""
    shard, other = list(CHANNEL.routes)[:2]

    def item(shard: int, ms: int) -> Item:
        return Item(shard, Position(1, ms, 0, 1), "poll.a", "tally", b'{"ms":%d}' % ms, is_state=True)

    first, old, new, end, last = (
        item(shard, 1000),
        item(shard, 1001),
        item(shard, 1002),
        item(other, 900),
        item(other, 901),
    )
    cache = FrameCache()
    for batch in ([first, old, end, last], [first, new, end, last]):
        place, expected_place = (dict.fromkeys(CHANNEL.routes, Position(1, 800, 0, 1)) for _ in range(2))
        expected = CHANNEL.join(CHANNEL.encode(batch, expected_place))
        assert cache.joined(CHANNEL, batch, place) == expected
        assert place == expected_place


def test_what_is_kept_is_bounded() -> None:
    cache = FrameCache()
    place = dict.fromkeys(CHANNEL.routes, Position(1, 900, 0, 1))
    frame = cache.joined(CHANNEL, ALL[:10], dict(place))
    assert cache.joined(CHANNEL, ALL[:10], dict(place)) is frame, "found again"
    before, frame_cache.BYTES_MAX = frame_cache.BYTES_MAX, 10_000
    try:
        for start in range(30):
            cache.joined(CHANNEL, ALL[start : start + 10], dict(place))
            assert cache.bytes <= 10_000
    finally:
        frame_cache.BYTES_MAX = before
    cache.clear()
    assert cache.bytes == 0
