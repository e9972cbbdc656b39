"""What hot state and archive say of a shard's polls and maps, read as of one position of its log.

Nothing is stopped for it. A script reads hot state together with the position it stands at (L); then we wait until the
archive has committed L, and ask ClickHouse for what lies at or before it. What came later is no difference.

Rows that do not belong to this log's history are not counted: of an earlier log in the same database, and of entries
that a rollback took back after they had been archived (`Epochs.holds`); the latter are told apart, as `rolled_back`.

A poll id may be used again when its final state has expired. Votes of a poll are those of its latest life as of the
position asked for: it began with the first definition after the last closing (`poll_lives` says the same of all lives).
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import Struct

from clickhouse.client import ClickHouse
from consumers.batch import State, unpack_state
from consumers.reducers.cs2_map import Cs2Map
from consumers.reducers.poll import Poll
from consumers.reducers.series import Series
from consumers.shard_worker import Progress, parse_progress
from core import keys
from core.digest import MASK, format_digest
from core.errors import Poison, Retry
from core.position import ZERO, EntryId, parse_entry_id
from core.redis_client import Redis, call, lua

TOPICS_AT_ONCE = 200
"""Of one script call: about a millisecond in which Redis serves nobody else."""

QUERY_TIMEOUT_S = 300.0
POLL_EVERY_S = 0.1


class Sum(Struct, frozen=True):
    """Number of votes and the sum of their hashes."""

    votes: int = 0
    digest: int = 0

    def __str__(self) -> str:
        return f"{self.votes} votes, digest {format_digest(self.digest)}"

    def plus(self, other: "Sum") -> "Sum":
        """Both together."""
        return Sum(self.votes + other.votes, (self.digest + other.digest) & MASK)

    def minus(self, other: "Sum") -> "Sum":
        """This without the other."""
        return Sum(self.votes - other.votes, (self.digest - other.digest) & MASK)


class Score(NamedTuple):
    """How a map or a match stands."""

    status: str
    winner: str
    team1: int
    team2: int


class Hot(Struct):
    """Hot state of some topics at one position. `states` lacks topics that have none; `broken`: topic -> why."""

    position: EntryId
    progress: Progress
    appended: dict[str, int]
    newest: tuple[bytes, dict[bytes, bytes]] | None
    states: dict[str, State]
    shown: dict[str, bytes]
    """Topic -> public snapshot (JSON)."""
    broken: dict[str, str]


async def read_hot(client: Redis, shard: int, topics: Sequence[str]) -> Hot:
    """Hot state of at most `TOPICS_AT_ONCE` topics. Raises Retry."""
    names = [keys.progress(shard), keys.counters(shard), keys.events(shard)]
    names += [keys.state(shard, topic) for topic in topics]
    fields, counters, newest, states = await call(client.eval(lua("consumers", "books"), len(names), *names))
    progress = parse_progress(_pairs(fields))
    appended = {name.decode(): int(value) for name, value in _pairs(counters).items()}
    found = Hot(progress.last_id, progress, appended, None, {}, {}, {})
    if newest:
        raw_id, flat = newest[0]
        found.newest = (raw_id, _pairs(flat))
    for topic, (data, packed) in zip(topics, states, strict=True):
        if packed is None:
            continue
        found.shown[topic] = data or b""
        try:
            found.states[topic] = unpack_state(topic, packed)
        except Poison as error:
            found.broken[topic] = str(error)
    return found


def _pairs(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


async def topics_of(client: Redis, shard: int, since_ms: int) -> list[str]:
    """Topics with hot state that changed since. Raises Retry."""
    found = await call(client.zrangebyscore(keys.topics(shard), since_ms or "-inf", "+inf"))
    return [topic.decode() for topic in found]


async def archived_up_to(client: Redis, shard: int, log: str) -> EntryId:
    """Last entry of a log that is surely in ClickHouse. Raises Retry."""
    return parse_entry_id(await call(client.hget(keys.archive(shard, log), "committed")) or b"0-0")


async def wait_archived(client: Redis, shard: int, log: str, position: EntryId, wait_s: float) -> EntryId:
    """Wait until the archive has committed a position of a log; how far it is after `wait_s` at the latest."""
    deadline = time.monotonic() + wait_s
    while True:
        committed = await archived_up_to(client, shard, log)
        if committed >= position or time.monotonic() >= deadline:
            return committed
        await asyncio.sleep(POLL_EVERY_S)


class Cold:
    """ClickHouse's rows of one shard of one log. Every method raises Retry when ClickHouse is away."""

    def __init__(self, clickhouse: ClickHouse, shard: int, created_ms: int, firsts: Mapping[int, EntryId]) -> None:
        """`created_ms`: when the log began; `firsts`: epoch -> its first entry id."""
        self._clickhouse = clickhouse
        self._shard = shard
        self._created_ms = created_ms
        self._holds = _holds(firsts)
        self._told = _told(firsts)

    async def polls_since(self, since_ms: int) -> set[str]:
        """Polls with votes since."""
        rows = await self.rows("SELECT DISTINCT poll_id FROM votes WHERE {own} AND stream_ms >= {since:UInt64}",
                                since=max(since_ms, self._created_ms))  # fmt: skip
        return {str(row[0]) for row in rows}

    async def lives(self, ids: Sequence[str], last: EntryId) -> dict[str, EntryId]:
        """Where the latest lives of polls began, as of a position; those in their first life are left out."""
        rows = await self.rows(
            """SELECT poll_id, began.1, began.2 FROM
               (
                   SELECT poll_id, arraySort(groupArray((stream_ms, stream_seq, stream_k, toString(status)))) AS states,
                          arrayLast((state, before) -> state.4 != 'closed' AND before.4 = 'closed',
                                    states, arrayPopBack(arrayPushFront(states, (0, 0, 0, '')))) AS began
                   FROM poll_states WHERE {own} AND poll_id IN {ids:Array(String)} AND {told} AND {up_to}
                   GROUP BY poll_id
               ) WHERE began.1 > 0""",
            ids=list(ids),
            **_bound(last),
        )
        return {str(poll): EntryId(int(ms), int(seq)) for poll, ms, seq in rows}

    async def polls(self, ids: Sequence[str], last: EntryId) -> dict[str, Sum]:
        """Votes of polls up to a position, of their latest lives."""
        lives = await self.lives(ids, last)
        rows = await self.rows(
            """SELECT poll_id, count(), sum(vote_hash) FROM votes
               WHERE {own} AND poll_id IN {ids:Array(String)} AND {holds} AND {up_to}
                 AND (stream_ms, stream_seq) >=
                     (transform(toString(poll_id), {lives:Array(String)}, {began_ms:Array(UInt64)}, toUInt64(0)),
                      transform(toString(poll_id), {lives:Array(String)}, {began_seq:Array(UInt64)}, toUInt64(0)))
               GROUP BY poll_id""",
            ids=list(ids),
            lives=list(lives),
            began_ms=[began.ms for began in lives.values()],
            began_seq=[began.seq for began in lives.values()],
            **_bound(last),
        )
        return {str(poll): Sum(int(votes), int(digest)) for poll, votes, digest in rows}

    async def defined(self, ids: Sequence[str], last: EntryId) -> set[str]:
        """Those of some polls whose definition was archived."""
        rows = await self.rows(
            """SELECT DISTINCT poll_id FROM poll_states
               WHERE {own} AND poll_id IN {ids:Array(String)} AND {told} AND {up_to}""",
            ids=list(ids),
            **_bound(last),
        )
        return {str(row[0]) for row in rows}

    async def newest_ms(self, poll_id: str) -> int:
        """When the newest vote of a poll came into the log, ms; 0 without votes."""
        rows = await self.rows("SELECT max(stream_ms) FROM votes WHERE {own} AND poll_id = {id:String}", id=poll_id)
        return int(rows[0][0])

    async def between(self, table: str, after: EntryId, last: EntryId, poll_id: str = "") -> Sum:
        """Votes, or match events with the hashes of their ids, after one position up to another."""
        rows = await self.rows(
            _VOTES_BETWEEN if table == "votes" else _EVENTS_BETWEEN,
            id=poll_id,
            **_bound(last),
            after_ms=after.ms,
            after_seq=after.seq,
        )
        return Sum(int(rows[0][0]), int(rows[0][1]))

    async def positions(self, poll_id: str, vote_hash: int, last: EntryId) -> list[EntryId]:
        """Where votes with a hash are in the latest life of a poll, at most ten."""
        began = (await self.lives([poll_id], last)).get(poll_id, ZERO)
        rows = await self.rows(
            """SELECT stream_ms, stream_seq FROM votes WHERE {own} AND poll_id = {id:String}
               AND vote_hash = {hash:UInt64} AND {holds} AND {up_to}
               AND (stream_ms, stream_seq) > ({after_ms:UInt64}, {after_seq:UInt64}) ORDER BY 1, 2 LIMIT 10""",
            id=poll_id,
            hash=vote_hash,
            after_ms=began.ms,
            after_seq=began.seq,
            **_bound(last),
        )
        return [EntryId(int(ms), int(seq)) for ms, seq in rows]

    async def rolled_back(self) -> int:
        """Votes archived and then taken back by a rollback of the log."""
        rows = await self.rows("SELECT count() FROM votes WHERE {own} AND NOT {holds}")
        return int(rows[0][0])

    async def maps(self, topics: Sequence[tuple[str, str]], last: EntryId) -> dict[tuple[str, str], Score]:
        """(match, map) -> its score as of a position."""
        rows = await self.rows(
            """SELECT match_id, map_id,
                      argMax((status, winner, score_team1, score_team2), (stream_ms, stream_seq, stream_k))
               FROM map_states WHERE {own} AND match_id IN {ids:Array(String)} AND {told} AND {up_to}
               GROUP BY match_id, map_id""",
            ids=sorted({match_id for match_id, _ in topics}),
            **_bound(last),
        )
        return {(str(match), str(name)): _score(values) for match, name, values in rows}

    async def series(self, ids: Sequence[str], last: EntryId) -> dict[str, Score]:
        """Match -> its score as of a position."""
        rows = await self.rows(
            """SELECT match_id, argMax((status, winner, maps_team1, maps_team2), (stream_ms, stream_seq, stream_k))
               FROM match_states WHERE {own} AND match_id IN {ids:Array(String)} AND {told} AND {up_to}
               GROUP BY match_id""",
            ids=list(ids),
            **_bound(last),
        )
        return {str(match): _score(values) for match, values in rows}

    async def rows(self, sql: str, **parameters: Any) -> Sequence[Sequence[Any]]:
        """Rows of a query. `{own}` (shard and log), `{holds}` (epochs; `{told}` for derived facts) and `{up_to}` (`ms`,
        `seq`) become conditions."""
        conditions = {"{own}": _OWN, "{holds}": self._holds, "{told}": self._told, "{up_to}": _UP_TO}
        for name, condition in conditions.items():
            sql = sql.replace(name, condition)
        return await self._clickhouse.query(
            sql,
            {"shard": self._shard, "created": self._created_ms, **parameters},
            timeout_s=QUERY_TIMEOUT_S,
        )


_UP_TO = "stream_ms <= {ms:UInt64} AND (stream_ms, stream_seq) <= ({ms:UInt64}, {seq:UInt64})"
_OWN = "shard = {shard:UInt8} AND stream_ms >= {created:UInt64}"
_BETWEEN = """{own} AND {holds} AND {up_to} AND stream_ms >= {after_ms:UInt64}
AND (stream_ms, stream_seq) > ({after_ms:UInt64}, {after_seq:UInt64})"""
_VOTES_BETWEEN = f"""SELECT count(), sum(vote_hash) FROM votes
WHERE {_BETWEEN} AND ({{id:String}} = '' OR poll_id = {{id:String}})"""  # noqa: S608 - our own text
_EVENTS_BETWEEN = f"SELECT count(), sum(xxHash64(event_id)) FROM match_events WHERE {_BETWEEN}"  # noqa: S608


def _bound(last: EntryId) -> dict[str, int]:
    return {"ms": last.ms, "seq": last.seq}


async def open_cold(client: Redis, clickhouse: ClickHouse, shard: int) -> Cold:
    """The archive's side of a shard, with the log's identity as Redis has it now. Raises Retry."""
    created = await call(client.hget(keys.LOG, "created_ms"))
    if created is None:
        raise Retry("Redis holds no log")
    fields = await call(client.hgetall(keys.epochs(shard)))
    firsts = {int(name): parse_entry_id(value) for name, value in fields.items() if name.isdigit()}
    return Cold(clickhouse, shard, int(created), firsts)


def _holds(firsts: Mapping[int, EntryId]) -> str:
    """SQL: whether a row's epoch is the one its id belongs to (see `core.epochs`). An id below all of them may be of
    any epoch: their record began later."""
    ordered = sorted((first, epoch) for epoch, first in firsts.items())
    if not ordered:
        return "1"
    parts = [f"(stream_ms, stream_seq) < ({ordered[0][0].ms}, {ordered[0][0].seq})"]
    for (first, epoch), (until, _) in zip(ordered, [*ordered[1:], (None, 0)], strict=True):
        below = f" AND (stream_ms, stream_seq) < ({until.ms}, {until.seq})" if until else ""
        parts.append(f"(stream_epoch = {epoch} AND (stream_ms, stream_seq) >= ({first.ms}, {first.seq}){below})")
    return f"({' OR '.join(parts)})"


def _told(firsts: Mapping[int, EntryId]) -> str:
    """SQL: whether a derived fact's input is still in the log. A fact carries the epoch in which it was derived, and
    its input may be older; what an epoch derived from places at which a later one had begun was lost."""
    ordered = sorted((first, epoch) for epoch, first in firsts.items())
    lost = [
        f"(stream_epoch IN ({', '.join(str(epoch) for _, epoch in ordered[:at])}) "
        f"AND (stream_ms, stream_seq) >= ({first.ms}, {first.seq}))"
        for at, (first, _) in enumerate(ordered)
        if at
    ]
    return f"NOT ({' OR '.join(lost)})" if lost else "1"


def polls_of(states: Mapping[str, State]) -> dict[str, Poll]:
    """Poll id -> state."""
    return {state.definition.poll_id: state for state in states.values() if isinstance(state, Poll)}


def maps_of(states: Mapping[str, State]) -> dict[tuple[str, str], Cs2Map]:
    """(match id, map id) -> state."""
    return {(state.match_id, state.map_id): state for state in states.values() if isinstance(state, Cs2Map)}


def series_of(states: Mapping[str, State]) -> dict[str, Series]:
    """Match id -> state."""
    return {state.match_id: state for state in states.values() if isinstance(state, Series)}


def map_score(state: Cs2Map) -> Score:
    """As hot state has it."""
    return Score(state.status, state.winner or "", state.score1, state.score2)


def series_score(state: Series) -> Score:
    """As hot state has it."""
    return Score(state.status, state.winner or "", state.score1, state.score2)


def _score(values: Sequence[Any]) -> Score:
    status, winner, team1, team2 = values
    return Score(str(status), str(winner), int(team1), int(team2))
