"""One subscriber's memory: what it was told, in which order, and when. Pure.

It checks while it reads: positions never go backwards, nothing with a position comes twice, a poll's `applied` never
shrinks. It keeps every match event's id and every (`applied`, time of receipt) of a poll: which votes a tally covered
is found out afterwards, when the archive tells the votes' order in the log (`loadtests.latency`).
"""

from array import array
from collections import Counter

import msgspec
from msgspec import Struct, field

from core.names import STATE_KINDS
from loadtests.wire import Message, Vector

CONTROL_KINDS = frozenset({"welcome", "heartbeat", "bye", "subscribed", "unsubscribed", "error"})


class _Verdict(Struct):
    resume: str


class _Welcome(Struct):
    topics: dict[str, _Verdict] = field(default_factory=dict)


_decode_welcome = msgspec.json.Decoder(_Welcome).decode


class Tallies:
    """What one poll's tallies said: `applied` and the Unix time of receipt, and the newest digest."""

    __slots__ = ("applied", "at", "digest")

    def __init__(self) -> None:
        self.applied = array("Q")
        self.at = array("d")
        self.digest = ""


class Reader:
    """Everything one subscriber saw, over all of its connections."""

    def __init__(self, name: str, topics: tuple[str, ...]) -> None:
        self.name = name
        self.topics = topics
        self.cursor = ""
        self.kinds: Counter[str] = Counter()
        self.verdicts: Counter[str] = Counter()
        self.backwards = 0
        """Messages whose position, or `applied`, lay before one seen already."""
        self.repeats = 0
        """Messages with the position of the one before."""
        self.connections = 0
        self.tallies = {topic.partition(".")[2]: Tallies() for topic in topics if topic.startswith("poll.")}
        self.events: list[str] = []
        """Ids of match events, in the order of arrival."""
        self.events_at = array("d")
        self._vector: Vector = ()

    def take(self, message: Message, at: float) -> None:
        """Take one message, received at Unix time `at`."""
        kind = message.kind
        self.kinds[kind] += 1
        if kind == "welcome":
            self._begin(message)
            return
        if message.vector:
            self._check_order(message)
            self.cursor = message.cursor
        if message.poll_id and message.applied >= 0:
            self._take_tally(message, at)
        elif message.event_id and kind not in STATE_KINDS and kind not in CONTROL_KINDS:
            self.events.append(message.event_id)
            self.events_at.append(at)

    def has_seen(self, applied: dict[str, int], events: int) -> bool:
        """Whether it got as far as `applied` in each of its polls, and `events` match events."""
        return len(self.events) >= events and all(
            bool(tallies.applied) and tallies.applied[-1] >= applied.get(poll_id, 0)
            for poll_id, tallies in self.tallies.items()
        )

    def _begin(self, message: Message) -> None:
        self.connections += 1
        verdicts = [verdict.resume for verdict in _decode_welcome(message.data).topics.values()]
        self.verdicts.update(verdicts)
        if "reset" in verdicts or "snapshot" in verdicts:
            self._vector = ()  # what follows starts from snapshots, wherever these lie

    def _check_order(self, message: Message) -> None:
        before, now = self._vector, message.vector
        if before:
            if now == before:
                # Snapshots share the position at which a reader joins; a heartbeat may have nothing to advance.
                self.repeats += message.kind not in ("snapshot", "heartbeat")
                return
            if any(new < old for old, new in zip(before, now, strict=True)):
                self.backwards += 1
        self._vector = now

    def _take_tally(self, message: Message, at: float) -> None:
        tallies = self.tallies[message.poll_id]
        if tallies.applied and message.applied < tallies.applied[-1]:
            self.backwards += 1
            return
        tallies.applied.append(message.applied)
        tallies.at.append(at)
        tallies.digest = message.digest
