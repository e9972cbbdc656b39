"""Hot state as JSON: `/api/v1/polls`, `/polls/{id}`, `/matches`, `/matches/{id}`, `/matches/{id}/maps/{map}`.

Every item carries the `cursor` it is consistent with: given to a stream of the same topic, it continues right there.
State travels as the bytes the state consumer wrote; only `cursor` is spliced in.
"""

import asyncio
from collections.abc import Iterable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from core.cursor import encode, fingerprint
from core.names import SERIES, is_id, match_topic, poll_topic, shard_of
from core.problem import Problem
from gateway.frames import encode_json
from gateway.hot_state import HotState, TopicState
from gateway.listing import Kind, Listing, parse_after
from gateway.service import Service

LIMIT_DEFAULT = 50
LIMIT_MAX = 200


def routes(service: Service, listing: Listing) -> list[Route]:
    """The endpoints."""

    def cursor(state: HotState, topic: str) -> str:
        return encode(fingerprint(service.log_id, [topic]), {state.shard: state.position})

    async def read(topics: Iterable[str]) -> dict[str, tuple[HotState, list[TopicState]]]:
        by_shard: dict[int, list[str]] = {}
        for topic in topics:
            by_shard.setdefault(shard_of(topic, service.shards), []).append(topic)
        reads = [service.source.state(shard, routes) for shard, routes in by_shard.items()]
        found = await asyncio.gather(*reads)
        return {topic: (state, state.states[topic]) for state in found for topic in state.states}

    def item(state: HotState, topic: TopicState) -> bytes:
        return _with_cursor(topic.data, cursor(state, topic.topic))

    def match(state: HotState, match_id: str, topics: list[TopicState]) -> bytes:
        series = next((topic for topic in topics if topic.topic.endswith(f".{SERIES}")), None)
        maps = [item(state, topic) for topic in topics if topic is not series]
        return b'{"match_id":"%b","maps":[%b],"series":%b,"cursor":"%b"}' % (
            match_id.encode(),
            b",".join(maps),
            item(state, series) if series else b"null",
            cursor(state, match_topic(match_id, "*")).encode(),
        )

    async def polls(request: Request) -> Response:
        ids, following = await _page(listing, "poll", request)
        found = await read(map(poll_topic, ids))
        items = [item(state, topic) for name in ids for state, topics in [found[poll_topic(name)]] for topic in topics]
        return _list(b"polls", items, following)

    async def poll(request: Request) -> Response:
        topic = poll_topic(_id(request, "poll_id"))
        state, topics = (await read([topic]))[topic]
        if not topics:
            raise Problem(404, "no such poll")
        return _json(item(state, topics[0]))

    async def matches(request: Request) -> Response:
        ids, following = await _page(listing, "match", request)
        found = await read(match_topic(name, "*") for name in ids)
        items = [
            match(state, name, topics)
            for name in ids
            for state, topics in [found[match_topic(name, "*")]]
            if topics
        ]  # fmt: skip
        return _list(b"matches", items, following)

    async def one_match(request: Request) -> Response:
        match_id = _id(request, "match_id")
        topic = match_topic(match_id, "*")
        state, topics = (await read([topic]))[topic]
        if not topics:
            raise Problem(404, "no such match")
        return _json(match(state, match_id, topics))

    async def one_map(request: Request) -> Response:
        topic = match_topic(_id(request, "match_id"), _id(request, "map_id"))
        state, topics = (await read([topic]))[topic]
        if not topics:
            raise Problem(404, "no such map")
        return _json(item(state, topics[0]))

    return [
        Route("/api/v1/polls", polls),
        Route("/api/v1/polls/{poll_id}", poll),
        Route("/api/v1/matches", matches),
        Route("/api/v1/matches/{match_id}", one_match),
        Route("/api/v1/matches/{match_id}/maps/{map_id}", one_map),
    ]


async def _page(listing: Listing, kind: Kind, request: Request) -> tuple[list[str], str | None]:
    text = request.query_params.get("limit") or str(LIMIT_DEFAULT)
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= LIMIT_MAX):
        raise Problem(400, f"limit must be a number from 1 to {LIMIT_MAX}")
    after = request.query_params.get("after")
    try:
        return await listing.page(kind, int(text), parse_after(after) if after else None)
    except ValueError as error:
        raise Problem(400, str(error)) from None


def _id(request: Request, name: str) -> str:
    value: str = request.path_params[name]
    if not is_id(value):
        raise Problem(404, f"{name} is not an id")
    return value


def _with_cursor(data: bytes, cursor: str) -> bytes:
    body = data.rstrip()[:-1]
    comma = b"" if body.rstrip() == b"{" else b","
    return b'%b%b"cursor":"%b"}' % (body, comma, cursor.encode())


def _list(name: bytes, items: list[bytes], following: str | None) -> Response:
    return _json(b'{"%b":[%b],"next":%b}' % (name, b",".join(items), encode_json(following)))


def _json(body: bytes) -> Response:
    return Response(body, headers={"Cache-Control": "no-cache"}, media_type="application/json")
