"""When a log goes to disk: the archive stands still, or cannot keep up, and Redis would hold what it waits for.

Nothing younger than the log's retention is spilled, as readers keep it in Redis anyway. Beyond it, an entry goes to
disk

* `spill_after_s` after it came, while the archive stands still (ClickHouse is away, or the log is stuck);
* at once, whether it stands still or just lags, while Redis uses more than `spill_memory_percent` of its memory.

It waits for a tenth more, so that segments are of minutes and not of moments. At the budget of the spill directory,
or on a full disk, spilling stops and says so; the log then grows in Redis until ingest refuses (95 %), and nothing is
lost.
"""

import asyncio
import time

from clickhouse.reading import Limits
from clickhouse.spill import SpilledLog
from core.metrics import LOOP_ERRORS
from core.position import EntryId
from core.redis_client import Redis, memory_share
from core.settings import Settings

LOOK_S = 1.0
PATIENCE = 0.1


class Relief:
    """Spills one log when it is time. `one_at_a_time` bounds what a process holds in memory for it."""

    def __init__(
        self,
        client: Redis,
        log: SpilledLog,
        settings: Settings,
        retention_s: float,
        limits: Limits,
        one_at_a_time: asyncio.Lock,
    ) -> None:
        self._client = client
        self._log = log
        self._is_on = settings.spill_max_mb > 0
        self._memory_max = settings.spill_memory_percent / 100
        self._pressed_age_s = retention_s
        self._age_s = max(retention_s, settings.spill_after_s)
        self._limits = limits
        self._one_at_a_time = one_at_a_time
        self._next_look_s = 0.0
        LOOP_ERRORS.labels("archive_spill")

    async def give(self, stop: asyncio.Event, *, stands_still: bool) -> int:
        """Spill what is due; how many entries. Raises Retry (no room, Redis away), Stuck and Fenced."""
        if not self._is_on or time.monotonic() < self._next_look_s:
            return 0
        self._next_look_s = time.monotonic() + LOOK_S
        is_pressed = await memory_share(self._client) >= self._memory_max
        if not (is_pressed or stands_still):
            return 0
        age_s = self._pressed_age_s if is_pressed else self._age_s
        oldest = await self._log.oldest_in_stream()
        now_s = time.time()
        if oldest is None or now_s - oldest.ms / 1000 < age_s * (1 + PATIENCE):
            return 0
        until = EntryId(max(0, int((now_s - age_s) * 1000)), 0)
        spilled = 0
        async with self._one_at_a_time:
            while not stop.is_set() and (count := await self._log.spill(until, self._limits)):
                spilled += count
        return spilled
