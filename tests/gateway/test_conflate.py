"""What may be left out for a reader who lags."""

from core.position import Position
from gateway.conflate import take
from gateway.frames import Item


def items(text: str) -> list[Item]:
    """One letter a message: capitals are events, small letters are state kinds."""
    return [
        Item(0, Position(1, n, 0, 1), "poll.a", letter, b'{"n":%d}' % n, is_state=letter.islower())
        for n, letter in enumerate(text)
    ]


def text(found: list[Item]) -> str:
    return "".join(item.kind for item in found)


def test_events_stay_and_only_the_newest_of_each_state_kind() -> None:
    found, end = take(items("aAabBbaA"), 0, 1_000_000)
    assert (text(found), end) == ("ABbaA", 8)
    assert [item.position.ms for item in found] == [1, 4, 5, 6, 7]


def test_stops_when_full_with_the_state_as_of_there() -> None:
    size = len(items("a")[0].data)
    found, end = take(items("aaaAAaaa"), 0, 3 * size)
    assert (text(found), end) == ("aAA", 5)
    found, end = take(items("aaaAAaaa"), end, 3 * size)
    assert (text(found), end) == ("a", 8)


def test_makes_progress_however_small_the_room() -> None:
    assert take(items("AB"), 0, 1)[1] == 1
    assert take([], 0, 1) == ([], 0)


def test_topics_do_not_replace_each_other() -> None:
    both = [Item(0, Position(1, n, 0, 1), topic, "tally", b"{}", is_state=True) for n, topic in enumerate("aab")]
    assert [item.topic for item in take(both, 0, 1_000)[0]] == ["a", "b"]
