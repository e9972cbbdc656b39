"""The door of the write side: who may come in, under which correlation id, with a body of which size."""

import asyncio
import re
from hmac import compare_digest
from secrets import token_hex

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.problem import Problem

BODY_MAX_BYTES = 4 << 20
"""CONTRACT §3. A body is held and decoded as a whole."""
BODY_MAX_S = 30.0
"""A body that takes longer holds memory and a connection for nothing."""
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


async def read_body(request: Request) -> bytes:
    """The whole body. Raises Problem 413 as soon as it is known to be too large, 408 when it does not come.

    What a refused client still sends is dropped by the server as it arrives, so that the client, which usually
    writes all before it reads, sees the answer instead of a reset connection.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > BODY_MAX_BYTES:
        raise _too_large()
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_MAX_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size > BODY_MAX_BYTES:
                    raise _too_large()
                chunks.append(chunk)
    except TimeoutError:
        raise Problem(408, f"the body did not arrive within {BODY_MAX_S:g} s") from None
    except ClientDisconnect:
        raise Problem(400, "the body ended early") from None  # nobody hears it; half a body stores nothing
    return b"".join(chunks)


def _too_large() -> Problem:
    return Problem(413, f"a body has at most {BODY_MAX_BYTES} bytes")
