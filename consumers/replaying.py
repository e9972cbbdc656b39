"""A poll's state computed anew from raw: its latest life (`poll_states`) and its votes, in the order of the log,
through the reducer that counts live votes. Pure but for the reading."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from msgspec import Struct

from consumers.books import Cold
from consumers.reducers.poll import Poll
from core.errors import Retry
from core.events import PollDefinition
from core.position import ZERO, EntryId

VOTES_AT_ONCE = 50_000

_LIFE = """
SELECT stream_ms, stream_seq, status, mapKeys(options) FROM poll_states
WHERE {own} AND poll_id = {id:String} AND {told} AND {up_to}
  AND (stream_ms, stream_seq) >= ({began_ms:UInt64}, {began_seq:UInt64})
ORDER BY stream_ms, stream_seq, stream_k
"""
_VOTES = """
SELECT stream_ms, stream_seq, option_id, voter_hash, vote_hash, toUnixTimestamp64Milli(received_at) FROM votes
WHERE {own} AND poll_id = {id:String} AND {holds} AND {up_to}
  AND (stream_ms, stream_seq) > ({after_ms:UInt64}, {after_seq:UInt64}) AND stream_ms >= {after_ms:UInt64}
ORDER BY stream_ms, stream_seq LIMIT {rows:UInt32}
"""


class Replayed(Struct):
    """A poll as of a position: its state, who voted for what, and the position of its last change."""

    state: Poll
    voters: dict[int, str]
    changed: EntryId


async def replay_poll(cold: Cold, definition: PollDefinition, last: EntryId) -> Replayed:
    """The state of a poll as of a position that is archived. Raises Retry when raw does not know the poll."""
    poll_id = definition.poll_id
    bound = {"ms": last.ms, "seq": last.seq}
    began = (await cold.lives([poll_id], last)).get(poll_id, ZERO)
    life = [
        (EntryId(int(ms), int(seq)), str(status), list(options))
        for ms, seq, status, options in await cold.rows(
            _LIFE, id=poll_id, **bound, began_ms=began.ms, began_seq=began.seq
        )
    ]
    if not life:
        raise Retry(f"poll {poll_id} is not in the archive: nothing to compute it from")
    found = Replayed(Poll(definition, "pending", {}), {}, life[0][0])
    at = 0
    async for position, option, voter, hashed, received_ms in _votes(cold, poll_id, bound, began):
        while at < len(life) and life[at][0] < position:
            _live(found, life[at])
            at += 1
        if not at:
            continue  # before its definition: a dead letter, not counted
        if found.state.count(option, hashed, found.voters.get(voter)):
            found.voters[voter] = option
        found.state.received_ms = received_ms
        found.changed = position
    for event in life[at:]:
        _live(found, event)
    return found


def _live(found: Replayed, event: tuple[EntryId, str, list[str]]) -> None:
    """The poll was defined, opened or closed."""
    position, status, options = event
    counts = {option: found.state.counts.get(option, 0) for option in options}
    counts.update((name, count) for name, count in found.state.counts.items() if count and name not in counts)
    found.state.counts = counts
    found.state.status = status  # type: ignore[assignment]  # the column holds nothing else
    found.state.received_ms = max(found.state.received_ms, position.ms)
    found.changed = max(found.changed, position)


async def _votes(
    cold: Cold, poll_id: str, bound: dict[str, int], after: EntryId
) -> AsyncIterator[tuple[EntryId, str, int, int, int]]:
    while True:
        rows: Sequence[Sequence[Any]] = await cold.rows(
            _VOTES, id=poll_id, **bound, after_ms=after.ms, after_seq=after.seq, rows=VOTES_AT_ONCE
        )
        for ms, seq, option, voter, hashed, received_ms in rows:
            after = EntryId(int(ms), int(seq))
            yield after, str(option), int(voter), int(hashed), int(received_ms)
        if len(rows) < VOTES_AT_ONCE:
            return
