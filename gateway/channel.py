"""A channel: everybody who asked for the same topics, types and wire format shares one set of bytes. Pure.

The cursor names a set of topics and a position per shard, so it is the same for all caught-up readers of a channel.
"""

from __future__ import annotations

from collections.abc import Iterable

from core.cursor import encode, fingerprint, format_position
from core.position import Position
from gateway import frames
from gateway.audience import Audience, SendAll, write_all
from gateway.frames import Item, Wire
from gateway.subscription import Subscription

Vector = dict[int, Position]
"""Shard -> position: everything up to it was written to the reader, or is not for it."""

NOTHING = Position(0, 0, 0, 0)
"""Position of a shard whose snapshot is not complete yet. No epoch is 0, so such a cursor never holds there, and a
reader that was cut off in the middle of its snapshots gets them again instead of missing one for ever."""


class Channel:
    """One interned subscription on one wire format."""

    def __init__(
        self, subscription: Subscription, wire: Wire, log_id: str, shards: int, send_all: SendAll = write_all
    ) -> None:
        self.subscription = subscription
        self.types = subscription.types
        self.wire: Wire = wire
        self.print = fingerprint(log_id, subscription.topics)
        self.routes = subscription.routes_by_shard(shards)
        self.refs = 0
        self.vector: Vector = {}  # of the live readers, as of the last flush or heartbeat
        self.live = Audience(send_all)
        self.pending: list[Item] = []  # published and not yet flushed
        self.written_at = 0.0
        self._only = next(iter(self.routes)) if len(self.routes) == 1 else None
        self._encode = frames.encoders[wire]
        self.join = frames.joiners[wire]
        self._heartbeat: tuple[Vector, bytes] | None = None
        self._topics = {"topics": list(subscription.topics)}

    def wants(self, item: Item) -> bool:
        """Whether the filter lets a message of one of the topics through."""
        return item.is_state or self.types is None or item.kind in self.types

    def cursor(self, vector: Vector) -> bytes:
        """The text a reader may come back with."""
        return encode(self.print, vector).encode()

    def encode(self, items: Iterable[Item], vector: Vector) -> list[bytes]:
        """Each message with its cursor, moving `vector` along."""
        encode_one = self._encode
        parts: list[bytes] = []
        if self._only is not None:  # the normal case: no other shard's position to carry along
            shard, head = self._only, f"1~{self.print}~"
            for item in items:
                parts.append(encode_one(item, (head + format_position(shard, item.position)).encode()))
                vector[shard] = item.position
            return parts
        for item in items:
            vector[item.shard] = item.position
            parts.append(encode_one(item, self.cursor(vector)))
        return parts

    def heartbeat(self, vector: Vector) -> bytes:
        """A message that only moves the cursor. It tells its topics: a WebSocket may hold several subscriptions."""
        if self._heartbeat is None or self._heartbeat[0] != vector:
            beat = frames.control(self.wire, "heartbeat", self._topics, cursor=self.cursor(vector))
            self._heartbeat = dict(vector), beat
        return self._heartbeat[1]
