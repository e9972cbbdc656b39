"""The last messages of one shard, by topic, for readers who are behind by little. Pure.

A ring keeps messages only of topics somebody follows (or followed until `LINGER_S` ago), bounded in bytes over all of
them: the oldest goes first, whatever its topic. Per topic it knows its *floor*: it holds every message strictly after
that position, and nothing can be said about earlier ones. A topic is a topic or a pattern `match.<id>.*`, which has
its own line with the messages of all maps.

Cost: append O(1), a read O(log n + messages returned).
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from operator import attrgetter
from typing import TypeVar

from core.position import Position
from core.updates import Message, Topic
from gateway.frames import Item
from gateway.subscription import pattern_of

LINGER_S = 60.0
"""A topic stays this long after its last reader: one that reconnects is served from here and not from Redis."""

M = TypeVar("M", Message, Topic)

_position = attrgetter("position")


class _Line:
    """Items in order; cheap at both ends, searchable by position."""

    __slots__ = ("_head", "_items")

    def __init__(self) -> None:
        self._items: list[Item] = []
        self._head = 0

    def append(self, item: Item) -> None:
        self._items.append(item)

    def drop_first(self) -> Item:
        item = self._items[self._head]
        self._head += 1
        if self._head > 64 and self._head * 2 > len(self._items):  # amortised: each item moves at most twice
            del self._items[: self._head]
            self._head = 0
        return item

    def first(self) -> Item | None:
        return self._items[self._head] if self._head < len(self._items) else None

    def after(self, position: Position) -> list[Item]:
        return self._items[bisect_right(self._items, position, lo=self._head, key=_position) :]


class _Topic:
    __slots__ = ("floor", "items", "readers", "unread_since")

    def __init__(self, floor: Position) -> None:
        self.floor = floor
        self.readers = 0
        self.unread_since = 0.0
        self.items = _Line()


class Ring:
    """The ring of one shard."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._topics: dict[str, _Topic] = {}
        self._patterns = 0
        self._order: deque[_Topic] = deque()  # the line each stored item went to, oldest first
        self.bytes = 0

    def __contains__(self, topic: str) -> bool:
        return topic in self._topics

    def __len__(self) -> int:
        return len(self._topics)

    def follow(self, topic: str, edge: Position) -> None:
        """Keep a topic's messages from now on: all up to `edge` were published already, all later ones come here."""
        entry = self._topics.get(topic)
        if entry is None:
            self._topics[topic] = entry = _Topic(edge)
            self._patterns += topic.endswith(".*")
        entry.readers += 1

    def unfollow(self, topic: str, now: float) -> None:
        """One reader less. The topic stays for `LINGER_S`."""
        entry = self._topics[topic]
        entry.readers -= 1
        entry.unread_since = now

    def sweep(self, now: float) -> None:
        """Drop topics that nobody has read for `LINGER_S`."""
        gone = [
            topic for topic, entry in self._topics.items() if not entry.readers and now - entry.unread_since >= LINGER_S
        ]
        dropped = False
        for topic in gone:
            entry = self._topics.pop(topic)
            self._patterns -= topic.endswith(".*")
            for item in entry.items.after(entry.floor):
                self.bytes -= item.size
                dropped = True
            entry.items = _Line()
        if dropped:  # or many short-lived topics would leave their marks there for good
            self._order = deque(entry for entry in self._order if entry.items.first() is not None)

    def lines(self, topic: str) -> list[str]:
        """The followed topics and patterns that a message of `topic` belongs to: none for most, then two at most."""
        found = [topic] if topic in self._topics else []
        if self._patterns:
            pattern = pattern_of(topic)
            if pattern in self._topics:
                found.append(pattern)
        return found

    def read(self, messages: Sequence[M]) -> list[M]:
        """Those that somebody follows. Hot path: budget 0.1 us for each that nobody does: most, in a busy shard."""
        topics = self._topics
        if self._patterns:
            return [each for each in messages if each.topic in topics or pattern_of(each.topic) in topics]
        return [each for each in messages if each.topic in topics]

    def append(self, lines: list[str], item: Item) -> None:
        """Store a message under what `lines` gave for its topic. Positions ascend."""
        for line in lines:
            entry = self._topics[line]
            entry.items.append(item)
            self._order.append(entry)
            self.bytes += item.size
        while self.bytes > self._bytes_max:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        entry = self._order.popleft()
        item = entry.items.drop_first()
        entry.floor = item.position
        self.bytes -= item.size

    def covers(self, topic: str, position: Position) -> bool:
        """Whether everything of a topic after `position` is here."""
        entry = self._topics.get(topic)
        return entry is not None and position >= entry.floor

    def after(self, topic: str, position: Position) -> list[Item] | None:
        """Every message after `position`, in order; None when that is not covered."""
        entry = self._topics.get(topic)
        if entry is None or position < entry.floor:
            return None
        return entry.items.after(position)

    def clear(self, floor: Position) -> None:
        """Forget all messages and raise every floor: after a gap or a rollback nothing older can be vouched for."""
        for topic, old in self._topics.items():
            new = _Topic(floor)
            new.readers, new.unread_since = old.readers, old.unread_since
            self._topics[topic] = new
        self._order.clear()
        self.bytes = 0
