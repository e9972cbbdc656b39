"""The door of the write side: who may come in, and under which correlation id."""

import re
from hmac import compare_digest
from secrets import token_hex

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.problem import Problem

GUARDED = ("/api/", "/hooks/matchzy/")

_TOKEN = re.compile(r"[A-Za-z0-9._:-]{1,64}\Z")


class Door:
    """ASGI application around another: a correlation id for every request, the bearer key for those that write.

    The id is the client's `X-Request-Id` if it is a plain token (it becomes one word of the log entry's header), else
    a new one. It goes back in the answer and stands in every log line of the request.
    """

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        correlation = given if _TOKEN.match(given) else token_hex(8)
        structlog.contextvars.bind_contextvars(correlation=correlation)
        scope.setdefault("state", {})["correlation"] = correlation

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = correlation
            await send(message)

        if scope["path"].startswith(GUARDED) and not self._admits(headers.get("authorization", "")):
            problem = Problem(401, "no or wrong key", headers={"WWW-Authenticate": "Bearer"})
            await problem.response()(scope, receive, answer)
            return
        await self._app(scope, receive, answer)

    def _admits(self, authorization: str) -> bool:
        scheme, _, key = authorization.partition(" ")
        return scheme.lower() == "bearer" and compare_digest(key.strip().encode("latin-1"), self._key)


def correlation_of(request: Request) -> str:
    """The correlation id that the door gave the request."""
    return str(request.state.correlation)
