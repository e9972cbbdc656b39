"""Polls on the write side: what may change when (CONTRACT "Polls"), and which options a vote may name.

The truth is the hash `def:{s}:poll.<id>`; it changes only together with the log (see the scripts), so a definition
that was read can be compared and set. Definitions are cached only once the poll has a vote: from then on options are
only ever added, so what the cache holds stays right, and what it does not hold is asked for before saying no.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec
from msgspec import Struct, ValidationError

from core import keys
from core.clock import Clock
from core.events import Change, Option, PollDefinition, Voting, decode_poll, encode_json, header
from core.names import is_id, poll_topic, shard_of
from core.problem import ItemError, Problem, unavailable
from core.redis_client import Redis, Scripts, call
from ingest.decode import fault_of, invalid_items, json_value

CACHE_MAX = 10_000
"""Polls with votes at the same time; beyond it the longest unused one is read again."""
READ_BATCH = 500
"""Definitions of one transmission, for a body that names many polls."""
ATTEMPTS_MAX = 10
"""A change lost against other changes of the same poll is decided anew this often."""

Status = Literal["pending", "open", "closed"]


class StoredPoll(Struct, frozen=True):
    """A poll as the hash has it. `rev`, `voted` and `closed` are kept as text, to be compared in the script."""

    definition: PollDefinition
    rev: str
    voted: str
    closed: str


class PollView(Struct, frozen=True):
    """A poll as PUT and close answer it."""

    poll_id: str
    title: str
    options: tuple[Option, ...]
    voting: Voting
    match_id: str | None
    opens_at: datetime | None
    closes_at: datetime | None
    status: Status


def parse(poll_id: str, body: bytes) -> PollDefinition:
    """The definition in a PUT's body. Raises Problem 400 or 422."""
    if not is_id(poll_id):
        raise invalid_items([ItemError(0, "poll_id", "must be 1 to 64 of A-Z a-z 0-9 _ -")])
    fields = json_value(body, dict[str, Any])
    if fields.get("poll_id") is None:
        fields["poll_id"] = poll_id
    elif fields["poll_id"] != poll_id:
        raise invalid_items([ItemError(0, "poll_id", "differs from the one in the path")])
    try:
        definition = msgspec.convert(fields, PollDefinition)
    except ValidationError as error:
        raise invalid_items([ItemError(0, *fault_of(error))]) from error
    if errors := [ItemError(0, *fault) for fault in _faults(definition)]:
        raise invalid_items(errors)
    return definition


def no_such_poll() -> Problem:
    """404 for a poll that does not exist."""
    return Problem(404, "there is no such poll")


def refusal(stored: StoredPoll, wanted: PollDefinition) -> str:
    """Why a stored poll may not become `wanted`, "" when it may."""
    if stored.closed:
        return "the poll is closed"
    if not stored.voted:
        return ""
    current = stored.definition
    for name in ("voting", "match_id", "opens_at"):
        if getattr(current, name) != getattr(wanted, name):
            return f"the poll has votes: {name} can no longer change"
    kept = {option.id for option in current.options}
    if [o.id for o in wanted.options if o.id in kept] != [o.id for o in current.options]:
        return "the poll has votes: options can be added and relabelled, not removed or reordered"
    return ""


def view(definition: PollDefinition, *, is_closed: bool, now_us: int) -> PollView:
    """What a writer is shown. Counting and closing in time are the state's business, so this is the definition only."""
    is_pending = definition.opens_at is not None and _ms(definition.opens_at) * 1000 > now_us
    return PollView(
        **msgspec.structs.asdict(definition),
        status="closed" if is_closed else "pending" if is_pending else "open",
    )


class Polls:
    """Polls of this log."""

    def __init__(self, client: Redis, scripts: Scripts, shards: int, clock: Clock) -> None:
        self._client = client
        self._scripts = scripts
        self._shards = shards
        self._clock = clock
        self._cache: OrderedDict[str, frozenset[str]] = OrderedDict()

    async def put(self, wanted: PollDefinition, correlation: str) -> tuple[bool, PollView]:
        """Create or change a poll: whether it is new, and how it is now. Raises Problem 409, 422, 503 or Retry."""
        topic = poll_topic(wanted.poll_id)
        shard = shard_of(topic, self._shards)
        names = (keys.events(shard), keys.counters(shard), keys.definition(shard, topic))
        for _ in range(ATTEMPTS_MAX):
            stored = (await self._read([wanted.poll_id]))[0]
            now_us = self._clock()
            if stored is not None and stored.definition == wanted:
                return False, view(stored.definition, is_closed=bool(stored.closed), now_us=now_us)
            if stored is not None and (reason := refusal(stored, wanted)):
                raise Problem(409, reason)
            if wanted.closes_at is not None and _ms(wanted.closes_at) * 1000 <= now_us:
                raise invalid_items([ItemError(0, "closes_at", "has passed: close the poll instead")])
            seen = (stored.rev, stored.voted, stored.closed) if stored is not None else ("", "", "")
            moments = [_ms(at) if at is not None else "" for at in (wanted.opens_at, wanted.closes_at)]
            head = header("poll", topic, now_us, correlation)
            if await self._scripts.run("put_poll", names, [*seen, encode_json(wanted), head, *moments]):
                return stored is None, view(wanted, is_closed=False, now_us=now_us)
        raise unavailable("the poll is being changed by others, repeat the request")

    async def close(self, poll_id: str, correlation: str) -> PollView:
        """Close a poll; again is fine. Raises Problem 404 or Retry."""
        if not is_id(poll_id):
            raise no_such_poll()
        topic = poll_topic(poll_id)
        shard = shard_of(topic, self._shards)
        now_us = self._clock()
        raw: bytes | None = await self._scripts.run(
            "close_poll",
            (keys.events(shard), keys.counters(shard), keys.definition(shard, topic)),
            [header("close", topic, now_us, correlation), encode_json(Change("request"))],
        )
        if raw is None:
            raise no_such_poll()
        return view(decode_poll(raw), is_closed=True, now_us=now_us)

    async def options(self, poll_ids: Iterable[str], *, fresh: bool = False) -> dict[str, frozenset[str]]:
        """Option ids of the polls that exist. `fresh`: as they are in Redis now. Raises Retry."""
        found: dict[str, frozenset[str]] = {}
        missing: list[str] = []
        for poll_id in poll_ids:
            cached = None if fresh else self._cache.get(poll_id)
            if cached is None:
                missing.append(poll_id)
            else:
                self._cache.move_to_end(poll_id)
                found[poll_id] = cached
        for poll_id, stored in zip(missing, await self._read(missing), strict=True):
            self._cache.pop(poll_id, None)
            if stored is not None:
                found[poll_id] = frozenset(option.id for option in stored.definition.options)
                if stored.voted:
                    self._remember(poll_id, found[poll_id])
        return found

    def forget(self, poll_id: str) -> None:
        """The log does not know this poll any more."""
        self._cache.pop(poll_id, None)

    def _remember(self, poll_id: str, options: frozenset[str]) -> None:
        self._cache[poll_id] = options
        if len(self._cache) > CACHE_MAX:
            self._cache.popitem(last=False)

    async def _read(self, poll_ids: Sequence[str]) -> list[StoredPoll | None]:
        found: list[StoredPoll | None] = []
        for at in range(0, len(poll_ids), READ_BATCH):
            pipe = self._client.pipeline(transaction=False)
            for poll_id in poll_ids[at : at + READ_BATCH]:
                topic = poll_topic(poll_id)
                pipe.hmget(keys.definition(shard_of(topic, self._shards), topic), "def", "rev", "voted", "closed")
            found += map(_stored, await call(pipe.execute()))
        return found


def _stored(fields: list[bytes | None]) -> StoredPoll | None:
    raw, rev, voted, closed = fields
    if raw is None or rev is None:
        return None
    return StoredPoll(decode_poll(raw), rev.decode(), (voted or b"").decode(), (closed or b"").decode())


def _faults(definition: PollDefinition) -> Iterable[tuple[str, str]]:
    seen: set[str] = set()
    for index, option in enumerate(definition.options):
        if option.id in seen:
            yield f"options[{index}].id", "occurs twice"
        seen.add(option.id)
    opens_at, closes_at = definition.opens_at, definition.closes_at
    for name, at in (("opens_at", opens_at), ("closes_at", closes_at)):
        if at is not None and not _FIRST <= at <= _LAST:
            yield name, "must lie between 1970 and 9998"
    if opens_at is not None and closes_at is not None and closes_at <= opens_at:
        yield "closes_at", "must be after opens_at"


_FIRST, _LAST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9998, 1, 1, tzinfo=UTC)


def _ms(at: datetime) -> int:
    return (at - _FIRST) // timedelta(milliseconds=1)  # exact, unlike the float of timestamp()
