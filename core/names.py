"""Ids, topics and shards: what may be called what, and where it lives.

The patterns are CONTRACT names (README "Contract"): ids `[A-Za-z0-9_-]{1,64}`, match event types
`[a-z][a-z0-9_]{0,63}` without the words that are message kinds or that an EventSource gives a meaning of its own.
`\\Z` and not `$` everywhere: `$` also matches before a final newline, and a newline inside an event type would forge
a line of the event stream.
"""

import re
from typing import NamedTuple

from xxhash import xxh64_intdigest

ID_PATTERN = r"^[A-Za-z0-9_-]{1,64}\Z"
TYPE_PATTERN = r"^[a-z][a-z0-9_]{0,63}\Z"
SERIES = "series"
"""`map_id` of what belongs to a match but to no map (series start and end, vetoes)."""

TOPICS_MAX = 64
"""Topics of one subscription: bounds the length of a cursor and the cost of a catch-up."""

STATE_KINDS = frozenset({"snapshot", "poll", "tally", "state", "prediction"})
"""Absolute values: a newer one replaces an older one, so a slow reader may skip some (conflation)."""

RESERVED_TYPES = STATE_KINDS | {"welcome", "heartbeat", "bye", "open", "error", "message", "subscribed", "unsubscribed"}
"""Never the type of a match event: they are message kinds, or mean something to EventSource and WebSocket clients."""

_ID = re.compile(ID_PATTERN)
_TYPE = re.compile(TYPE_PATTERN)


class Topic(NamedTuple):
    """A parsed topic: `poll.<poll_id>`, `match.<match_id>.<map_id>` or `match.<match_id>.*`."""

    kind: str  # "poll" or "match"
    id: str  # poll_id or match_id
    map_id: str  # "" for polls, "*" for a whole match

    @property
    def is_pattern(self) -> bool:
        """Whether this stands for all maps of a match, also those that appear later."""
        return self.map_id == "*"

    def __str__(self) -> str:
        return f"poll.{self.id}" if self.kind == "poll" else f"match.{self.id}.{self.map_id}"


def is_id(text: str) -> bool:
    """Whether `text` is a valid poll_id, match_id, map_id or option id."""
    return _ID.match(text) is not None


def is_event_type(text: str) -> bool:
    """Whether `text` may be the type of a match event."""
    return _TYPE.match(text) is not None and text not in RESERVED_TYPES


def poll_topic(poll_id: str) -> str:
    """Topic of one poll."""
    return f"poll.{poll_id}"


def match_topic(match_id: str, map_id: str) -> str:
    """Topic of one map of one match; `map_id` may be `series`."""
    return f"match.{match_id}.{map_id}"


def parse_topic(text: str) -> Topic:
    """Take a topic apart. Raises ValueError, with a text fit for the client, when it is malformed."""
    kind, _, rest = text.partition(".")
    if kind == "poll" and is_id(rest):
        return Topic("poll", rest, "")
    if kind == "match":
        match_id, _, map_id = rest.partition(".")
        if is_id(match_id) and (map_id == "*" or is_id(map_id)):
            return Topic("match", match_id, map_id)
    raise ValueError("topic must be poll.<poll_id>, match.<match_id>.<map_id> or match.<match_id>.*")


def shard_of(topic: str, shards: int) -> int:
    """Shard of a topic: a stable hash of `poll.<id>` or `match.<id>`.

    All maps of a match share a shard, so that `match.<id>.*` is one totally ordered stream and a map that appears
    later needs no new subscription; the load of a match (a few events a second) is far below what a shard takes.
    """
    topic_kind, _, rest = topic.partition(".")
    return xxh64_intdigest(f"{topic_kind}.{rest.partition('.')[0]}".encode()) % shards
