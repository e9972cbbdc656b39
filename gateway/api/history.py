"""What is in ClickHouse: stored events in pages, and whole replays."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from clickhouse.client import ClickHouse
from clickhouse.queries import LIMIT_MAX, SPEED_MAX, SPEED_MIN, events_page, replay
from core import logs
from core.errors import Retry
from core.names import is_id
from core.problem import Problem
from gateway.frames import encode_json

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


def routes(clickhouse: ClickHouse) -> list[Route]:
    """The endpoints."""

    async def events(request: Request) -> Response:
        match_id = _match_id(request)
        query = _query(request, EventsQuery)
        try:
            page = await events_page(
                clickhouse,
                match_id,
                map_id=query.map_id,
                since=query.since,
                until=query.until,
                limit=query.limit,
                after=query.after,
            )
        except ValueError as error:
            raise Problem(400, str(error)) from None
        body = b'{"events":[%b],"next":%b}' % (
            b",".join(event.payload for event in page.events),
            encode_json(page.next),
        )
        return Response(body, media_type="application/json")

    async def replay_match(request: Request) -> Response:
        match_id = _match_id(request)
        query = _query(request, ReplayQuery)
        lines = replay(clickhouse, match_id, map_id=query.map_id, speed=query.speed)
        try:
            first = await anext(lines, b"")  # so that a ClickHouse that is away is a 503 and not half an answer
        except ValueError as error:
            raise Problem(400, str(error)) from None
        return StreamingResponse(_body(first, lines), media_type="application/x-ndjson")

    return [Route("/api/v1/events/{match_id}", events), Route("/api/v1/replay/{match_id}", replay_match)]


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
