"""Where hot state and raw begin to differ, when the log that is left cannot say: it is older, or hot state's fault."""

from typing import Literal

import msgspec

from consumers.books import Cold, Sum
from consumers.log_window import Window, bisect
from core import keys
from core.names import poll_topic
from core.position import EntryId, parse_entry_id
from core.redis_client import Redis, call
from core.updates import decode_update

_ENTRIES_AT_ONCE = 500


async def where_hot_and_raw_part(
    client: Redis, cold: Cold, shard: int, poll_id: str, hot: Sum, raw: Sum, window: Window
) -> tuple[Literal["hot state", "raw"], str]:
    """(who is wrong, where it begins) for a poll on which the log that is left and raw agree.

    A vote that only raw has is known by the difference of the digests, its hash. Otherwise the tallies that the
    output log still has, each of them a sum as of a position, are compared with raw: the first that differs is told.
    """
    surplus = raw.minus(hot)
    if surplus.votes == 1:
        found = await cold.positions(poll_id, surplus.digest, window.last)
        if len(found) == 1:
            return "hot state", f"{found[0]}"
        if len(found) > 1:
            return "raw", f"{found[0]} (there {len(found)} times)"
    tallies = await _tallies(client, shard, poll_id, window.last)

    async def differs(index: int) -> bool:
        position, tally = tallies[index]
        return (await cold.polls([poll_id], position)).get(poll_id, Sum()) != tally

    place: Literal["hot state", "raw"] = "raw" if surplus.votes < 0 else "hot state"  # what lacks something lost it
    if not tallies or await differs(0):
        return place, f"before {tallies[0][0] if tallies else window.last}"
    if not await differs(len(tallies) - 1):
        return "hot state", f"{tallies[-1][0]}"  # everything readers were told was right: changed since
    return place, f"{tallies[await bisect(len(tallies), differs)][0]}"


async def _tallies(client: Redis, shard: int, poll_id: str, last: EntryId) -> list[tuple[EntryId, Sum]]:
    """What readers were told of a poll, as far back as the output log goes."""
    topic, found = poll_topic(poll_id), []
    start = "-"
    while True:
        page = await call(client.xrange(keys.updates(shard), min=start, max=str(last), count=_ENTRIES_AT_ONCE))
        for _, fields in page:
            for message in decode_update(fields).messages:
                if message.topic == topic and message.kind == "tally":
                    data = msgspec.json.decode(message.data)
                    found.append((EntryId(message.ms, message.seq), Sum(data["applied"], int(data["digest"], 16))))
        if len(page) < _ENTRIES_AT_ONCE:
            return found
        start = f"({parse_entry_id(page[-1][0])}"
