"""Dead votes are found page by page, of their topic and up to a position."""

import msgspec
import pytest
import redis

from consumers import dead_votes
from consumers.books import Sum
from consumers.dead_votes import DeadVotes
from core import keys
from core.digest import MASK, vote_hash
from core.position import ZERO, EntryId
from core.redis_client import connect
from core.settings import Settings

pytestmark = pytest.mark.redis


async def test_dead_votes_are_counted_once_over_pages_and_later_calls(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_votes, "PAGE", 3)
    client = connect(Settings(redis_url=redis_url))
    with redis.Redis.from_url(redis_url) as sync:

        def bury(number: int, poll_id: str, **changes: str | bytes) -> int:
            body = {"event_id": f"e{number}", "poll_id": poll_id, "option": "a", "voter": "0" * 16, "source": "api"}
            fields = {
                "group": keys.STATE_GROUP, "id": f"{number}-0", "reason": "r", "kind": "vote",
                "topic": f"poll.{poll_id}", "d": msgspec.json.encode(body),
            }  # fmt: skip
            sync.xadd(keys.dead(0), {**fields, **changes})
            return vote_hash(f"e{number}", "a")

        hashes = [bury(number, "p1") for number in range(1, 9)]
        bury(9, "p2")
        bury(10, "p1", group="archive")
        bury(11, "p1", kind="match")
        bury(12, "p1", d=b"{nonsense")
        dead = DeadVotes(client, 0)
        assert await dead.of("poll.p1", ZERO, EntryId(100, 0)) == Sum(8, sum(hashes) & MASK)
        assert await dead.of("poll.p1", EntryId(2, 0), EntryId(5, 0)) == Sum(3, sum(hashes[2:5]) & MASK)
        assert await dead.of("poll.none", ZERO, EntryId(100, 0)) == Sum()
        hashes.append(bury(13, "p1"))
        assert await dead.of("poll.p1", ZERO, EntryId(100, 0)) == Sum(9, sum(hashes) & MASK)
    await client.aclose()
