"""Bytes of what readers of a channel are caught up with: encoded once for all who stood at the same place. Pure.

A crowd that lost its connection at the same moment comes back with the same cursor and misses the same messages; to
encode a thousand messages for each of five thousand readers would take ten seconds. Which messages of a channel lie
between a place and the last one of each shard is always the same, or with states conflated fewer, so the number and
these ends tell the whole.
"""

from collections import OrderedDict
from collections.abc import Sequence

from gateway.channel import Channel, Vector
from gateway.frames import Item

BYTES_MAX = 16 * 1024 * 1024
ITEMS_MIN = 4
"""Fewer are encoded faster than they are looked up."""

_Key = tuple[Channel, tuple[tuple[int, object], ...], int, tuple[int, ...]]
_Entry = tuple[bytes, tuple[Item, ...]]


class FrameCache:
    """The most recently used first to stay."""

    def __init__(self) -> None:
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._bytes = 0

    def joined(self, channel: Channel, items: Sequence[Item], vector: Vector) -> bytes:
        """What is written for some messages to a reader who stands at `vector`, which is moved along."""
        if len(items) < ITEMS_MIN:
            return channel.join(channel.encode(items, vector))
        # Of each shard, because conflation can put a newer state of one of them in place of another, somewhere within.
        ends = (items[0], *{item.shard: item for item in items}.values())
        # By identity: the entry keeps them alive, so that no other message can have their ids.
        key = (channel, tuple(vector.items()), len(items), tuple(map(id, ends)))
        found = self._entries.get(key)
        if found is not None:
            self._entries.move_to_end(key)
            for item in ends[1:]:
                vector[item.shard] = item.position
            return found[0]
        frame = channel.join(channel.encode(items, vector))
        self._entries[key] = frame, ends
        self._bytes += len(frame)
        while self._bytes > BYTES_MAX:
            self._bytes -= len(self._entries.popitem(last=False)[1][0])
        return frame

    @property
    def bytes(self) -> int:
        """What is kept."""
        return self._bytes

    def clear(self) -> None:
        """Forget everything: also channels that nobody reads any more."""
        self._entries.clear()
        self._bytes = 0
