"""Joining a reader to the live stream without gap or repeat, and telling it honestly how that went.

Without a cursor: one atomic read per shard gives the hot state and the position it belongs to; live messages continue
strictly after that. With a cursor, four tiers, by the same position:

    ring        the process's own memory of the last messages: no I/O at all
    updates:    the output log in Redis, in shared chunks (`gateway.backlog`)
    hot state   when the log no longer reaches back: what a topic is now, and when it last changed
    archive     ClickHouse, which has every event but no states (`gateway.past`); what it gives is sent while the reader
                takes it, and the newest states follow at the end (`gateway.feeder`)

Verdicts, per topic, never better than the truth:

    complete    every message since the cursor follows
    conflated   every event follows; state messages that a later one replaced may be left out
    reset       the position is unusable or events are lost: a snapshot follows, and the gap is named where it is known
    snapshot    no cursor was given

Behind a trimmed log a topic is still `complete` when its hot state says that nothing concerned it since the cursor,
and a poll is `conflated`, because it has only state messages. Match events come from the archive then. It is believed
only where it provably has everything: its committed position lies at or beyond the first entry that Redis still has,
and the cursor is younger than what the table's TTL may have deleted. It is asked for the first chunk before a verdict
is given: an archive that does not answer is a `reset`.
"""

import asyncio
from datetime import UTC, datetime
from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from core.cursor import decode
from core.errors import Retry
from core.position import Position
from gateway import hot_state
from gateway.backlog import Backlog, passed
from gateway.channel import NOTHING, Channel, Vector
from gateway.frames import Item
from gateway.hot_state import HotState
from gateway.hub import Hub
from gateway.pace import Pace
from gateway.past import Away, Past
from gateway.shared_reads import SharedReads
from gateway.source import Source
from gateway.tail import Tails

COMPLETE_BYTES = 256 * 1024
"""What a reader missed is sent whole up to this much; beyond it, states are conflated and the rest is paced."""

FRESH_S = 0.1
"""Hot state that is read for one reader serves others so long."""

VIEWS_BYTES_MAX = 16 * 1024 * 1024
VIEWS_WAITING_MAX = 2000
"""Different sets of topics whose hot state is being asked for; past it readers are asked to come back."""

READY_TIMEOUT_S = 2.0
JOIN_TIMEOUT_S = 10.0
AGREE_S = 0.05
JOINS_MAX = 20_000
"""Readers that may be waiting for Redis at the same time; past it they are asked to come back a little later."""

Resume = Literal["complete", "conflated", "reset", "snapshot"]


class _View:
    """Hot state, kept for a moment."""

    def __init__(self, state: HotState) -> None:
        self.state = state
        self.size = 500 + sum(len(topic.data) + 200 for found in state.states.values() for topic in found)


class _Stale(Retry):
    """What was read and what this process has published are of different lifetimes of the log."""


class Verdict(Struct, frozen=True, omit_defaults=True):
    """On one topic. `lost_from`, `lost_to`: the time span (RFC 3339) whose events may be missing, where known."""

    resume: Resume
    lost_from: str | UnsetType = UNSET
    lost_to: str | UnsetType = UNSET


class Plan(Struct):
    """How a reader starts; made by `Resumer.plan`, carried out by whoever owns the sink."""

    verdicts: dict[str, Verdict]
    vector: Vector
    """Where the cursor or the snapshots leave each shard."""
    snapshots: list[Item]
    past: list[Item]
    """Messages after the cursor that the ring does not have, complete up to `reached`."""
    reached: Vector
    is_cold: bool
    """There is too much of the past to send it at once: it is read and sent while the reader takes it."""


class Resumer:
    """Makes plans. Holds no reader."""

    def __init__(self, source: Source, hub: Hub, tails: Tails, backlog: Backlog, past: Past, pace: Pace) -> None:
        self._past = past
        self._pace = pace
        self._source = source
        self._hub = hub
        self._tails = tails
        self._backlog = backlog
        self._states: SharedReads[_View] = SharedReads(
            bytes_max=VIEWS_BYTES_MAX, at_once=8, waiting_max=VIEWS_WAITING_MAX
        )
        self._joining = 0

    async def stop(self) -> None:
        """Give up what is under way."""
        await self._states.stop()

    async def ready(self, shards: list[int]) -> None:
        """Have these shards read, as `Hub.open` requires. Raises Retry."""
        await self._tails.ready(shards, READY_TIMEOUT_S)

    async def plan(self, channel: Channel, cursor: str | None) -> Plan:
        """How to start a reader of an open channel. Raises Retry when Redis is away or too many ask at once."""
        if self._joining >= JOINS_MAX:
            raise Retry("too many readers are joining at once")
        self._joining += 1
        try:
            async with asyncio.timeout(JOIN_TIMEOUT_S):
                while True:
                    try:
                        plan = await self._plan(channel, cursor)
                        await self._pace.turn()
                    except _Stale:
                        await asyncio.sleep(AGREE_S)
                        continue
                    if all(self._tails[shard].epochs.holds(position) for shard, position in plan.reached.items()):
                        return plan  # else a rollback was found while the plan was made
        except TimeoutError:
            raise Retry("joining takes too long") from None
        finally:
            self._joining -= 1

    async def _plan(self, channel: Channel, cursor: str | None) -> Plan:
        vector = decode(cursor, channel.print, channel.routes) if cursor is not None else None
        plan = Plan({}, vector or {}, [], [], {}, False)
        for shard in channel.routes:
            if vector is None:
                await self._snapshot(channel, shard, plan, Verdict("snapshot" if cursor is None else "reset"))
            else:
                await self._continue(channel, shard, plan)
        for shard, position in plan.vector.items():
            plan.reached.setdefault(shard, position)
        # Asked for under a pattern as well: what holds for all maps holds for each.
        for topic in channel.subscription.topics:
            if topic not in plan.verdicts:
                plan.verdicts[topic] = plan.verdicts[f"{topic.rpartition('.')[0]}.*"]
        return plan

    # -- without a usable position

    async def _snapshot(self, channel: Channel, shard: int, plan: Plan, verdict: Verdict) -> None:
        state = await self.state(shard, channel.routes[shard])
        self._add_snapshots(channel, state, plan, dict.fromkeys(channel.routes[shard], verdict))

    def _add_snapshots(self, channel: Channel, state: HotState, plan: Plan, verdicts: dict[str, Verdict]) -> None:
        """Start a shard at a read of hot state, with snapshots of all topics but those that are `complete`."""
        plan.verdicts.update(verdicts)
        routes = [route for route, verdict in verdicts.items() if verdict.resume != "complete"]
        plan.snapshots.extend(hot_state.snapshots(state, routes, NOTHING))
        plan.vector[state.shard] = state.position

    # -- with a position

    async def _continue(self, channel: Channel, shard: int, plan: Plan) -> None:
        routes, position = channel.routes[shard], plan.vector[shard]
        if self._is_live(channel, shard, position):
            plan.verdicts.update(dict.fromkeys(routes, Verdict("complete")))
            return
        state = await self.state(shard, routes, beyond=position)
        if not state.epochs.holds(position) or position.entry > state.last_id:  # rolled back, invented, or NOTHING
            self._add_snapshots(channel, state, plan, dict.fromkeys(routes, Verdict("reset")))
        elif self._hub.covers(channel, shard, position) or (
            not position.is_owing and await self._read_past(channel, state, plan)
        ):
            plan.verdicts.update(dict.fromkeys(routes, Verdict("complete")))
        else:
            await self._judge_lost(channel, shard, plan)

    def _is_live(self, channel: Channel, shard: int, position: Position) -> bool:
        return (
            self._tails[shard].epochs.holds(position)
            and position <= self._hub.edge[shard]
            and self._hub.covers(channel, shard, position)
        )

    async def _read_past(self, channel: Channel, state: HotState, plan: Plan) -> bool:
        """Read from the log what the ring lacks; False when the log does not reach back far enough."""
        shard, routes = state.shard, channel.routes[state.shard]
        position = plan.vector[shard]
        found: list[Item] = []
        while not self._hub.covers(channel, shard, position):
            chunk = await self._backlog.chunk(shard, position, state.epochs, self._hub.edge[shard])
            if not chunk.is_whole_for(position):
                return False
            if chunk.until <= position:
                raise Retry(f"shard {shard} ends before what was published of it")  # mends itself: see Tail._sync
            found.extend(item for item in chunk.after(routes, position) if channel.wants(item))
            position = chunk.until
            if sum(len(item.data) for item in found) > COMPLETE_BYTES:
                plan.is_cold = True
                return True
        plan.past.extend(found)
        plan.reached[shard] = position
        return True

    async def _judge_lost(self, channel: Channel, shard: int, plan: Plan) -> None:
        """The log was trimmed past the position: what can hot state still prove, topic by topic, and the archive?

        Also for a reader to whom states are owed: what it has is complete in events only.
        """
        routes, position = channel.routes[shard], plan.vector[shard]
        state = await self.state(shard, routes, beyond=position)
        lost = Verdict("reset", _rfc3339(position.ms), _rfc3339(state.position.ms))
        verdicts: dict[str, Verdict] = {}
        for route in routes:
            topics = state.states[route]
            if topics and all(passed(position.settled, topic.entry) for topic in topics):
                verdicts[route] = Verdict("conflated" if position.is_owing else "complete")
            elif route.startswith("poll.") or (topics and all(topic.entry <= position.entry for topic in topics)):
                # A poll has only states; and of one input the event itself comes first, only states after it.
                verdicts[route] = Verdict("conflated")
            else:
                verdicts[route] = lost
        if lost in verdicts.values() and await self._is_kept(channel, state, position):
            plan.verdicts.update(dict.fromkeys(routes, Verdict("conflated")))
            plan.vector[shard] = position.owing
            plan.is_cold = True
        else:
            self._add_snapshots(channel, state, plan, verdicts)

    async def _is_kept(self, channel: Channel, state: HotState, position: Position) -> bool:
        """Whether every event after the position can be had, from the archive and then from the output log."""
        shard, epochs = state.shard, state.epochs
        chunk = await self._backlog.chunk(shard, position.settled, epochs, self._hub.edge[shard])
        if chunk.is_whole_for(position.settled):
            return True
        try:
            if not await self._past.vouches(shard, position, chunk.follows(position.settled)):
                return False
            await self._past.chunk(shard, channel.routes[shard], position, epochs)
        except Away:
            return False
        return True

    # -- shared reads

    async def state(self, shard: int, routes: tuple[str, ...], beyond: Position | None = None) -> HotState:
        """Hot state, read once for all who want the same at the same time.

        For a reader with a cursor (`beyond`) also what was read a moment ago will do, when it is not older than that
        and the live messages since then are in the ring. For others it will not: they may have seen newer messages.
        """
        fresh_s = 0.0 if beyond is None else FRESH_S
        key = (shard, routes, beyond is None)
        state = (await self._states.get(key, lambda: self._view(shard, routes), lambda _: fresh_s)).state
        ring = self._hub.rings[shard]
        if (
            state.epochs.current != self._tails[shard].epochs.current
            or (beyond is not None and (beyond.entry > state.last_id or not state.epochs.holds(beyond)))
            or not all(ring.covers(route, state.position) for route in routes)
        ):
            state = await self._read(shard, routes)
        return state

    async def _view(self, shard: int, routes: tuple[str, ...]) -> _View:
        return _View(await self._read(shard, routes))

    async def _read(self, shard: int, routes: tuple[str, ...]) -> HotState:
        """Raises _Stale when this process has yet to find out about a rollback: its ring still has what was lost."""
        before = self._hub.edge[shard]
        state = await self._source.state(shard, routes)
        tail = self._tails[shard]
        if state.epochs.current != tail.epochs.current or state.position < before:
            raise _Stale(f"shard {shard} was rolled back or restarted a moment ago")
        tail.note(state)
        return state


def _rfc3339(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
