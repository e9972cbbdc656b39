"""Watching the log's server: does it keep what ARENACAST_ACK promises, and how full is it."""

import asyncio

from core.errors import Retry
from core.logs import get as get_log
from core.metrics import LOOP_ERRORS
from core.problem import unavailable
from core.redis_client import Redis, Scripts, memory_share
from core.settings import Settings
from ingest.ack import AckRedis, durability, inspect

INTERVAL_S = 1.0
WARN_AT, REFUSE_AT = 0.80, 0.95
"""Shares of `maxmemory`: from the second on ingest refuses, so that the consumers keep room to work the log off."""


class Watch:
    """Last known condition of the server, renewed once a second and at every new incarnation."""

    def __init__(self, reader: Redis, writer: AckRedis, settings: Settings) -> None:
        """Asks through `reader`; `writer` is told how it has to acknowledge."""
        self._reader = reader
        self._writer = writer
        self._settings = settings
        self._said: tuple[str, ...] = ()
        self.memory = 0.0

    @property
    def concerns(self) -> list[str]:
        """What an operator should know; those not starting with "warning:" mean that writing is refused."""
        found = [self._writer.durability.weakness]
        if self.memory >= REFUSE_AT:
            found.append(f"memory at {self.memory:.0%} of maxmemory: refusing events")
        elif self.memory >= WARN_AT:
            found.append(f"warning: memory at {self.memory:.0%} of maxmemory, refusing at {REFUSE_AT:.0%}")
        return [text for text in found if text]

    def admit(self) -> None:
        """Raises Problem 503 while the log is over its memory budget."""
        if self.memory >= REFUSE_AT:
            raise unavailable("the log is over its memory budget, repeat the request later", retry_after_s=5)

    async def look(self) -> None:
        """Ask the server now. Raises Retry."""
        self._writer.durability = durability(self._settings, await inspect(self._reader))
        self.memory = await memory_share(self._reader)
        self._say()

    async def check(self) -> str:
        """For /readyz: asks the server, and never raises."""
        try:
            await self.look()
        except Retry:
            return "Redis is unreachable"
        return "; ".join(sorted(self.concerns, key=lambda text: text.startswith("warning:")))

    async def run(self) -> None:
        """Look once a second, for ever."""
        while True:
            try:
                await self.look()
            except Exception as error:  # top of the loop: the guard must outlive whatever a server answers
                LOOP_ERRORS.labels("ingest_watch").inc()
                get_log().warning("cannot look at the log's server", error=str(error))
            await asyncio.sleep(INTERVAL_S)

    def _say(self) -> None:
        concerns = tuple(text.partition(" at ")[0] for text in self.concerns)  # not again for every per cent
        if concerns != self._said:
            for text in self.concerns:
                get_log().warning("log server", concern=text)
            if not concerns:
                get_log().info("log server is as it should be")
            self._said = concerns


class WatchedScripts(Scripts):
    """Scripts that look at the server anew before they write to another incarnation of it."""

    def __init__(self, client: AckRedis, shards: int, sources: dict[str, str], watch: Watch) -> None:
        super().__init__(client, shards, sources)
        self._watch = watch

    async def load(self) -> None:
        """See `Scripts.load`. The new server may be configured more weakly than the old one."""
        await self._watch.look()
        await super().load()
