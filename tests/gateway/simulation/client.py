"""A simulated client: reads at its own speed, dies, comes back with its cursor, and checks every promise it got."""

import asyncio
import random
from collections import deque
from typing import Any

import msgspec

from core.cursor import decode
from core.position import Position
from gateway.frames import Wire
from gateway.hub import State, Subscriber
from gateway.service import Service, bye, welcome
from gateway.subscription import Subscription
from tests.gateway.simulation.world import World

Vector = dict[int, Position]
BEGINNING = Position(0, 0, 0, 0)
KNOWN_VERDICTS = {"complete", "conflated", "reset", "snapshot"}

_parse = msgspec.json.Decoder(dict[str, Any]).decode


class Broken(AssertionError):
    """A promise was broken."""


class Connection:
    """One connection of a client: the sink, and the network behind it as a buffer that drains when told to."""

    def __init__(self, service: Service, client: "Client") -> None:
        self._service = service
        self._client = client
        self._buffer: deque[bytes] = deque()
        self._size = 0
        self.subscriber: Subscriber | None = None
        self.fd = -1
        self.is_paused = False
        self.is_closing = False
        self.was_paused = False
        self.slot = 0
        self.edges: Vector = {}
        self.news = asyncio.Event()

    def write(self, data: bytes) -> None:
        if self.is_closing:
            return
        if self.subscriber is not None and self.is_paused and b'"event":"bye"' not in data:
            self._client.broken.append("written to while paused")
        if self.was_paused and self.subscriber is not None and self.subscriber.state is not State.LIVE:
            self._check_conflated(data)
        self.was_paused = False
        self._buffer.append(data)
        self.news.set()
        self._size += len(data)
        if self._size > self._service.high_water:
            self.is_paused = self.was_paused = True
            if self.subscriber is not None:
                self._service.pause(self.subscriber)

    @property
    def unsent(self) -> int:
        return self._size

    def cut(self) -> None:
        self.close(1012, "")

    def close(self, code: int, reason: str) -> None:
        self.is_closing = True
        self.news.set()

    def dismiss(self) -> None:
        if not self.is_paused:
            self.write(bye("text"))
        self.close(1012, "")

    def beat(self, now: float) -> None:
        if self.subscriber is not None:
            self._service.hub.beat(self.subscriber, now)

    def drain(self, count: int) -> None:
        """The client reads up to so many writes."""
        for _ in range(min(count, len(self._buffer))):
            data = self._buffer.popleft()
            self._size -= len(data)
            for line in data.split(b"\n"):
                self._client.take(_parse(line))
            self._client.check_states()
        if self.is_paused and not self.is_closing and self._size <= self._service.high_water // 4:
            self.is_paused = False
            if self.subscriber is not None:
                self._service.resume(self.subscriber)

    async def readable(self) -> None:
        """Wait until there is something to read, or the end."""
        if not (self._buffer or self.is_closing):
            self.news.clear()
            await self.news.wait()

    @property
    def is_over(self) -> bool:
        return self.is_closing and not self._buffer

    def _check_conflated(self, data: bytes) -> None:
        messages = [_parse(line) for line in data.split(b"\n")]
        states = [(m["topic"], m["event"]) for m in messages if m["event"] in ("tally", "state")]
        if len(states) != len(set(states)):
            self._client.broken.append("sent a lagging reader a state that a later one of the same write replaces")


class Client:
    """Follows some topics for ever, over any number of connections."""

    def __init__(self, name: int, world: World, rng: random.Random, subscription: Subscription) -> None:
        self.name = name
        self._world = world
        self._rng = rng
        self.subscription = subscription
        self._shard_of = {topic: world.shard_of(topic) for topic in subscription.topics}
        self.shards = sorted(set(self._shard_of.values()))
        self.connection: Connection | None = None
        self.cursor: str | None = None
        self._stand: Vector | None = None  # what the cursor says, once it says it of all shards
        self._events: set[int] = set()
        self._states: dict[tuple[str, str], int] = {}
        self._verdicts: dict[str, str] = {}
        self._before: Vector = {}
        self._covered: Vector = {}  # states up to here were looked at
        self.broken: list[str] = []
        """Found inside a write, where an exception would be the gateway's."""
        self.print = ""
        self._owed: set[int] = set()
        self.verdicts_seen: set[str] = set()

    # -- connecting

    async def connect(self, service: Service, wire: Wire = "text") -> None:
        """Join, as a transport does. Raises Retry."""
        joining = await service.prepare(self.subscription, wire, self.cursor)
        connection = Connection(service, self)
        self.print = joining.channel.print
        before = self.position()
        self.connection = connection
        service.wheel.add(connection)
        connection.subscriber = service.start(joining, connection, welcome(wire))
        connection.edges = dict(service.hub.edge)
        self._judge(joining.plan.verdicts, before, service)

    def leave(self) -> None:
        """Vanish, with whatever is unread."""
        connection, self.connection = self.connection, None
        if connection is not None:
            service = connection._service
            service.wheel.remove(connection)
            if connection.subscriber is not None:
                service.leave(connection.subscriber)

    def position(self) -> Vector | None:
        """The positions in the cursor."""
        return decode(self.cursor, self.print, self.shards) if self.cursor else None

    def _judge(self, planned: dict[str, Any], before: Vector | None, service: Service) -> None:
        """A cursor that the log can serve must not be reset."""
        if before is None:
            return
        for topic, verdict in planned.items():
            known = self._world.shards[self._world.shard_of(topic)]
            position = before[self._world.shard_of(topic)]
            is_good = known.table.holds(position) and position.entry <= known.last_id
            if is_good and verdict.resume == "reset" and self._world.has_events_after(known, position):
                raise Broken(f"client {self.name}: reset of {topic} although nothing was lost")

    # -- receiving

    def take(self, message: dict[str, Any]) -> None:
        """One message, in order."""
        event, data = message["event"], message["data"]
        if event == "welcome":
            self._greeted({topic: verdict["resume"] for topic, verdict in data["topics"].items()})
        elif event == "bye":
            return
        elif event == "heartbeat":
            self._move(message["id"])
        elif event == "snapshot":
            self._snapshot(message)
        else:
            self._news(message)

    def _greeted(self, verdicts: dict[str, str]) -> None:
        if set(verdicts) != set(self.subscription.topics) or not set(verdicts.values()) <= KNOWN_VERDICTS:
            raise Broken(f"verdicts {verdicts}")
        self._verdicts = verdicts
        self.verdicts_seen |= set(verdicts.values())
        started_new = [shard for shard in self.shards if self._is_reset(shard)]
        self._stand = self.position() or {}
        self._before = {shard: self._stand.pop(shard) for shard in started_new if shard in self._stand}
        for shard in started_new:
            self._covered.pop(shard, None)
        for topic, kind in list(self._states):
            if self._verdict(topic) in ("reset", "snapshot"):
                del self._states[topic, kind]
        # `complete` owes every message up to the head at the time of joining, superseded ones included.
        self._owed = set()
        assert self.connection is not None
        edges = self.connection.edges
        for shard, position in self._stand.items():
            owed = self._world.between(self._topics(shard, "complete"), shard, position, edges[shard])
            self._owed |= {told.n for told in owed if self._wants(told.kind, told.is_state)}

    def _is_reset(self, shard: int) -> bool:
        return any(
            verdict in ("reset", "snapshot") for topic, verdict in self._verdicts.items()
            if self._shard_of[topic] == shard
        )  # fmt: skip

    def _verdict(self, topic: str) -> str | None:
        return self._verdicts.get(topic) or self._verdicts.get(f"{topic.rpartition('.')[0]}.*")

    def _topics(self, shard: int, verdict: str | None = None) -> set[str]:
        return {
            topic for topic, given in self._verdicts.items()
            if self._shard_of[topic] == shard and verdict in (None, given)
        }  # fmt: skip

    def _wants(self, kind: str, is_state: bool) -> bool:
        return is_state or self.subscription.types is None or kind in self.subscription.types

    def _snapshot(self, message: dict[str, Any]) -> None:
        """It must be what the oracle knows at the position that the last one of the shard carries."""
        topic = message["topic"]
        shard = self._world.shard_of(topic)
        before = dict(self._stand or {})
        self.cursor = message["id"]
        position = self.position()
        assert position is not None
        assert self._stand is not None
        if shard in before and position[shard].epoch:  # it goes on from a cursor: no event may be passed over
            self._pass(shard, before[shard], position[shard])
            for kind, n in message["data"].get("newest", {}).items():
                if n < self._states.get((topic, kind), 0):
                    raise Broken(f"snapshot of {topic} went back from {kind} {self._states[topic, kind]} to {n}")
        newest = message["data"].get("newest", {})
        for key in [key for key in self._states if key[0] == topic]:
            del self._states[key]
        for kind, n in newest.items():
            self._states[topic, kind] = n
        if position[shard].epoch:  # the last snapshot of this shard: from here on everything counts
            self._stand[shard] = position[shard]
            if shard in self._before:
                unchanged = self._topics(shard, "complete")
                if passed := self._world.between(unchanged, shard, self._before[shard], position[shard]):
                    raise Broken(f"client {self.name}: complete without a snapshot, but {passed[0]} came meanwhile")

    def _news(self, message: dict[str, Any]) -> None:
        n, kind, topic = message["data"]["n"], message["event"], message["topic"]
        if not self._wants(kind, kind in ("tally", "state")):
            raise Broken(f"{kind} was filtered out")
        if kind in ("tally", "state"):
            if n <= self._states.get((topic, kind), 0):
                raise Broken(f"{topic} {kind} went back from {self._states[topic, kind]} to {n}")
            self._states[topic, kind] = n
        else:
            if n in self._events:
                raise Broken(f"event {n} came twice")
            self._events.add(n)
        self._owed.discard(n)
        self._move(message["id"], n)

    def _move(self, cursor: str, n: int | None = None) -> None:
        """The cursor moves: everything it passes over must have come (events), or be superseded (states)."""
        before = self._stand or {}
        self.cursor = cursor
        after = self.position()
        if after is None:
            raise Broken(f"cursor {cursor} does not decode")
        for shard, position in after.items():
            if shard not in before:
                continue
            low = before[shard]
            self._pass(shard, low, position)
        for shard, position in after.items():
            if shard in before:
                before[shard] = position
        self._stand = before

    def _pass(self, shard: int, low: Position, high: Position) -> None:
        low, high = low.settled, high.settled
        if high < low:
            raise Broken(f"cursor went back in shard {shard} from {low} to {high}")
        known = self._world.shards[shard]
        if not (known.table.holds(low) and known.table.holds(high)):
            return  # a rolled-back part: what it held is nobody's truth any more
        for told in self._world.between(self._topics(shard), shard, low, high):
            if told.is_state or not self._wants(told.kind, False):
                continue
            if told.n not in self._events:
                raise Broken(f"client {self.name}: event {told.n} at {told.position} was passed over")

    def check_states(self) -> None:
        """After a whole write the cursor covers no state that is newer than the one that came.

        Or a reader that comes back with it would never get that state, if nothing replaces it.
        """
        for shard, position in (self._stand or {}).items():
            if position.is_owing or not self._world.shards[shard].table.holds(position):
                continue
            low = self._covered.get(shard, BEGINNING)
            for told in self._world.between(self._topics(shard), shard, low, position):
                if told.is_state and self._states.get((told.topic, told.kind), 0) < told.n:
                    raise Broken(f"client {self.name}: the cursor covers {told}, which never came")
            self._covered[shard] = position

    # -- in the end

    def check_caught_up(self) -> None:
        """Nothing is outstanding any more."""
        if self.broken:
            raise Broken(f"client {self.name}: {self.broken[0]}")
        stand = self._stand or {}
        for shard in self.shards:
            if shard not in stand:
                raise Broken(f"client {self.name} has no cursor in shard {shard}")
            everything = self._world.between(self._topics(shard), shard, BEGINNING, self._world.head(shard))
            for told in everything:
                if told.n in self._owed:
                    raise Broken(f"client {self.name}: complete, but {told} never came")
                if not told.is_state and told.position > stand[shard] and self._wants(told.kind, False):
                    raise Broken(f"client {self.name}: {told} is missing in the end")
            for key, n in {(told.topic, told.kind): told.n for told in everything if told.is_state}.items():
                if self._states.get(key, 0) != n:
                    raise Broken(f"client {self.name}: {key} ends at {self._states.get(key)} and not at {n}")
