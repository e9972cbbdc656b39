"""Sending bodies until they are acknowledged, and keeping the books of it. For gevent: it sleeps cooperatively."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import gevent
import msgspec
from gevent.event import Event
from msgspec import Struct

from loadtests.ledger import Ledger
from loadtests.plan import Body, MatchPlan, Plan
from loadtests.trace import Recorder

GIVE_UP_AFTER_S = 60.0
_PAUSES_S = (0.05, 2.0)
_JSON, _NDJSON = "application/json", "application/x-ndjson"
_NEWLINE = b"\n"

Post = Callable[[str, bytes, str], tuple[int, bytes]]
"""(path, body, content type) to (status, body of the answer); status 0 when there is no answer."""


class _Answer(Struct):
    accepted: int
    duplicates: int


class Sending:
    """One run's plan and its books, shared by all users of the process."""

    def __init__(self, key: str) -> None:
        """`key` is the bearer key of the write side."""
        self.headers = {"Authorization": f"Bearer {key}"}
        self.ledger = Ledger()
        self.recorder = Recorder()
        self.begun = Event()
        self.refusals: list[str] = []
        self.open = 0
        """Requests sent and not answered, pauses between attempts included."""
        self.open_max = 0
        self.plan: Plan | None = None
        self.match_plan: MatchPlan | None = None
        self._taken = 0  # bodies that somebody waits to send, or sends

    @property
    def is_over(self) -> bool:
        """Nothing is due any more, and everything sent was answered or given up on."""
        return self.begun.is_set() and self.plan is None and self.match_plan is None and self._taken == 0

    def begin(self, plan: Plan, match_plan: MatchPlan) -> None:
        """Let the users go."""
        self.plan, self.match_plan = plan, match_plan
        self.begun.set()

    def next_body(self) -> Body | None:
        """The next body of votes to be waited for and sent by the caller; None when there is none left."""
        body = self.plan.next() if self.plan is not None else None
        if body is None:
            self.plan = None
            return None
        self._taken += 1
        if not body.is_repeat:
            self.recorder.votes(body.due, body.votes)
        return body

    def send_votes(self, post: Post, body: Body) -> None:
        """Wait until a body of `next_body` is due and send it until it is acknowledged."""
        wait_until(body.due)
        content, media = encode(body.votes)
        self._until_answered(post, "/api/v1/votes", content, media, body.due, body.votes, self.ledger.add_votes)

    def send_events(self, post: Post, events: Sequence[tuple[float, dict[str, Any]]]) -> None:
        """Send match events that are due in one body until they are acknowledged."""
        self._taken += 1
        for due, event in events:
            self.recorder.event(due, event["event_id"])
        items = [event for _, event in events]
        content, media = encode(items)
        self._until_answered(post, "/api/v1/events", content, media, events[0][0], items, self.ledger.add_events)

    def _until_answered(
        self, post: Post, path: str, content: bytes, media: str, due: float, items: Any, add: Callable[..., int]
    ) -> None:
        pause_s, first = _PAUSES_S[0], time.time()
        self.open += 1
        self.open_max = max(self.open_max, self.open)
        try:
            while True:
                sent = time.time()
                status, answer = post(path, content, media)
                self.recorder.request(due, sent, time.time(), status, len(items))
                if status == 202:
                    counts = msgspec.json.decode(answer, type=_Answer)
                    add(items, counts.accepted, counts.duplicates)
                    return
                if 400 <= status < 500 and status != 429:
                    self.refusals.append(f"{path}: {status} {answer[:300]!r}")
                    return
                self.ledger.lost_answer()
                if time.time() - first > GIVE_UP_AFTER_S:
                    self.ledger.give_up(len(items))
                    return
                gevent.sleep(pause_s)
                pause_s = min(2 * pause_s, _PAUSES_S[1])
        finally:
            self.open -= 1
            self._taken -= 1


def wait_until(due: float) -> None:
    """Sleep until a Unix time; return at once when it has passed."""
    late_s = time.time() - due
    if late_s < 0:
        gevent.sleep(-late_s)


def encode(items: Sequence[Any]) -> tuple[bytes, str]:
    """A body and its media type: one item bare, an even number as an array, an odd number as NDJSON."""
    if len(items) == 1:
        return msgspec.json.encode(items[0]), _JSON
    if len(items) % 2 == 0:
        return msgspec.json.encode(items), _JSON
    return _NEWLINE.join(map(msgspec.json.encode, items)), _NDJSON
