"""Stored events of a match in pages, as a replay, and who wrote and read them."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from hmac import compare_digest
from secrets import token_hex
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from clickhouse import corrections
from clickhouse.audit import AUDIT_BEGINNING, audit_page, parse_audit_place
from clickhouse.audit import LIMIT_MAX as AUDIT_LIMIT_MAX
from clickhouse.history import LIMIT_MAX, History
from clickhouse.instants import MS_MAX, MS_MIN, to_ms
from clickhouse.queries import BEGINNING, Asked, Place, StoredEvent, parse_place
from clickhouse.replay import SPEED_MAX, SPEED_MIN, as_lines, lines, paced, pages
from core.audit import ANONYMOUS, key_id
from core.errors import Fatal
from core.http import json_response
from core.names import is_id
from core.problem import Problem, unavailable
from core.redis_client import Redis
from core.settings import Settings
from gateway.auditor import Auditor
from gateway.replaying import ReplayResponse, Sent, Slots, as_event_stream

LIMIT_DEFAULT = 100

PAGES_AT_ONCE = 6
"""Pages being read at the same time by one process: fewer than its connections to ClickHouse, each up to 16 MB."""

WAITING_MAX = 200
"""Requests that may wait for their turn; past it they are asked to come back."""

FAREWELL = b'event: bye\ndata: {"retry_ms":1000}\n\n'
"""Ends a whole replay as an event stream. An EventSource comes back then, with its last id, and is answered 204."""


class EventsQuery(Struct, rename={"since": "from", "until": "to"}):
    """Query of `/events/{match_id}`."""

    map_id: str | None = None
    since: Annotated[datetime, Meta(tz=True)] | None = None
    until: Annotated[datetime, Meta(tz=True)] | None = None
    limit: Annotated[int, Meta(ge=1, le=LIMIT_MAX)] = LIMIT_DEFAULT
    after: str | None = None


class ReplayQuery(Struct):
    """Query of `/replay/{match_id}`."""

    map_id: str | None = None
    speed: Annotated[float, Meta(ge=SPEED_MIN, le=SPEED_MAX)] | None = None
    as_of: Annotated[datetime, Meta(tz=True)] | None = None
    after: str | None = None


class AuditQuery(Struct):
    """Query of `/audit/{match_id}`."""

    limit: Annotated[int, Meta(ge=1, le=AUDIT_LIMIT_MAX)] = LIMIT_DEFAULT
    after: str | None = None


class Turns:
    """Bounds what is read at once, and what waits for it."""

    def __init__(self, at_once: int, waiting_max: int) -> None:
        self._turns = asyncio.Semaphore(at_once)
        self._waiting_max = waiting_max
        self._waiting = 0

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Wait for a turn. Raises Problem 503 when too many wait already."""
        if self._waiting >= self._waiting_max:
            raise unavailable("too many requests for stored events at once")
        self._waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._turns.release()


def routes(history: History, client: Redis, auditor: Auditor, settings: Settings) -> list[Route]:
    """The endpoints."""
    slots, turns = Slots(settings.replays_max), Turns(PAGES_AT_ONCE, WAITING_MAX)
    actor_of = _actors(settings)

    def note(request: Request, match_id: str, action: str, events: int, after: str | None, last: str) -> None:
        if not events:
            return  # nothing was learned, and names of matches that do not exist cost nothing to invent
        auditor.note(
            f"match.{match_id}",
            action,
            actor_of(request) or ANONYMOUS,
            events,
            after or "",
            last,
            _correlation(request),
        )

    async def events(request: Request) -> Response:
        match_id, query = _match_id(request), _query(request, EventsQuery)
        asked = Asked(match_id, query.map_id, _ms(query.since, MS_MIN), _ms(query.until, MS_MAX))
        after = _place(query.after)
        async with turns.one():
            page = await history.page(asked, after, limit=query.limit)
        last = str(page.events[-1].place) if page.events else ""
        note(request, match_id, "read_events", len(page.events), query.after, last)
        body = b'{"events":[%b],"next":%b}' % (
            b",".join(event.payload for event in page.events),
            b"null" if page.next is None else b'"%b"' % str(page.next).encode(),
        )
        return Response(body, media_type="application/json")

    async def replay(request: Request) -> Response:
        match_id, query = _match_id(request), _query(request, ReplayQuery)
        is_stream = "text/event-stream" in request.headers.get("accept", "")
        given = request.headers.get("last-event-id") if is_stream else None
        after = _place(given or query.after)
        if request.method == "HEAD":
            return Response(media_type="text/event-stream" if is_stream else "application/x-ndjson")
        parts = _replay(history, Asked(match_id, query.map_id), query, after, slots, is_stream=is_stream)
        try:
            first = await anext(parts, None)  # so that what cannot start is a 503 and not half an answer
        except Fatal as error:
            raise Problem(422, str(error)) from error
        if given and first is None:
            return Response(status_code=204)  # an EventSource that has it all, and would come back for ever

        def on_end(count: int, last: str) -> None:
            note(request, match_id, "replay", count, given or query.after, last)

        return ReplayResponse(
            _chained(first, parts),
            "text/event-stream" if is_stream else "application/x-ndjson",
            stall_s=settings.lag_max_s,
            heartbeat=b":\n\n" if is_stream else b"",
            farewell=FAREWELL if is_stream else b"",
            on_end=on_end,
        )

    async def audit(request: Request) -> Response:
        match_id, query = _match_id(request), _query(request, AuditQuery)
        if not _key(settings):
            raise Problem(404, "no key is configured here")
        if actor_of(request) is None:
            raise Problem(401, "no or wrong key", headers={"WWW-Authenticate": "Bearer"})
        try:
            after = parse_audit_place(query.after) if query.after else AUDIT_BEGINNING
        except ValueError as error:
            raise Problem(400, str(error)) from None
        async with turns.one():
            page = await audit_page(
                history.clickhouse, client, history.shard_of(match_id), match_id, after, query.limit
            )
        note(request, match_id, "read_audit", len(page.entries), query.after, page.next or "")
        return json_response(page, headers={"Cache-Control": "no-store"})

    return [
        Route("/api/v1/events/{match_id}", events),
        Route("/api/v1/replay/{match_id}", replay),
        Route("/api/v1/audit/{match_id}", audit),
    ]


async def _replay(
    history: History, asked: Asked, query: ReplayQuery, after: Place, slots: Slots, *, is_stream: bool
) -> AsyncGenerator[Sent]:
    """The parts of a replay. Holds a slot as long as it lives."""
    with slots.one():
        if query.speed is None and query.as_of is None and not is_stream:
            async for part in lines(history, asked, after):
                yield Sent(part.body, part.count, str(part.last))
            return
        if query.as_of is None:
            batches: AsyncIterator[list[StoredEvent]] = pages(history, asked, after)
        else:
            asked, known = await corrections.known_at(history, asked, to_ms(query.as_of))
            batches = known.applied(pages(history, asked, known.since(after)), after)
        if query.speed is not None:
            batches = paced(batches, query.speed)
        async for batch in batches:
            body = as_event_stream(batch) if is_stream else as_lines(batch).body
            yield Sent(body, len(batch), str(batch[-1].place))


async def _chained(first: Sent | None, rest: AsyncGenerator[Sent]) -> AsyncGenerator[Sent]:
    try:
        if first is not None:
            yield first
        async for part in rest:
            yield part
    finally:
        await rest.aclose()


def _key(settings: Settings) -> str:
    """The ingest key, "" where this process is not told."""
    try:
        return settings.secret("ingest_key")
    except Fatal:
        return ""


def _actors(settings: Settings) -> Callable[[Request], str | None]:
    """Who asks, as far as a bearer key says so."""
    key = _key(settings)

    def actor(request: Request) -> str | None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        is_known = scheme.lower() == "bearer" and compare_digest(given.strip().encode("latin-1"), key.encode())
        return key_id(key) if key and is_known else None

    return actor


def _correlation(request: Request) -> str:
    given = request.headers.get("x-request-id", "")
    return given if is_id(given) else token_hex(8)


def _match_id(request: Request) -> str:
    match_id: str = request.path_params["match_id"]
    if not is_id(match_id):
        raise Problem(404, "match_id is not an id")
    return match_id


def _place(text: str | None) -> Place:
    if text is None:
        return BEGINNING
    try:
        return parse_place(text)
    except ValueError as error:
        raise Problem(400, str(error)) from None


def _ms(moment: datetime | None, default: int) -> int:
    return default if moment is None else to_ms(moment)


_Query = TypeVar("_Query", EventsQuery, ReplayQuery, AuditQuery)


def _query(request: Request, kind: type[_Query]) -> _Query:
    values = {name: value for name, value in request.query_params.items() if value}
    try:
        query = msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise Problem(400, str(error)) from None
    map_id = getattr(query, "map_id", None)
    if map_id is not None and not is_id(map_id):
        raise Problem(400, "map_id is not an id")
    return query
