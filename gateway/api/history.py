"""What is in ClickHouse: stored events in pages, and whole replays."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from clickhouse.history import LIMIT_MAX, History
from clickhouse.instants import MS_MAX, MS_MIN, to_ms
from clickhouse.queries import BEGINNING, Asked, Place, StoredEvent, parse_place
from clickhouse.replay import SPEED_MAX, SPEED_MIN, lines, paced, pages
from core import logs
from core.errors import Retry
from core.names import is_id
from core.problem import Problem

LIMIT_DEFAULT = 100


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


def routes(history: History) -> list[Route]:
    """The endpoints."""

    async def events(request: Request) -> Response:
        query = _query(request, EventsQuery)
        asked = Asked(_match_id(request), query.map_id, _ms(query.since, MS_MIN), _ms(query.until, MS_MAX))
        page = await history.page(asked, _place(query.after), limit=query.limit)
        body = b'{"events":[%b],"next":%b}' % (
            b",".join(event.payload for event in page.events),
            b"null" if page.next is None else b'"%s"' % str(page.next).encode(),
        )
        return Response(body, media_type="application/json")

    async def replay_match(request: Request) -> Response:
        query = _query(request, ReplayQuery)
        asked = Asked(_match_id(request), query.map_id)
        body = lines(history, asked) if query.speed is None else _lines(paced(pages(history, asked), query.speed))
        first = await anext(body, b"")  # so that a ClickHouse that is away is a 503 and not half an answer
        return StreamingResponse(_body(first, body), media_type="application/x-ndjson")

    return [Route("/api/v1/events/{match_id}", events), Route("/api/v1/replay/{match_id}", replay_match)]


async def _lines(batches: AsyncIterator[list[StoredEvent]]) -> AsyncIterator[bytes]:
    async for batch in batches:
        yield b"".join(event.payload + b"\n" for event in batch)


async def _body(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    try:
        async for lines in rest:
            yield lines
    except Retry as error:
        # The connection is cut, which a client can tell from the end: the body has no length, and no last chunk.
        logs.get().warning("replay broken off", error=str(error))
        raise


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


_Query = TypeVar("_Query", EventsQuery, ReplayQuery)


def _query(request: Request, kind: type[_Query]) -> _Query:
    values = {name: value for name, value in request.query_params.items() if value}
    try:
        query = msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise Problem(400, str(error)) from None
    if query.map_id is not None and not is_id(query.map_id):
        raise Problem(400, "map_id is not an id")
    return query
