"""The gateway's parts put together, without any HTTP: hub, tails, resuming, heartbeats, draining.

A transport joins a reader in three steps, so that nothing is promised before it is known:

    joining = await service.prepare(subscription, wire, cursor)   may wait for Redis, may raise Retry
    …make the sink, write the response head…                      synchronous
    subscriber = service.start(joining, sink, greet)              synchronous: verdict, snapshots, backlog, live
"""

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable
from time import perf_counter

from msgspec import Struct

from core import logs
from core.errors import Retry
from core.metrics import LOOP_ERRORS
from core.names import shard_of
from core.settings import Settings
from gateway.audience import SendAll, write_all
from gateway.backlog import Backlog
from gateway.budget import cache_bytes, worst
from gateway.channel import NOTHING, Channel
from gateway.feeder import Feeder
from gateway.frames import TRANSPORTS, Item, Wire, control
from gateway.hub import TOO_SLOW, Hub, Sink, Subscriber
from gateway.meter import Meter
from gateway.pace import Pace
from gateway.past import Past
from gateway.resume import COMPLETE_BYTES, Plan, Resumer, Verdict
from gateway.source import Source
from gateway.subscription import Subscription
from gateway.tail import Tails
from gateway.wheel import Wheel

TICK_S = 1.0
STREAMS = frozenset(TRANSPORTS) - {"text", "poll"}
"""Wire formats whose bytes are a stream; the others' writes are messages."""

RELIEVE_S = 0.1
"""Between two looks at all readers' buffers, while more and more of them fill up."""

DISMISS_S = 0.005
"""Draining takes this long per reader, until `drain_s` bounds it: a handful need not wait."""

FAREWELL_S = 2.0

CROWD_S = 0.2
FLUSH_SHARE = 0.5
"""Part of the time that flushes may take until `CROWD_S` after a reader asked to join. Thousands of live readers can
take all of it: one turn of the loop between two flushes would be left, with a few of a crowd served in each."""

RETRY_MS = (1000, 3000)
"""Range of the reconnection delay a reader is told, drawn per reader so that a crowd does not come back at once."""

Greeting = Callable[[dict[str, Verdict]], bytes]
"""Makes the first bytes of a subscription from its verdicts: `welcome`, or the answer to a subscribe request."""


class Joining(Struct):
    """A prepared reader: give it to `Service.start` or to `Service.abandon`."""

    channel: Channel
    plan: Plan


class Service:
    """Everything one gateway process knows about its readers."""

    def __init__(
        self, settings: Settings, source: Source, log_id: str, shards: int, send_all: SendAll = write_all
    ) -> None:
        self.settings = settings
        self.source = source
        self.log_id = log_id
        self.shards = shards
        self.meter = Meter()
        self.high_water = settings.subscriber_high_water_kb * 1024
        self._loop = asyncio.get_running_loop()
        interval_s = settings.flush_interval_ms / 1000
        self.hub = Hub(
            log_id=log_id,
            shards=shards,
            ring_bytes=settings.ring_max_mb * 1024 * 1024,
            chunk_bytes=self.high_water,
            flush_interval_s=interval_s,
            lag_max_s=settings.lag_max_s,
            heartbeat_s=settings.heartbeat_s,
            meter=self.meter,
            on_cold=self._on_cold,
            send_all=send_all,
        )
        self.tails = Tails(source, self.hub, interval_s=interval_s, on_news=self.flush_soon)
        self._buffer_bytes_max = settings.gateway_max_buffer_mb * 1024 * 1024
        self._backlog = Backlog(source, cache_bytes(self._buffer_bytes_max))
        self._past = Past(source, cache_bytes(self._buffer_bytes_max))
        self.pace = Pace()
        self._resumer = Resumer(source, self.hub, self.tails, self._backlog, self._past, self.pace)
        self._feeder = Feeder(
            self.hub,
            self.tails,
            self._backlog,
            self._past,
            self._resumer.state,
            self.pace,
            chunk_bytes=self.high_water,
            lag_max_s=settings.lag_max_s,
            on_lost=lambda subscriber: subscriber.sink.dismiss(),
            on_news=self.flush_soon,
        )
        self.wheel = Wheel(settings.heartbeat_s * 2 / 3)
        self.is_draining = False
        self.at_stop: list[Callable[[], Awaitable[None]]] = []
        """What else has to be brought to an end while Redis can still be reached."""
        self._flush_timer: asyncio.TimerHandle | None = None
        self._rested_at = float("-inf")  # when those who join have had their share of the time
        self._joining_at = float("-inf")  # when somebody last asked to
        self._relieved_at = float("-inf")
        self._turned_away = 0
        self._told_at = float("-inf")
        self._log = logs.get()

    # -- readers

    async def prepare(self, subscription: Subscription, wire: Wire, cursor: str | None) -> Joining:
        """Find out how a reader can start. Raises Retry when Redis is away or too many ask at once."""
        self._joining_at = self._loop.time()
        await self._resumer.ready([shard_of(route, self.shards) for route in subscription.routes])
        channel = self.hub.open(subscription, wire)  # from here on its messages are kept for it
        try:
            plan = await self._resumer.plan(channel, cursor)
            if self.is_draining:  # those who were there were told: a newcomer would be cut off without a word
                raise Retry("shutting down")
            return Joining(channel, plan)
        except BaseException:
            self.hub.release(channel, self._loop.time())
            raise

    def abandon(self, joining: Joining) -> None:
        """The reader left before it started."""
        self.hub.release(joining.channel, self._loop.time())

    def start(self, joining: Joining, sink: Sink, greet: Greeting) -> Subscriber:
        """Greet a reader, send what it is to start with, and let it follow."""
        channel, plan, hub = joining.channel, joining.plan, self.hub
        missed = None if plan.is_cold else hub.backlog(channel, plan.reached)
        verdicts, vector = plan.verdicts, dict(plan.vector)
        items: list[Item] = []
        if missed is not None and _size(plan.past) + _size(missed) <= COMPLETE_BYTES:
            items = [*plan.past, *missed]
            reached = {shard: max(plan.reached[shard], hub.edge[shard]) for shard in channel.routes}
        else:
            # Too much at once: the hub sends it as the reader takes it, states conflated.
            weaker = {"complete": Verdict("conflated")}
            verdicts = {topic: weaker.get(verdict.resume, verdict) for topic, verdict in verdicts.items()}
            reached = vector
        for verdict in verdicts.values():
            self.meter.resumed(verdict.resume)
        stand = {shard: NOTHING if any(s.shard == shard for s in plan.snapshots) else vector[shard] for shard in vector}
        greeting = greet(verdicts)
        first = [*plan.snapshots, *items]
        # One write where bytes may simply be put together, or a crowd that comes back costs twice the system calls.
        rest = hub.frames.joined(channel, first, stand) if first else b""
        if channel.wire in STREAMS:
            sink.write(greeting + rest)
        else:
            sink.write(greeting)
            if rest:
                sink.write(rest)
        self.meter.caught_up(channel.wire, [*plan.snapshots, *items])
        subscriber = hub.add(channel, sink, reached, self._loop.time())
        self._loop.call_soon(self.flush_soon)  # not before the sink knows its subscriber
        return subscriber

    def turned_away(self, error: Exception) -> None:
        """A reader was asked to come back later: counted, and told to the log once a second however many there are."""
        LOOP_ERRORS.labels("join").inc()
        self._turned_away += 1
        now = self._loop.time()
        if now - self._told_at >= TICK_S:
            self._log.warning("readers sent away", count=self._turned_away, error=str(error))
            self._turned_away, self._told_at = 0, now

    def narrow(self, subscriber: Subscriber, rest: Subscription) -> Subscriber:
        """A new reader of only some of a reader's topics, from the same position. The old one is left to the caller."""
        channel = self.hub.open(rest, subscriber.channel.wire)
        position = self.hub.position(subscriber)
        vector = {shard: position[shard] for shard in channel.routes}
        return self.hub.add(channel, subscriber.sink, vector, self._loop.time())

    def leave(self, subscriber: Subscriber) -> None:
        """A reader is gone. Harmless when it is already."""
        self.hub.remove(subscriber, self._loop.time())

    def pause(self, subscriber: Subscriber) -> None:
        """See `Hub.pause`."""
        now = self._loop.time()
        self.hub.pause(subscriber, now)
        if self.hub.paused * self.high_water > self._buffer_bytes_max and now - self._relieved_at > RELIEVE_S:
            self._relieve(now)

    def resume(self, subscriber: Subscriber) -> None:
        """See `Hub.resume`."""
        self.hub.resume(subscriber)
        self.flush_soon()

    def _relieve(self, now: float) -> None:
        """Keep what is held for all readers together below its bound."""
        self._relieved_at = now
        evict, cut = worst(self.wheel, self._buffer_bytes_max, self._backlog.chunks.bytes + self._past.chunks.bytes)
        for connection in evict:
            self.meter.evicted("memory")
            connection.close(TOO_SLOW, "too slow, reconnect with your cursor")
        for connection in cut:
            connection.cut()
        if evict or cut:
            self._log.warning("readers evicted for memory", evicted=len(evict), cut=len(cut))

    def _on_cold(self, subscriber: Subscriber) -> None:
        self._feeder.take(subscriber)

    # -- flushing

    def flush_soon(self) -> None:
        """Flush now, or when the flush interval allows it."""
        due = self.hub.due()
        if due is None or self._flush_timer is not None:
            return
        now = self._loop.time()
        if now - self._joining_at < CROWD_S:
            due = max(due, self._rested_at)
        if due <= now:
            started = perf_counter()
            self.hub.flush(now)
            self._rested_at = now + (perf_counter() - started) / FLUSH_SHARE
            due = self.hub.due()  # somebody behind may be waiting for the next part
        if due is not None:
            self._flush_timer = self._loop.call_at(due, self._on_flush_timer)

    def _on_flush_timer(self) -> None:
        self._flush_timer = None
        self.flush_soon()

    # -- time

    async def run(self) -> None:
        """The process's one clock: heartbeats, evictions, forgetting. Ends when cancelled."""
        next_tick = self._loop.time()
        while True:
            await asyncio.sleep(self.wheel.tick_s)
            now = self._loop.time()
            try:
                for _ in self.wheel.tick(now):
                    await asyncio.sleep(0)
                if now >= next_tick:
                    next_tick = now + TICK_S
                    self.hub.tick(now)
                    self._relieve(now)
                    await self.tails.stop_idle(now)
            except Exception as error:
                LOOP_ERRORS.labels("clock").inc()
                self._log.error("clock stumbled", exc_info=error)

    async def drain(self) -> None:
        """Ask every reader to reconnect elsewhere, a few at a time over at most `drain_s`."""
        self.is_draining = True
        connections = list(self.wheel)
        random.shuffle(connections)
        spread_s = min(self.settings.drain_s, len(connections) * DISMISS_S)
        self._log.info("draining", connections=len(connections), spread_s=spread_s)
        started = self._loop.time()
        for done, connection in enumerate(connections):
            if (ahead_s := spread_s * done / len(connections) - (self._loop.time() - started)) > TICK_S / 50:
                await asyncio.sleep(ahead_s)
            connection.dismiss()
        deadline = self._loop.time() + FAREWELL_S  # for the closing handshakes of WebSockets
        while len(self.wheel) and self._loop.time() < deadline:  # noqa: ASYNC110 - not worth an event on the wheel
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """Let go of the log."""
        for close in self.at_stop:
            await close()
        await self._feeder.stop()
        await self._backlog.chunks.stop()
        await self._past.stop()
        await self._resumer.stop()
        await self.tails.stop()
        self.source.close()


def retry_ms() -> int:
    """How long a reader should wait before it reconnects."""
    return random.randint(*RETRY_MS)  # noqa: S311 - spreading load, not keeping secrets


def welcome(wire: Wire) -> Greeting:
    """The first message of a connection."""

    def greet(verdicts: dict[str, Verdict]) -> bytes:
        data = {"session": secrets.token_hex(8), "topics": verdicts}
        return control(wire, "welcome", data, retry_ms=retry_ms())

    return greet


def bye(wire: Wire) -> bytes:
    """The last message of a connection that the server ends and wants back."""
    delay_ms = retry_ms()
    return control(wire, "bye", {"retry_ms": delay_ms}, retry_ms=delay_ms)


def _size(items: list[Item]) -> int:
    return sum(len(item.data) for item in items)
