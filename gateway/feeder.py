"""Bringing readers forward whom the ring does not reach: from the log, at their own pace, next to the live stream.

A COLD subscriber has one short-lived task here until the ring covers it. What it gets is conflated write by write, in
order, so it may be cut off anywhere and come back with its cursor. If the log cannot vouch for what is between
(trimmed, rolled back), it is asked to reconnect, and gets its `reset` then: a verdict that was given is never taken
back within a connection.
"""

import asyncio
from collections.abc import Callable

from core import logs
from core.errors import Retry
from core.metrics import LOOP_ERRORS
from gateway.backlog import Backlog
from gateway.channel import Vector
from gateway.conflate import take
from gateway.frames import Item
from gateway.hub import Hub, State, Subscriber
from gateway.tail import Tails

READS_MAX = 16
"""Readers fed at the same moment; the others wait their turn, and live subscribers do not notice."""

TRIES_MAX = 20
RETRY_S = 0.25


class Feeder:
    """Feeds COLD subscribers of one hub."""

    def __init__(
        self,
        hub: Hub,
        tails: Tails,
        backlog: Backlog,
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
        self._chunk_bytes = chunk_bytes
        self._lag_max_s = lag_max_s
        self._on_lost = on_lost
        self._on_news = on_news
        self._turns = asyncio.Semaphore(READS_MAX)
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
        while subscriber.state is State.COLD:
            try:
                if not await self._advance(subscriber):
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

    async def _advance(self, subscriber: Subscriber) -> bool:
        """Feed one chunk; False when there is nothing more to do here. Raises Retry."""
        channel, vector = subscriber.channel, dict(subscriber.vector or {})
        if not all(self._tails[shard].epochs.holds(position) for shard, position in vector.items()):
            self._on_lost(subscriber)  # rolled back
            return False
        cold = [shard for shard in vector if not self._hub.covers(channel, shard, vector[shard])]
        if not cold:
            self._hub.warm(subscriber)
            self._on_news()
            return False
        shard = cold[0]
        async with self._turns:
            epochs = self._tails[shard].epochs
            chunk = await self._backlog.chunk(shard, vector[shard], epochs, self._hub.edge[shard])
        if not chunk.is_whole_for(vector[shard]):
            self._on_lost(subscriber)
            return False
        if chunk.until <= vector[shard]:
            raise Retry(f"shard {shard} ends before what was published of it")
        items = [item for item in chunk.after(channel.routes[shard], vector[shard]) if channel.wants(item)]
        vector[shard] = chunk.until
        return await self._send(subscriber, items, vector)

    async def _send(self, subscriber: Subscriber, items: list[Item], reached: Vector) -> bool:
        """Write piece by piece as the reader takes it; False when it does not take it in time, or left."""
        start = 0
        while await self._drained(subscriber):
            batch, end = take(items, start, self._chunk_bytes)
            if end == len(items):
                stand = reached
            else:
                stand = dict(subscriber.vector or {})
                stand[items[end - 1].shard] = items[end - 1].position
            self._hub.feed(subscriber, batch, stand, end - start - len(batch), asyncio.get_running_loop().time())
            if end == len(items):
                return True
            start = end
        return False

    async def _drained(self, subscriber: Subscriber) -> bool:
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
