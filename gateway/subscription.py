"""What a reader asked for: topics and event types, checked and put into one canonical form.

Two requests that mean the same give equal subscriptions, so that their readers share a channel and its bytes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from core.names import STATE_KINDS, TOPICS_MAX, is_event_type, parse_topic, shard_of

TYPES_MAX = 64
"""Event types of one filter: far above what a sport has, and a bound on what a URL can make us keep."""


@dataclass(frozen=True, slots=False)
class Subscription:
    """Topics, sorted and unique, and the event types wanted (None = all; state kinds always come)."""

    topics: tuple[str, ...]
    types: frozenset[str] | None = None

    @cached_property
    def routes(self) -> tuple[str, ...]:
        """The topics to read: a map that `match.<id>.*` covers already is left out, or it would come twice."""
        patterns = {topic for topic in self.topics if topic.endswith(".*")}
        return tuple(topic for topic in self.topics if topic in patterns or pattern_of(topic) not in patterns)

    def routes_by_shard(self, shards: int) -> dict[int, tuple[str, ...]]:
        """Shard -> its routes, ascending by shard."""
        found: dict[int, list[str]] = {}
        for route in self.routes:
            found.setdefault(shard_of(route, shards), []).append(route)
        return {shard: tuple(found[shard]) for shard in sorted(found)}

    def without(self, topics: Iterable[str]) -> "Subscription | None":
        """The rest after taking topics away, or None when nothing is left."""
        gone = set(topics)
        left = tuple(topic for topic in self.topics if topic not in gone)
        return Subscription(left, self.types) if left else None


@lru_cache(maxsize=16_384)  # asked for every message of a shard in which somebody follows a whole match
def pattern_of(topic: str) -> str:
    """`match.<id>.*` for a map's topic, "" for a poll's."""
    return f"{topic.rpartition('.')[0]}.*" if topic.startswith("match.") else ""


def subscription(topics: Sequence[str], types: Sequence[str] = ()) -> Subscription:
    """Check a request. Raises ValueError with a text fit for the client."""
    unique = sorted(set(topics))
    if not unique:
        raise ValueError("topics is required: a comma list of topics")
    if len(unique) > TOPICS_MAX:
        raise ValueError(f"{len(unique)} topics, at most {TOPICS_MAX} are allowed")
    for topic in unique:
        parse_topic(topic)
    if len(types) > TYPES_MAX:
        raise ValueError(f"{len(types)} types, at most {TYPES_MAX} are allowed")
    for name in types:
        if not is_event_type(name) and name not in STATE_KINDS:
            raise ValueError("types must be a comma list of event types")
    # State kinds come always, so naming them changes nothing; a filter of state kinds only asks for no events.
    return Subscription(tuple(unique), frozenset(types) - STATE_KINDS if types else None)


def split(values: Iterable[str]) -> list[str]:
    """The parts of comma lists, as query parameters carry them, repeated or not; empty parts are dropped."""
    return [part for value in values for part in value.split(",") if part]
