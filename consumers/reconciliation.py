"""Reconciliation: log appended = hot state applied (and dead) = ClickHouse raw = aggregates, shard by shard.

Polls are compared by number of votes and digest, maps and matches by score and status, each as of one position
(`books`), and each must be known to the archive; the log by its own numbering; aggregates by `clickhouse.comparison`.
What differs is looked into: the log that is still there is compared entry by entry, tallies of the output log one by
one, and a difference of one vote is known by its hash. Nothing is changed here.

A vote that the state consumer could not apply (a dead letter) is in raw and not in the tally: that is accounted for.
Trimmed logs, expired polls and votes in flight are no differences.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec import Struct

from clickhouse import comparison
from clickhouse.client import ClickHouse
from consumers.books import (
    TOPICS_AT_ONCE,
    Cold,
    Hot,
    Score,
    Sum,
    map_score,
    maps_of,
    open_cold,
    polls_of,
    read_hot,
    series_of,
    series_score,
    topics_of,
    wait_archived,
)
from consumers.dead_votes import DeadVotes
from consumers.locating import where_hot_and_raw_part
from consumers.log_window import TABLES, Window, first_difference, read_window
from consumers.reducers.poll import Poll
from core.digest import format_digest
from core.errors import Poison, Retry
from core.events import parse_entry
from core.names import SERIES, match_topic, poll_topic, shard_of
from core.position import ZERO, EntryId
from core.redis_client import Redis

Place = Literal["log", "hot state", "raw", "aggregate"]


class Difference(Struct, frozen=True):
    """Two places that should say the same and do not. `place` is the one that is wrong, as far as that can be told."""

    place: Place
    shard: int
    subject: str
    """A topic, or "" for the shard; of an aggregate: `<table> <poll or match>`."""
    expected: str
    found: str
    first: str = ""
    """Where it begins: a position, or a cell of an aggregate; "" when it cannot be told any more."""

    def __str__(self) -> str:
        where = f", from {self.first} on" if self.first else ""
        subject = f" {self.subject}" if self.subject else ""
        return f"shard {self.shard}: {self.place}{subject}: expected {self.expected}, found {self.found}{where}"


class Report(Struct):
    """What was compared and what came of it."""

    differences: list[Difference] = []
    unknown: list[str] = []
    """What could not be compared, and why."""
    notes: list[str] = []
    """Worth knowing, and no difference."""
    positions: dict[int, str] = {}
    """Shard -> position compared at."""
    polls: int = 0
    maps: int = 0
    votes: int = 0
    aggregates: int = 0

    @property
    def exit_code(self) -> int:
        """0 clean, 1 differs, 2 could not tell."""
        return 1 if self.differences else 2 if self.unknown else 0


class Reconciliation:
    """One run over some shards."""

    def __init__(
        self, client: Redis, clickhouse: ClickHouse, shards: int, *, since_ms: int = 0, wait_s: float = 30.0,
        retention_ms: int = 2**62, is_thorough: bool = True,
    ) -> None:  # fmt: skip
        """`since_ms`: only what changed since; `wait_s`: for the archive to catch up; `retention_ms`: how long final
        states are kept; `is_thorough`: look through the log that is left, and for polls without hot state, too."""
        self._client = client
        self._clickhouse = clickhouse
        self._shards = shards
        self._since_ms = since_ms
        self._wait_s = wait_s
        self._retention_ms = retention_ms
        self._is_thorough = is_thorough
        self._untold: set[int] = set()
        self.report = Report()

    async def run(self, shards: Sequence[int]) -> Report:
        """Compare everything of these shards. Raises Retry when Redis or ClickHouse is away."""
        subjects: dict[str, set[str]] = {name: set() for name in comparison.SUBJECTS}
        for shard in shards:
            await self._shard(shard, subjects)
        await self._aggregates(subjects, set(shards))
        return self.report

    # -- one shard

    async def _shard(self, shard: int, subjects: dict[str, set[str]]) -> None:
        topics = await topics_of(self._client, shard, self._since_ms)
        cold = await open_cold(self._client, self._clickhouse, shard)
        dead = DeadVotes(self._client, shard)
        position = EntryId(0, 0)
        for start in range(0, max(1, len(topics)), TOPICS_AT_ONCE):
            hot = await read_hot(self._client, shard, topics[start : start + TOPICS_AT_ONCE])
            position = hot.position
            if start == 0:
                self._log_alone(shard, hot)
            if not await self._is_archived(shard, position):
                return
            await self._topics(shard, cold, hot, dead)
        self.report.positions[shard] = str(position)
        subjects["match_id"] |= {topic.split(".")[1] for topic in topics if topic.startswith("match.")}
        subjects["poll_id"] |= {topic.split(".")[1] for topic in topics if topic.startswith("poll.")}
        if self._is_thorough:
            without_state = await cold.polls_since(self._since_ms) - {
                topic.split(".", 1)[1] for topic in topics if topic.startswith("poll.")
            }
            await self._without_state(shard, cold, dead, sorted(without_state), position)
            subjects["poll_id"] |= without_state
            await self._window(shard, cold, await read_window(self._client, shard, position))
            if rolled_back := await cold.rolled_back():
                self.report.notes.append(f"shard {shard}: {rolled_back} archived votes were lost by the log later")

    async def _is_archived(self, shard: int, position: EntryId) -> bool:
        committed = await wait_archived(self._client, shard, "events", position, self._wait_s)
        if committed < position:
            self.report.unknown.append(
                f"shard {shard}: the archive is at {committed}, hot state at {position}, after {self._wait_s:g} s"
            )
        return committed >= position

    def _log_alone(self, shard: int, hot: Hot) -> None:
        """What Redis says of itself: the log's numbering against what was applied."""
        progress = hot.progress
        if progress.unaccounted:
            expected = f"{progress.vote_ordinal} votes up to {hot.position}"
            found = f"{progress.votes} applied and {progress.dead_votes} dead"
            self._differs("hot state", shard, "", expected, found)
        if progress.gaps:
            self.report.notes.append(f"shard {shard}: the log lost {progress.gaps} entries before they were applied")
        if hot.newest is not None:
            try:
                entry = parse_entry(*hot.newest)
            except Poison:
                return
            name = "votes" if entry.kind == "vote" else "events"
            if entry.ordinal != hot.appended.get(name, 0):
                expected = f"{hot.appended.get(name, 0)} {name} appended"
                self._differs("log", shard, "", expected, f"{entry.ordinal} at its end", str(entry.id))

    async def _topics(self, shard: int, cold: Cold, hot: Hot, dead: DeadVotes) -> None:
        for topic, reason in hot.broken.items():
            self._differs("hot state", shard, topic, "a state", reason)
        is_told = await self._is_told(shard, hot)
        await self._polls(shard, cold, hot, dead, is_told=is_told)
        if not is_told:
            return
        maps, played = maps_of(hot.states), series_of(hot.states)
        self.report.maps += len(maps)
        scores = await cold.maps(list(maps), hot.position) if maps else {}
        for name, one in maps.items():
            self._stands(shard, f"match.{name[0]}.{name[1]}", scores.get(name), map_score(one))
        results = await cold.series(list(played), hot.position) if played else {}
        for match_id, series in played.items():
            self._stands(shard, match_topic(match_id, SERIES), results.get(match_id), series_score(series))

    def _stands(self, shard: int, topic: str, archived: Score | None, stands: Score) -> None:
        """The score of a map or a match: every change of it was archived, so the newest one is what it is now."""
        if archived is None:
            self._differs("raw", shard, topic, f"{stands}", "nothing archived of it")
        elif archived != stands:
            self._differs("hot state", shard, topic, f"{archived} as archived", f"{stands}")

    async def _is_told(self, shard: int, hot: Hot) -> bool:
        """Whether the derived facts of a position are in ClickHouse, too; they come by a log of their own."""
        wait_s = 0.0 if shard in self._untold else self._wait_s  # once is enough
        told = await wait_archived(self._client, shard, "updates", hot.progress.updates_id, wait_s)
        if told < hot.progress.updates_id and hot.states and shard not in self._untold:
            self._untold.add(shard)
            self.report.unknown.append(
                f"shard {shard}: derived facts are archived up to {told}, and given up to {hot.progress.updates_id}, "
                f"after {self._wait_s:g} s"
            )
        return told >= hot.progress.updates_id

    async def _polls(self, shard: int, cold: Cold, hot: Hot, dead: DeadVotes, *, is_told: bool) -> None:
        """Without the derived facts a poll that differs may have begun another life."""
        polls = polls_of(hot.states)
        if not polls:
            return
        raw = await cold.polls(list(polls), hot.position)
        known = await cold.defined(list(polls), hot.position)
        for poll_id, state in polls.items():
            self.report.polls += 1
            self.report.votes += state.applied
            topic = poll_topic(poll_id)
            for expected, found in faults(state, hot.shown[topic]):
                self._differs("hot state", shard, topic, expected, found)
            if is_told and poll_id not in known:
                self._differs("raw", shard, topic, "its definition", "nothing archived of it")
            mine, theirs = Sum(state.applied, state.digest), raw.get(poll_id, Sum())
            if mine != theirs and is_told:
                await self._poll_differs(shard, cold, dead, poll_id, mine, theirs, hot.position)

    async def _poll_differs(
        self, shard: int, cold: Cold, dead: DeadVotes, poll_id: str, hot: Sum, raw: Sum, position: EntryId
    ) -> None:  # fmt: skip
        topic = poll_topic(poll_id)
        buried = await self._buried(cold, dead, poll_id, position)
        if hot.plus(buried) == raw:
            return
        window = await read_window(self._client, shard, position)
        first = await first_difference(window, cold, "votes", poll_id)
        accounted = hot.plus(buried)
        if first is not None:
            self._differs("raw", shard, topic, str(accounted), str(raw), str(first))
            return
        place, where = await where_hot_and_raw_part(self._client, cold, shard, poll_id, accounted, raw, window)
        expected, found = (accounted, raw) if place == "raw" else (raw.minus(buried), hot)
        self._differs(place, shard, topic, str(expected), str(found), where)

    async def _buried(self, cold: Cold, dead: DeadVotes, poll_id: str, position: EntryId) -> Sum:
        """Dead votes of a poll's latest life."""
        began = (await cold.lives([poll_id], position)).get(poll_id, ZERO)
        return await dead.of(poll_topic(poll_id), began, position)

    async def _without_state(
        self, shard: int, cold: Cold, dead: DeadVotes, polls: Sequence[str], position: EntryId
    ) -> None:  # fmt: skip
        """Polls that only raw knows: expired, or made of dead letters, or lost from hot state."""
        for start in range(0, len(polls), TOPICS_AT_ONCE):
            chunk = polls[start : start + TOPICS_AT_ONCE]
            for poll_id, raw in (await cold.polls(chunk, position)).items():
                if await cold.newest_ms(poll_id) + self._retention_ms < position.ms:
                    continue
                if await self._buried(cold, dead, poll_id, position) != raw:
                    self._differs("hot state", shard, poll_topic(poll_id), str(raw), "no state")

    async def _window(self, shard: int, cold: Cold, window: Window) -> None:
        """The log that is left against raw, also what no hot state counts: match events."""
        known = {one.first for one in self.report.differences if one.shard == shard and one.place == "raw"}
        for table in TABLES:
            first = await first_difference(window, cold, table)
            if first is not None and str(first) not in known:
                expected = window.sum(table)
                found = await cold.between(table, window.after, window.last)
                self._differs("raw", shard, table, f"{expected} after {window.after}", str(found), str(first))

    # -- aggregates

    async def _aggregates(self, subjects: dict[str, set[str]], shards: set[int]) -> None:
        for aggregate in await comparison.discover(self._clickhouse):
            ids = None if self._is_everything(shards) else sorted(subjects[aggregate.subject])
            found, restless = await comparison.mismatches(self._clickhouse, aggregate, ids)
            self.report.aggregates += 1
            for one in found:
                first = await comparison.first_difference(self._clickhouse, aggregate, one.id)
                topic = poll_topic(one.id) if one.subject == "poll_id" else f"match.{one.id}"
                self._differs(
                    "aggregate", shard_of(topic, self._shards), f"{one.aggregate} {one.id}",
                    f"{one.raw.cells} cells {format_digest(one.raw.digest)} as from {one.raw_table}",
                    f"{one.target.cells} cells {format_digest(one.target.digest)}", first,
                )  # fmt: skip
            self.report.unknown += (f"{aggregate.name} {name}: never stood still" for name in restless)

    def _is_everything(self, shards: set[int]) -> bool:
        return self._is_thorough and not self._since_ms and len(shards) == self._shards

    def _differs(self, place: Place, shard: int, subject: str, expected: str, found: str, first: str = "") -> None:
        self.report.differences.append(Difference(place, shard, subject, expected, found, first))


def faults(state: Poll, shown: bytes) -> list[tuple[str, str]]:
    """(expected, found) of what a poll's state says wrongly of itself: its sums, and what readers are shown."""
    found = []
    counted, rejected = sum(state.counts.values()), sum(state.rejected.values())
    if counted + rejected + state.replaced != state.applied:
        found.append((f"{state.applied} applied", f"{counted} counted, {rejected} rejected, {state.replaced} replaced"))
    if state.definition.voting == "last" and counted != state.voters:
        found.append((f"{state.voters} voters", f"{counted} counted"))
    try:
        public = msgspec.json.decode(shown, type=dict[str, object])
    except msgspec.MsgspecError:
        return [*found, ("a snapshot", "none that can be read")]
    tally = msgspec.to_builtins(state.tally())
    wrong = [name for name, value in tally.items() if public.get(name) != value]
    if wrong:
        found.append((f"{ {name: tally[name] for name in wrong} }", f"{ {name: public.get(name) for name in wrong} }"))
    return found


async def run_once(
    client: Redis, clickhouse: ClickHouse, shards: int, *, since_ms: int, wait_s: float, retention_ms: int
) -> Report:
    """A thorough reconciliation of all shards; what cannot be reached is told in the report."""
    run = Reconciliation(
        client, clickhouse, shards, since_ms=since_ms, wait_s=wait_s, retention_ms=retention_ms
    )  # fmt: skip
    try:
        return await run.run(range(shards))
    except Retry as error:
        run.report.unknown.append(str(error))
        return run.report
