"""Micro-batching: concurrent requests share calls of the append script, and with them the fsync. Hot path.

One call per shard is in flight; what arrives meanwhile forms the next batch. The first item of a quiet shard goes at
once, a busy shard fills its batches by itself, and the order of a shard is the order of arrival. More calls in
flight would travel on other connections and could overtake each other.

Queues are bounded in entries and in bytes; beyond that a request is refused with 503. When a call fails, everybody
waiting for that shard hears 503 at once, instead of one time-out after the other; nothing is repeated here, because
only the caller may decide to repeat.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from core.errors import Retry
from core.logs import get as get_log
from core.metrics import INGESTED, LOOP_ERRORS, SOURCES, source_label
from core.problem import unavailable
from ingest.append import Appender, Group

BATCH_MAX_BYTES = 4 << 20
"""Of one call: bounds the time the server is busy with it; one part may exceed it alone."""
QUEUE_MAX_BYTES = 64 << 20
"""Waiting per shard: entries alone would allow 50,000 events of 256 KiB."""
WAITING_FACTOR = 16
"""Where each call waits for a disk that syncs once a second, or for replicas, it takes this many batches at once:
otherwise a shard would be bound to one batch a second. Parts, and with them Lua's stack, stay as small as ever."""
WAIT_MAX_S = 10.0
"""A request waits at most this long for the log."""

_RESULTS = {"1": "accepted", "0": "duplicate", "?": "unknown_poll"}


class Outcome:
    """What became of the items of one request, filled in as its parts are appended."""

    def __init__(self, parts: int) -> None:
        self.accepted = 0
        self.duplicates = 0
        self.gone: set[str] = set()
        """Topics of polls that did not exist any more when the log was asked; their votes are not stored."""
        self._parts = parts
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not parts:
            self._done.set_result(None)

    async def wait(self) -> "Outcome":
        """Return when every part is in the log. Raises what made one fail, or Problem 503 after a bounded wait."""
        try:
            async with asyncio.timeout(WAIT_MAX_S):
                await self._done
        except TimeoutError:
            raise unavailable("the log is too slow, repeat the request") from None
        return self

    def settle(self, topic: str, flags: str) -> None:
        """One part was answered."""
        self.accepted += flags.count("1")
        self.duplicates += flags.count("0")
        if "?" in flags:
            self.gone.add(topic)
        self._parts -= 1
        if not self._parts and not self._done.done():
            self._done.set_result(None)

    def fail(self, error: Exception) -> None:
        """One part failed: its items may or may not be in the log."""
        if not self._done.done():
            self._done.set_exception(error)


class _Part:
    """What of one group fits into a call."""

    __slots__ = ("group", "outcome", "size")

    def __init__(self, group: Group, outcome: Outcome) -> None:
        self.group = group
        self.outcome = outcome
        self.size = sum(map(len, group.items))


class _Queue:
    """Parts waiting for one shard."""

    def __init__(self) -> None:
        self.parts: deque[_Part] = deque()
        self.entries = 0
        self.size = 0
        self.wake = asyncio.Event()

    def push(self, part: _Part) -> None:
        self.parts.append(part)
        self.entries += len(part.group.sources)
        self.size += part.size
        self.wake.set()

    def take(self, entries_max: int) -> list[_Part]:
        """The next batch: at least one part, then as many as fit."""
        batch: list[_Part] = []
        entries = size = 0
        while self.parts:
            part = self.parts[0]
            entries += len(part.group.sources)
            size += part.size
            if batch and (entries > entries_max or size > BATCH_MAX_BYTES):
                break
            batch.append(self.parts.popleft())
            self.entries -= len(part.group.sources)
            self.size -= part.size
        return batch

    def take_all(self) -> list[_Part]:
        """Everything that waits."""
        parts = list(self.parts)
        self.parts.clear()
        self.entries = self.size = 0
        return parts


class Batcher:
    """Accepts groups from requests and appends them in batches. An async context manager: inside, it works."""

    def __init__(
        self, appender: Appender, *, batch_max: int, queue_max: int, waits: Callable[[], bool] = lambda: False
    ) -> None:
        """`batch_max`: entries of one call. `queue_max`: entries waiting per shard. `waits`: see `WAITING_FACTOR`."""
        self._appender = appender
        self._batch_max = batch_max
        self._queue_max = queue_max
        self._waits = waits
        self._queues = [_Queue() for _ in range(appender.shards)]
        self._workers: list[asyncio.Task[None]] = []
        for source in (*SOURCES, "other"):  # so that a rate has a beginning
            for result in ("accepted", "duplicate"):
                INGESTED.labels(source, result)

    async def __aenter__(self) -> Self:
        self._workers = [asyncio.create_task(self._work(shard)) for shard in range(len(self._queues))]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop. Whoever still waits hears 503; the server is to have finished its requests before."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        for queue in self._queues:
            self._fail(queue.take_all(), Retry("stopping"))

    async def submit(self, groups: Iterable[Group]) -> Outcome:
        """Append groups, in order within each topic; returns when all are in the log as ARENACAST_ACK says.

        Raises Problem 503 when a queue is full (nothing was stored) and Retry when an append failed: part of the
        items may be stored, and count as duplicates when the same are submitted again.
        """
        pieces = [(self._appender.shard_of(g.topic), g.split(self._batch_max)) for g in groups]
        outcome = Outcome(sum(len(parts) for _, parts in pieces))
        for shard, parts in pieces:
            self._admit(self._queues[shard], sum(len(part.sources) for part in parts))
        for shard, parts in pieces:
            for part in parts:
                self._queues[shard].push(_Part(part, outcome))
        return await outcome.wait()

    def _admit(self, queue: _Queue, entries: int) -> None:
        """An empty queue takes any body, so that the largest one allowed cannot be refused for ever."""
        if queue.parts and (queue.entries + entries > self._queue_max or queue.size > QUEUE_MAX_BYTES):
            raise unavailable("too many events are waiting for the log, repeat the request")

    async def _work(self, shard: int) -> None:
        queue = self._queues[shard]
        while True:
            await queue.wake.wait()
            queue.wake.clear()
            while batch := queue.take(self._batch_max * (WAITING_FACTOR if self._waits() else 1)):
                try:
                    replies = await self._appender.append(shard, [part.group for part in batch])
                    self._settle(batch, replies)
                except asyncio.CancelledError:
                    self._fail(batch, Retry("stopping"))
                    raise
                except Exception as error:  # top of the loop: one bad batch must not stop the shard
                    LOOP_ERRORS.labels("ingest_append").inc()
                    get_log().warning("append failed", shard=shard, entries=len(batch), error=str(error))
                    self._fail([*batch, *queue.take_all()], error)

    def _settle(self, batch: list[_Part], replies: list[str]) -> None:
        counts: Counter[tuple[str, str]] = Counter()
        for part, flags in zip(batch, replies, strict=True):
            counts.update(zip(part.group.sources, flags, strict=True))
            part.outcome.settle(part.group.topic, flags)
        for (source, flag), count in counts.items():
            INGESTED.labels(source_label(source), _RESULTS[flag]).inc(count)

    def _fail(self, batch: Iterable[_Part], error: Exception) -> None:
        for part in batch:
            INGESTED.labels("other", "unavailable").inc(len(part.group.sources))
            part.outcome.fail(error)
