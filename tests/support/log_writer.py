"""Append entries to the input log the way ingest lays them out, for tests of what comes after ingest.

Only the layout of `core.events` is shared with the real append script: no dedup, no batching.
"""

from typing import Any

import msgspec
import redis

from core import keys
from core.clock import now_us
from core.digest import voter_hash, voter_key
from core.events import EntryKind, header
from core.names import match_topic, poll_topic, shard_of

SECRET = voter_key("a secret for tests only")


class LogWriter:
    """Appends to the log of one Redis; keeps the ordinals as ingest would."""

    def __init__(self, client: redis.Redis, shards: int = 4) -> None:
        self.client = client
        self.shards = shards

    def append(self, kind: EntryKind, topic: str, body: Any, *, received_us: int | None = None) -> str:
        """Append one entry; returns its id."""
        shard = shard_of(topic, self.shards)
        counter = "votes" if kind == "vote" else "events"
        ordinal = self.client.hincrby(keys.counters(shard), counter, 1)
        head = f"{header(kind, topic, received_us or now_us(), 'test')} {ordinal}"
        encoded = body if isinstance(body, bytes) else msgspec.json.encode(body)
        entry_id: Any = self.client.xadd(keys.events(shard), {"h": head, "d": encoded})
        return str(entry_id.decode())

    def poll(self, poll_id: str, *, voting: str = "first", options: str = "ab", **more: Any) -> str:
        """Define a poll whose options are the letters of `options`."""
        body = {
            "poll_id": poll_id,
            "title": f"Poll {poll_id}",
            "options": [{"id": letter, "label": letter.upper()} for letter in options],
            "voting": voting,
            **more,
        }
        return self.append("poll", poll_topic(poll_id), body)

    def vote(self, poll_id: str, event_id: str, option: str, voter: str) -> str:
        """Append one vote; `voter` is hashed as at the door."""
        body = {
            "event_id": event_id,
            "poll_id": poll_id,
            "option": option,
            "voter": voter_hash(SECRET, voter),
            "ts": "2026-11-21T18:00:00Z",
            "source": "api",
        }
        return self.append("vote", poll_topic(poll_id), body)

    def close(self, poll_id: str) -> str:
        """Append the close entry of a poll."""
        return self.append("close", poll_topic(poll_id), {"reason": "request"})

    def event(self, match_id: str, map_id: str, type_: str, data: dict[str, Any], **more: Any) -> str:
        """Append one match event."""
        body = {
            "event_id": f"{match_id}-{map_id}-{type_}-{now_us()}",
            "match_id": match_id,
            "map_id": map_id,
            "type": type_,
            "source": "api",
            "data": data,
            **more,
        }
        return self.append("match", match_topic(match_id, map_id), body)
