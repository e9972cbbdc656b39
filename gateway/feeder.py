"""Bringing readers forward whom the ring does not reach: from the past, at their own pace, next to the live stream.

A COLD subscriber has one short-lived task here until the ring covers it. Piece by piece it gets what comes after its
position, from the output log, or where that does not reach back from the archive, and nothing is held for it while it
reads: the next piece is looked up when there is room for it (`gateway.shared_reads` keeps what is asked for again and
again). What it gets is conflated write by write, in order, so it may be cut off anywhere and come back with its cursor.

The archive has no states, so from the first event it gives, a reader is owed them: its position says so, only events
follow, from whatever tier, and once the ring has the rest, snapshots of hot state settle the debt.

If nobody can vouch for what is between (trimmed and not archived, rolled back), a reader is asked to reconnect, and
gets its `reset` then: a verdict that was given is never taken back within a connection.
"""

import asyncio
from bisect import bisect_right
from collections.abc import Awaitable, Callable
from operator import attrgetter

from core import logs
from core.errors import Retry
from core.metrics import LOOP_ERRORS
from core.position import Position
from gateway.backlog import Backlog
from gateway.conflate import take
from gateway.frames import Item
from gateway.hot_state import HotState, snapshots
from gateway.hub import Hub, State, Subscriber
from gateway.pace import Pace
from gateway.past import Past
from gateway.tail import Tails

PIECE_ITEMS = 1000
"""Messages looked at for one piece."""

TRIES_MAX = 20
RETRY_S = 0.25
AGREE_S = 1.0
"""How long the tail may take to get to where hot state stands."""

ReadState = Callable[[int, tuple[str, ...], Position], Awaitable[HotState]]
"""`Resumer.state`: hot state of some topics of a shard, not older than a position."""

_position = attrgetter("position")


class Feeder:
    """Feeds COLD subscribers of one hub."""

    def __init__(
        self,
        hub: Hub,
        tails: Tails,
        backlog: Backlog,
        past: Past,
        read_state: ReadState,
        pace: Pace,
        *,
        chunk_bytes: int,
        lag_max_s: float,
        on_lost: Callable[[Subscriber], None],
        on_news: Callable[[], None],
    ) -> None:
        """`on_lost`: the subscriber must come back, its position cannot be continued. `on_news`: time for a flush."""
        self._hub = hub
        self._tails = tails
        self._backlog = backlog
        self._past = past
        self._read_state = read_state
        self._pace = pace
        self._chunk_bytes = chunk_bytes
        self._lag_max_s = lag_max_s
        self._on_lost = on_lost
        self._on_news = on_news
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = logs.get()

    def take(self, subscriber: Subscriber) -> None:
        """`Hub.on_cold`."""
        task = asyncio.create_task(self._feed(subscriber), name="feed")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Let go of everybody."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _feed(self, subscriber: Subscriber) -> None:
        tries = 0
        archived: set[int] = set()
        while await self._drained(subscriber):
            try:
                if not await self._advance(subscriber, archived):
                    return
                tries = 0
            except Retry as error:
                tries += 1
                LOOP_ERRORS.labels("feed").inc()
                if tries >= TRIES_MAX:
                    self._log.warning("reader cannot be fed", error=str(error))
                    self._on_lost(subscriber)
                    return
                await asyncio.sleep(RETRY_S)
            except Exception as error:
                LOOP_ERRORS.labels("feed").inc()
                self._log.error("reader cannot be fed", exc_info=error)
                self._on_lost(subscriber)
                return

    async def _advance(self, subscriber: Subscriber, archived: set[int]) -> bool:
        """Write one piece; False when there is nothing more to do here. Raises Retry."""
        channel, vector = subscriber.channel, dict(subscriber.vector or {})
        if not all(self._tails[shard].epochs.holds(position) for shard, position in vector.items()):
            self._on_lost(subscriber)  # rolled back
            return False
        for shard, position in vector.items():
            if self._hub.covers(channel, shard, position):
                continue
            if position.is_owing and self._hub.covers(channel, shard, position.settled):
                return await self._settle(subscriber, shard, position)
            return await self._go_on(subscriber, shard, position, archived)
        self._hub.warm(subscriber)
        self._on_news()
        return False

    async def _go_on(self, subscriber: Subscriber, shard: int, position: Position, archived: set[int]) -> bool:
        """From the archive while it has something (`archived`: shards where that is so), else from the output log."""
        channel, place, epochs = subscriber.channel, position.settled, self._tails[shard].epochs
        routes = channel.routes[shard]
        if shard in archived:
            items, until, is_full = await self._past.chunk(shard, routes, position, epochs)
            if not is_full:
                archived.discard(shard)
            if until.settled > place:
                if await self._may_write(subscriber):
                    self._write(subscriber, shard, items, 0, until)
                return True
        chunk = await self._backlog.chunk(shard, place, epochs, self._hub.edge[shard])
        if not chunk.is_whole_for(place):
            follows = chunk.follows(place)
            reach = epochs.at(await self._past.reach(shard))
            if reach > place and await self._past.vouches(shard, place, follows):
                archived.add(shard)
                return True
            self._on_lost(subscriber)
            return False
        if chunk.until <= place:
            raise Retry(f"shard {shard} ends before what was published of it")
        if await self._may_write(subscriber):
            items = chunk.of(routes)
            start = bisect_right(items, place, key=_position)
            self._write(subscriber, shard, items, start, chunk.until.owing if position.is_owing else chunk.until)
        return True

    async def _settle(self, subscriber: Subscriber, shard: int, position: Position) -> bool:
        """The ring has the rest: bring the reader to where hot state stands, and give it the states it is owed."""
        channel, routes, place = subscriber.channel, subscriber.channel.routes[shard], position.settled
        state = await self._read_state(shard, routes, place)
        deadline = asyncio.get_running_loop().time() + AGREE_S
        while self._hub.edge[shard] < state.position:  # the tail is a moment behind
            if asyncio.get_running_loop().time() >= deadline:
                raise Retry(f"shard {shard} is not read as far as its hot state")
            await asyncio.sleep(AGREE_S / 20)
        if not await self._may_write(subscriber):
            return True
        if not (self._hub.covers(channel, shard, place) and state.epochs.holds(place)):
            return True  # the ring moved on, or the log was rolled back
        if state.last_id < place.entry:
            raise Retry(f"hot state of shard {shard} is older than what was sent of it")
        items = [item for item in self._hub.news(channel, shard, place) if item.position <= state.position]
        end = state.position.owing
        if self._write(subscriber, shard, items, 0, end) == end and not subscriber.sink.is_paused:
            items = snapshots(state, routes, end)
            reached = {**self._hub.position(subscriber), shard: state.position}
            self._hub.feed(subscriber, items, reached, 0, self._now())
        return True

    async def _may_write(self, subscriber: Subscriber) -> bool:
        """Wait for a turn; False when there is no room any more, because of a heartbeat or the like."""
        await self._pace.turn()
        return subscriber.state is State.COLD and not subscriber.sink.is_paused

    def _write(self, subscriber: Subscriber, shard: int, items: list[Item], start: int, until: Position) -> Position:
        """Write what one piece holds of `items` from `start` on; `until`: where the reader stands after all of them.

        Returns where it stands now. While states are owed there are only events.
        """
        channel = subscriber.channel
        candidates = items[start : start + PIECE_ITEMS]
        if until.is_owing:
            wanted = [item.owed for item in candidates if not item.is_state and channel.wants(item)]
        else:
            wanted = [item for item in candidates if channel.wants(item)]
        batch, end = take(wanted, 0, self._chunk_bytes)
        if end < len(wanted):
            stand = wanted[end - 1].position
        elif start + len(candidates) < len(items):
            stand = candidates[-1].position.owing if until.is_owing else candidates[-1].position
        else:
            stand = until
        reached = {**self._hub.position(subscriber), shard: stand}
        self._hub.feed(subscriber, batch, reached, end - len(batch), self._now())
        return stand

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    async def _drained(self, subscriber: Subscriber) -> bool:
        if subscriber.sink.is_closing:
            return False
        if not subscriber.sink.is_paused:
            await asyncio.sleep(0)  # others first
            return subscriber.state is State.COLD
        drained = asyncio.Event()
        subscriber.on_drain = drained.set
        try:
            await asyncio.wait_for(drained.wait(), self._lag_max_s)
        except TimeoutError:
            self._hub.evict(subscriber, "seconds", asyncio.get_running_loop().time())
        finally:
            subscriber.on_drain = None
        return subscriber.state is State.COLD
