"""Votes that the state consumer buried and the archive stored: in raw, and in no tally.

Read page by page and once for all topics of a shard: of each only its place and its hash are kept.
"""

import msgspec

from consumers.books import Sum
from core import keys
from core.digest import MASK, vote_hash
from core.errors import Poison
from core.events import decode_vote
from core.position import EntryId, parse_entry_id
from core.redis_client import Redis, call

PAGE = 500
"""Dead letters of one reply; each holds what the entry held."""


class DeadVotes:
    """Dead votes of one shard. Later calls read on where the last one ended."""

    def __init__(self, client: Redis, shard: int) -> None:
        self._client = client
        self._stream = keys.dead(shard)
        self._read_up_to = "-"
        self._found: dict[bytes, list[tuple[EntryId, int]]] = {}

    async def of(self, topic: str, after: EntryId, last: EntryId) -> Sum:
        """Those of a topic after one position of the log up to another. Raises Retry."""
        await self._read_on()
        hashes = [hashed for place, hashed in self._found.get(topic.encode(), ()) if after < place <= last]
        return Sum(len(hashes), sum(hashes) & MASK)

    async def _read_on(self) -> None:
        while page := await call(self._client.xrange(self._stream, min=self._read_up_to, count=PAGE)):
            for _, fields in page:
                self._take(fields)
            self._read_up_to = f"({page[-1][0].decode()}"

    def _take(self, fields: dict[bytes, bytes]) -> None:
        if fields.get(b"group") != keys.STATE_GROUP.encode() or fields.get(b"kind") != b"vote":
            return
        try:
            vote, place = decode_vote(fields[b"d"]), parse_entry_id(fields[b"id"])
        except (KeyError, msgspec.MsgspecError, Poison):
            return
        self._found.setdefault(fields.get(b"topic", b""), []).append((place, vote_hash(vote.event_id, vote.option)))
