"""The log in memory, as a `gateway.source.Source`, and the oracle that remembers all of it."""

import asyncio
import random
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter

import msgspec

from clickhouse.past import PastEvent
from core.epochs import Epochs
from core.errors import Retry
from core.names import shard_of as _shard_of
from core.position import K_ALL, ZERO, EntryId, Position
from core.updates import Message, Update
from gateway.hot_state import HotState, TopicState
from gateway.source import Entries, News
from gateway.subscription import pattern_of

LOG_ID = "sim"
FORGETS_AFTER_S = 5.0
"""Age is told before it takes effect; what a gateway keeps in mind of it is younger."""

UNEASY_S = 15.0
"""A reader may wait so long to join, so what held until then counts for it."""

KINDS = ("tally", "state")


_position = attrgetter("position")


def _id(entry: tuple[EntryId, Update]) -> EntryId:
    return entry[0]


@dataclass
class Told:
    """One message as the oracle remembers it."""

    topic: str
    kind: str
    is_state: bool
    position: Position
    n: int
    """Unique number of the message."""
    pattern: str


@dataclass
class Shard:
    """One shard: what a reader can still see, and what ever was."""

    entries: list[tuple[EntryId, Update]] = field(default_factory=list)
    first_kept: int = 0
    epochs: dict[int, EntryId] = field(default_factory=lambda: {1: EntryId(0, 1)})
    last_id: EntryId = ZERO
    updates_id: EntryId = ZERO
    told: list[Told] = field(default_factory=list)
    changed: dict[str, EntryId] = field(default_factory=dict)
    lost_until: EntryId = ZERO
    """Newest entry that was trimmed."""
    inputs: list[tuple[str, PastEvent]] = field(default_factory=list)
    """(match id, event) of the input log."""
    rows: list[tuple[str, PastEvent]] = field(default_factory=list)
    """The same in the archive, which rolls nothing back."""
    committed: EntryId = ZERO
    """How far the input log is archived."""
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.table = Epochs(self.epochs)

    def begin(self, epoch: int) -> None:
        """A new epoch, from the next entry on."""
        # The record of an epoch comes before its entries, so it is lost with what lies before them.
        after = self.last_id.next
        self.epochs = {old: first for old, first in self.epochs.items() if first <= after} | {epoch: after}
        self.table = Epochs(self.epochs)


class World:
    """All shards. Time of the log is its own: ids only have to ascend."""

    def __init__(self, rng: random.Random, shards: int) -> None:
        self.rng = rng
        self.shards = [Shard() for _ in range(shards)]
        self._shard_of: dict[str, int] = {}
        self.is_down = False
        self.is_archive_down = False
        self.kept_ms = 0
        """The archive has forgotten what is older."""
        self.uneasy_at = 0.0
        """When something last happened that may cost events."""
        self._ms = 10_000
        self._n = 0
        self._epoch = 1

    def shard_of(self, topic: str) -> int:
        found = self._shard_of.get(topic)
        if found is None:
            found = self._shard_of[topic] = _shard_of(topic, len(self.shards))
        return found

    # -- writing

    def apply(self, topics: Sequence[str]) -> None:
        """One batch with one input per topic (all of one shard): events, states, or nothing at all."""
        shard = self.shards[self.shard_of(topics[0])]
        previous = shard.updates_id
        epoch = max(shard.epochs)
        messages: list[Message] = []
        first = entry = ZERO
        for topic in topics:
            self._ms += self.rng.choice((0, 1, 700))
            last = entry if entry != ZERO else shard.last_id
            entry = last.next if self._ms <= last.ms else EntryId(self._ms, 0)
            first = entry if first == ZERO else first
            if self.rng.random() < 0.15:
                continue  # an input without output
            if topic.startswith("poll."):
                parts = [("tally", True)]
            else:
                parts = [(self.rng.choice(("round_end", "going_live")), False), ("state", True)]
                parts = self.rng.choice((parts, parts[:1], parts[1:]))  # a state alone: a map that ended by itself
            for k, (kind, is_state) in enumerate(parts, 1):
                self._n += 1
                data = b'{"n":%d,"pad":"%b"}' % (self._n, b"x" * self.rng.choice((1, 50, 400)))
                messages.append(Message(topic, kind, is_state, entry.ms, entry.seq, k, data, 0, ""))
                place = Position(epoch, entry.ms, entry.seq, k)
                shard.told.append(Told(topic, kind, is_state, place, self._n, pattern_of(topic)))
                if not is_state:
                    _, match_id, map_id = topic.split(".")
                    shard.inputs.append((match_id, PastEvent(epoch, entry, map_id, kind, data)))
            shard.changed[topic] = entry
        if messages:
            shard.entries.append((entry, Update(epoch, first, previous, 0, messages, [])))
            shard.updates_id = entry
        shard.last_id = entry
        shard.news.set()

    def trim(self, shard: Shard, keep: int) -> None:
        """Keep only the newest entries."""
        self.disturb()
        gone, shard.entries = shard.entries[: len(shard.entries) - keep], shard.entries[len(shard.entries) - keep :]
        if gone:
            shard.lost_until = gone[-1][0]

    def archive(self, shard: Shard, entry: EntryId) -> None:
        """Archive everything up to an entry."""
        shard.rows += [row for row in shard.inputs if shard.committed < row[1].entry <= entry]
        shard.rows.sort(key=lambda row: (row[1].entry, row[1].epoch))
        shard.committed = max(shard.committed, entry)

    def forget(self) -> None:
        """The archive's oldest rows have come of age."""
        self.disturb()
        self.kept_ms = self.rng.randint(self.kept_ms, max(self.kept_ms, self._ms))
        asyncio.get_running_loop().call_later(FORGETS_AFTER_S, self._delete_rows, self.kept_ms)

    def _delete_rows(self, kept_ms: int) -> None:
        for shard in self.shards:
            shard.rows = [row for row in shard.rows if row[1].entry.ms >= kept_ms]

    def disturb(self) -> None:
        """From now on events may be lost that were there a moment ago."""
        self.uneasy_at = asyncio.get_running_loop().time()

    def has_events_after(self, shard: Shard, position: Position) -> bool:
        """Whether a gateway can get every event after a position, from one place or another."""
        if position.entry > shard.lost_until:
            return True
        return (
            not self.is_archive_down
            and shard.committed >= shard.lost_until
            and position.ms >= self.kept_ms
            and asyncio.get_running_loop().time() - self.uneasy_at > UNEASY_S
        )

    def restart(self, shard: Shard, lose: int) -> None:
        """The server restarts, having lost its newest entries; a new epoch begins."""
        self.disturb()
        keep = max(0, len(shard.entries) - lose)
        if keep < len(shard.entries):
            shard.entries = shard.entries[:keep]
            shard.updates_id = shard.entries[-1][0] if shard.entries else max(shard.lost_until, ZERO)
            shard.last_id = shard.updates_id
            shard.told = [told for told in shard.told if told.position.entry <= shard.last_id]
            shard.inputs = [row for row in shard.inputs if row[1].entry <= shard.last_id]
            shard.committed = min(shard.committed, shard.last_id)
            shard.changed = {}
            for told in shard.told:
                shard.changed[told.topic] = told.position.entry
        self._epoch += 1  # no number is ever given twice
        shard.begin(self._epoch)
        if self.rng.random() < 0.5:
            self._ms = shard.last_id.ms + 1  # the clock was stepped back, too: ids of the lost part come again
        shard.news.set()

    # -- gateway.source.Source

    async def state(self, shard: int, routes: Sequence[str] = ()) -> HotState:
        await self._pause()
        known = self.shards[shard]
        states = {route: [self._topic(known, topic) for topic in self._matching(known, route)] for route in routes}
        return HotState(shard, known.last_id, known.updates_id, known.table, states)

    async def entries(self, shard: int, first: EntryId, count: int) -> tuple[EntryId, Entries]:
        await self._pause()
        known = self.shards[shard]
        start = bisect_left(known.entries, first, key=_id)
        return known.updates_id, list(known.entries[start : start + count])

    async def follow(self, shard: int, after: EntryId, count: int, wait_s: float) -> News:
        deadline = asyncio.get_running_loop().time() + wait_s
        known = self.shards[shard]
        while True:
            await self._pause()
            start = bisect_right(known.entries, after, key=_id)
            if found := known.entries[start : start + count]:
                return list(found)
            if asyncio.get_running_loop().time() >= deadline:
                return []
            known.news = asyncio.Event()
            try:
                async with asyncio.timeout_at(deadline):
                    await known.news.wait()
            except TimeoutError:
                return []

    def close(self) -> None:
        """Nothing is open."""

    async def archived(self, shard: int) -> EntryId:
        await self._pause()
        return self.shards[shard].committed

    async def past(
        self, shard: int, match_id: str, first: EntryId, rows: int, bytes_max: int
    ) -> tuple[list[PastEvent], bool]:
        await self._ask_archive()
        found = [event for of, event in self.shards[shard].rows if of == match_id and event.entry >= first]
        return found[:rows], len(found) >= rows

    async def kept_since_ms(self, now_ms: int) -> int:
        await self._ask_archive()
        return self.kept_ms

    async def _ask_archive(self) -> None:
        await asyncio.sleep(self.rng.choice((0, 0.002, 0.1)))
        if self.is_archive_down:
            raise Retry("the archive is away")

    async def _pause(self) -> None:
        """A network: anything may happen before the answer is there."""
        if self.is_down:
            raise Retry("the log is away")
        await asyncio.sleep(self.rng.choice((0, 0, 0.001, 0.02)))
        if self.is_down:
            raise Retry("the log went away")

    @staticmethod
    def _matching(shard: Shard, route: str) -> list[str]:
        if route.endswith(".*"):
            return sorted(topic for topic in shard.changed if topic.startswith(route[:-1]))
        return [route] if route in shard.changed else []

    @staticmethod
    def _topic(shard: Shard, topic: str) -> TopicState:
        newest = {told.kind: told.n for told in shard.told if told.topic == topic and told.is_state}
        data = {"newest": newest, "status": "known"}
        return TopicState(topic, shard.changed[topic], msgspec.json.encode(data))

    # -- the oracle

    def between(self, topics: set[str], shard: int, low: Position, high: Position) -> list[Told]:
        """Everything told in (low, high] that a subscription to `topics` is to get."""
        told = self.shards[shard].told
        start, end = bisect_right(told, low, key=_position), bisect_right(told, high, key=_position)
        return [one for one in told[start:end] if one.topic in topics or one.pattern in topics]

    def head(self, shard: int) -> Position:
        known = self.shards[shard]
        return known.table.at(known.last_id, K_ALL)
