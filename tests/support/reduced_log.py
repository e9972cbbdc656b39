"""Matches played into an `ArchiveLog` and reduced as by the state consumer: tests see what ClickHouse makes of it."""

from typing import Any

from clickhouse.reading import Limits
from consumers.batch import BatchReducer, State, decode, voters_needed
from consumers.batch import Limits as StateLimits
from core import keys
from core.clock import now_us
from core.events import parse_entry
from core.position import EntryId, parse_entry_id
from core.updates import Update, encode_update
from tests.support.archive_log import ArchiveLog

_LIMITS = StateLimits(6 * 3600 * 1000, 30 * 24 * 3600)
_EVERYTHING = Limits(100_000, 2**30)


class ReducedLog:
    """The input log of a shard, and its output log as far as `archive` has been called."""

    def __init__(self, log: ArchiveLog) -> None:
        self.log = log
        self.states: dict[str, State] = {}
        self._last = EntryId(0, 0)

    def play_map(
        self,
        match_id: str,
        rounds: str,
        teams: tuple[str, str] = ("Alpha", "Bravo"),
        map_id: str = "0",
        *,
        ends: bool = True,
    ) -> None:
        """A map whose rounds were won by team 1 or 2, for example "1121"; with `ends`, whoever leads has won it."""
        score = [0, 0]

        def data() -> dict[str, Any]:
            return {
                f"team{side}": {"name": teams[side - 1], "score": score[side - 1], "series_score": 0} for side in (1, 2)
            }

        self.log.log_writer.event(match_id, map_id, "going_live", data())
        for winner in rounds:
            score[int(winner) - 1] += 1
            self.log.log_writer.event(match_id, map_id, "round_end", data(), round_no=sum(score))
        if ends:
            self.log.log_writer.event(match_id, map_id, "map_result", data())

    def reduce(self) -> None:
        """Apply everything new in one batch, and append what it gives."""
        raw = self.log.sync.xrange(keys.events(0), min=f"({self._last}")
        batch = [decode(parse_entry(raw_id, fields)) for raw_id, fields in raw]
        if not batch:
            return
        priors: dict[str, dict[str, str]] = {topic: {} for topic in voters_needed(batch)}
        outcome = BatchReducer(0, 1, self.states, priors, _LIMITS).reduce(batch)
        previous, self._last = self._last, parse_entry_id(raw[-1][0])
        update = Update(1, batch[0].entry.id, previous, now_us(), outcome.messages, outcome.facts)
        self.log.sync.xadd(keys.updates(0), {"u": encode_update(update)}, id=str(self._last))

    async def archive(self) -> None:
        """Reduce, and archive both logs."""
        self.reduce()
        await self.log.archive("events", _EVERYTHING)
        await self.log.archive("updates", _EVERYTHING)
