"""Who reads stored events is a fact, too: noted here, appended to `audit:{s}` in batches, archived like every other.

Noting never waits and never fails. Equal reads within `FLUSH_S` (same match, action and actor) become one record, so a
client that polls costs a record a second. Records wait here while Redis does not answer, up to `WAITING_MAX` of them;
what is beyond that, or finds no room in Redis (`core.audit.ENTRIES_MAX`), is lost, counted and logged. A gateway that
is killed takes the last second's records with it.
"""

import asyncio

import msgspec

from core import audit, logs
from core.audit import Record
from core.clock import Clock, now_us
from core.errors import Retry
from core.metrics import AUDIT_LOST, LOOP_ERRORS
from core.redis_client import Scripts

FLUSH_S = 1.0
BACKOFF_S = 2.0
WAITING_MAX = 10_000
CLOSE_S = 2.0

_Key = tuple[str, str, str]


class Auditor:
    """Notes reads of one process. Has a task only while something waits."""

    def __init__(self, scripts: Scripts, shards: int, clock: Clock = now_us) -> None:
        """`scripts` must know `core.audit.sources`."""
        self._scripts = scripts
        self._shards = shards
        self._clock = clock
        self._open: dict[_Key, Record] = {}
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._log = logs.get()

    def note(self, subject: str, action: str, actor: str, events: int, after: str, last: str, correlation: str) -> None:
        """One read: `events` of them after one place up to another."""
        key = (subject, action, actor)
        known = self._open.get(key)
        if known is not None:
            self._open[key] = msgspec.structs.replace(
                known, requests=known.requests + 1, events=known.events + events, last=last or known.last
            )
            return
        if len(self._open) >= WAITING_MAX:
            self._lose(1)
            return
        self._open[key] = Record(subject, action, actor, self._clock() // 1000, 1, events, after, last, correlation)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Append what waits, if that takes no longer than `CLOSE_S`."""
        self._closing.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=CLOSE_S)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._lose(len(self._open))

    async def _run(self) -> None:
        delay_s = FLUSH_S
        while self._open:
            await self._pause(delay_s)
            records = list(self._open.values())
            try:
                lost = await audit.append(self._scripts, self._shards, records)
            except Retry as error:
                LOOP_ERRORS.labels("audit").inc()
                self._log.warning("audit waits", records=len(self._open), error=str(error))
                if self._closing.is_set():
                    return
                delay_s = BACKOFF_S
                continue
            except Exception as error:
                LOOP_ERRORS.labels("audit").inc()
                self._log.error("audit failed", exc_info=error)
                lost = len(records)
            self._lose(lost)
            delay_s = FLUSH_S
            for record in records:  # what was added to one meanwhile is a record of its own
                self._settle(record)

    def _settle(self, record: Record) -> None:
        key = (record.subject, record.action, record.actor)
        now = self._open.pop(key)
        if now.requests > record.requests:
            self._open[key] = msgspec.structs.replace(
                now, requests=now.requests - record.requests, events=now.events - record.events, after=record.last,
                at_ms=self._clock() // 1000,
            )  # fmt: skip

    def _lose(self, count: int) -> None:
        if count:
            AUDIT_LOST.inc(count)
            self._log.error("audit records lost", count=count)

    async def _pause(self, delay_s: float) -> None:
        try:
            await asyncio.wait_for(self._closing.wait(), delay_s)
        except TimeoutError:
            return
