"""Following one log of one shard: wait for entries, linger, read a batch, hand it to the writer, and start over.

Back-pressure: nothing is read before there is a slot to write it, and a process has few slots. So a slow or absent
ClickHouse makes the log longer, which the log can bear, and costs no memory here; what the log should not bear for
hours goes to disk (`archive_relief`).
"""

import asyncio
import random
from contextlib import suppress

from clickhouse.reading import Limits, Log, Stuck
from clickhouse.writer import Batch, Writer
from consumers.archive_relief import Relief
from core import logs
from core.errors import Fatal, Fenced, Retry
from core.metrics import LOOP_ERRORS
from core.redis_client import Redis, call
from core.settings import Settings

INSERTS_AT_ONCE = 2
"""Logs of which a process writes batches at once. Each holds the batch being written and, in a backlog, the next one,
which is read meanwhile; a batch is up to `BATCH_BYTES_MAX` of entries, several times that as Python objects."""

BATCHES_A_TURN = 4
"""Full batches that a log writes before the others have their turn."""

BATCH_BYTES_MAX = 16 * 1024 * 1024

READ_BLOCK_MS = 1000
BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 10.0
STUCK_S = 30.0
"""How often a log that needs an operator is tried again, and complained about."""


def retention_s(settings: Settings, log: Log) -> float:
    """How long entries stay in a log although everybody has committed them (consumers/lua/trim.lua)."""
    kept_s = {"events": settings.events_retention_s, "updates": settings.updates_retention_s}
    return kept_s.get(log, 0.0)


class Follower:
    """Archives one log until `stop` is set. Raises Fenced when another owner took over."""

    def __init__(
        self,
        client: Redis,
        writer: Writer,
        settings: Settings,
        slots: asyncio.Semaphore,
        spilling: asyncio.Lock,
        stop: asyncio.Event,
    ) -> None:
        self._client = client
        self._writer = writer
        self._limits = Limits(settings.archive_batch_max, BATCH_BYTES_MAX)
        self._relief = Relief(
            client, writer.spilled, settings, retention_s(settings, writer.log), self._limits, spilling
        )  # fmt: skip
        self._linger_s = settings.archive_linger_s
        self._slots = slots
        self._stop = stop
        self._failures = 0
        self.stuck = ""
        """Why this log needs an operator, "" when it does not."""
        self.stream = writer.stream
        self.state_key = writer.state_key

    @property
    def committed(self) -> str:
        """Last entry archived."""
        return str(self._writer.committed)

    @property
    def segments(self) -> int:
        """Segment files of this log that are not archived yet."""
        return self._writer.spilled.segments

    @property
    def oldest_segment_ms(self) -> int:
        """When the oldest entry in segment files came, 0 when there are none."""
        return self._writer.spilled.oldest_segment_ms

    async def run(self) -> None:
        """Take the log over and follow it; after a failure back off and take it over again."""
        while not self._stop.is_set():
            delay_s = BACKOFF_MIN_S
            try:
                async with self._slots:
                    await self._writer.take_over()
                self.stuck = ""
                await self._follow()
            except Stuck as error:
                self.stuck = str(error)
                delay_s = STUCK_S
                self._complain("the archive of this log has stopped and needs an operator", error)
            except Fenced:
                raise
            except (Retry, Fatal) as error:
                # Also what ClickHouse refuses: giving up would lose entries, an operator can mend it while we repeat.
                delay_s = self._next_delay_s()
                self._complain("the archive of this log stands still", error)
            except Exception as error:
                delay_s = self._next_delay_s()
                self._complain("unexpected failure", error)
            await self._relieve(stands_still=True)
            await self._pause(delay_s)

    async def _follow(self) -> None:
        is_behind = False
        while not self._stop.is_set():
            async with self._slots:
                has_mended = await self._writer.mend()
            if not is_behind:
                if not await self._entries_wait(1 if has_mended else READ_BLOCK_MS):  # there may be more to mend
                    continue
                await self._pause(self._linger_s)
            async with self._slots:
                is_behind = await self._take_turn()
            if is_behind and await self._relieve(stands_still=False):
                return  # the writer has to learn of the segments

    async def _take_turn(self) -> bool:
        """Write what there is, a few batches at most; whether more were waiting."""
        batch = await self._writer.read(self._limits)
        for left in range(BATCHES_A_TURN - 1, -1, -1):
            if batch is None:
                return False
            if not batch.is_full or not left or self._stop.is_set():
                await self._writer.write(batch)
                self._failures = 0
                return batch.is_full
            batch = await self._write_and_read(batch)
        raise AssertionError("unreachable")

    async def _write_and_read(self, batch: Batch) -> Batch | None:
        """Write a batch, and meanwhile read the one after it."""
        reading = asyncio.create_task(self._writer.read(self._limits, batch.last))
        try:
            await self._writer.write(batch)
            self._failures = 0
            return await reading
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _entries_wait(self, block_ms: int) -> bool:
        """Whether there are entries beyond the committed one; waits for so long, or until we are to stop."""
        reading = asyncio.ensure_future(
            call(self._client.xread({self.stream: self.committed}, count=1, block=block_ms))
        )
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait([reading, stopping], return_when=asyncio.FIRST_COMPLETED)
            return reading.done() and bool(reading.result())
        finally:
            stopping.cancel()
            reading.cancel()

    async def _relieve(self, *, stands_still: bool) -> int:
        try:
            spilled = await self._relief.give(self._stop, stands_still=stands_still)
        except Fenced:
            raise
        except Exception as error:  # whatever it is: the archive itself goes on
            LOOP_ERRORS.labels("archive_spill").inc()
            known = isinstance(error, Stuck | Retry | Fatal)
            logs.get().error("spilling failed", stream=self.stream, error=str(error), exc_info=None if known else error)
            return 0
        if spilled:
            logs.get().warning("spilled to disk what could not be archived", stream=self.stream, entries=spilled)
        return spilled

    async def _pause(self, delay_s: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), delay_s)

    def _next_delay_s(self) -> float:
        self._failures += 1
        bound_s = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2.0 ** min(self._failures, 10))
        return bound_s * random.uniform(0.5, 1.0)  # noqa: S311 - so that many logs do not come back in step

    def _complain(self, text: str, error: Exception) -> None:
        LOOP_ERRORS.labels("archive").inc()
        known = isinstance(error, Stuck | Retry | Fatal)
        logs.get().error(
            text,
            stream=self.stream,
            committed=self.committed,
            failures=self._failures,
            error=str(error),
            exc_info=None if known else error,
        )
