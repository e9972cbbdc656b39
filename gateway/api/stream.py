"""`GET /api/v1/stream`: server-sent events.

An EventSource gives up for good on any status but 200, so only what can never get better is refused (malformed
topics: 400). When the gateway cannot serve now, the answer is 200, a jittered `retry:` and the end of the stream.
"""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from core.errors import Retry
from core.problem import Problem
from gateway.compression import accepts_gzip
from gateway.event_stream import HEADERS, EventStream
from gateway.frames import GZIPPED, Wire
from gateway.plain import EventStreamResponse
from gateway.service import Service, retry_ms
from gateway.subscription import Subscription, split, subscription
from gateway.takeover import takeover_of


class Taken(Response):
    """The answer to a request whose connection was taken over: there is nothing left to send."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Nothing."""


def asked_for(request: Request) -> Subscription:
    """The subscription in a query string. Raises Problem 400."""
    query = request.query_params
    try:
        return subscription(split(query.getlist("topics")), split(query.getlist("types")))
    except ValueError as error:
        raise Problem(400, str(error)) from None


def cursor_of(request: Request) -> str | None:
    """The cursor given; the header that an EventSource sends by itself is newer than what is in its URL."""
    return request.headers.get("last-event-id") or request.query_params.get("cursor") or None


def routes(service: Service) -> list[Route]:
    """The endpoint."""
    headers = {name.decode(): value.decode() for name, value in HEADERS if name != b"connection"}

    def come_back() -> Response:
        return Response(f"retry: {retry_ms()}\n: cannot serve you now, come back\n\n", headers=headers)

    async def stream(request: Request) -> Response:
        wanted = asked_for(request)
        if request.method == "HEAD":
            return Response(headers=headers)
        if service.is_draining:
            return come_back()
        wire: Wire = "envelope" if request.query_params.get("envelope") == "1" else "sse"
        encoded: dict[str, str] = {}
        if service.settings.compression == "on":
            encoded["vary"] = "accept-encoding"
            if accepts_gzip(",".join(request.headers.getlist("accept-encoding"))):
                encoded["content-encoding"] = "gzip"
                wire = GZIPPED[wire]
        try:
            joining = await service.prepare(wanted, wire, cursor_of(request))
        except Retry as error:
            service.turned_away(error)
            return come_back()
        takeover = takeover_of(request.scope)
        added = [(name.encode(), value.encode()) for name, value in encoded.items()]
        added += request.scope["state"]["headers"]
        if takeover is not None and takeover(EventStream(service, joining, added)):
            return Taken()
        return EventStreamResponse(service, joining, headers | encoded)

    return [Route("/api/v1/stream", stream)]
