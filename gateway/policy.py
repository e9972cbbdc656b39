"""Headers of every answer: who may read it from another origin, and what a browser may do with it.

Plain ASGI, because an event stream that is taken over writes its own head: it asks `headers` for the same lines.
"""

from collections.abc import Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

PREFLIGHT_MAX_AGE_S = 86_400

_PAGE = b"default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_OVERLAY = b"default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors *"

Headers = list[tuple[bytes, bytes]]


class Policy:
    """CORS for reading, and security headers."""

    def __init__(self, app: ASGIApp, cors_origins: str) -> None:
        """`cors_origins`: `*`, or a comma list of origins, or nothing."""
        self._app = app
        self._origins = parse_origins(cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = self.headers(scope)
        if scope["method"] == "OPTIONS" and _header(scope, b"access-control-request-method"):
            await send({"type": "http.response.start", "status": 204, "headers": [*headers, *_PREFLIGHT]})
            await send({"type": "http.response.body", "body": b""})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *headers]
            await send(message)

        scope.setdefault("state", {})["headers"] = headers
        await self._app(scope, receive, send_with_headers)

    def headers(self, scope: Scope) -> Headers:
        """What is added to the answer to a request."""
        is_overlay = scope["path"].startswith("/overlay/")
        found: Headers = [
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-resource-policy", b"cross-origin"),
            (b"content-security-policy", _OVERLAY if is_overlay else _PAGE),
        ]
        if not is_overlay:
            found.append((b"x-frame-options", b"DENY"))
        if self._origins == ["*"]:
            found.append((b"access-control-allow-origin", b"*"))
        elif self._origins:
            found.append((b"vary", b"origin"))
            origin = _header(scope, b"origin")
            if origin.decode("latin-1") in self._origins:
                found.append((b"access-control-allow-origin", origin))
        return found


def parse_origins(text: str) -> list[str]:
    """The setting `cors_origins` as a list."""
    return [part.strip() for part in text.split(",") if part.strip()]


def is_origin_allowed(origins: Sequence[str], origin: str | None) -> bool:
    """Whether a WebSocket from this origin may read; browsers leave that check to the server. None = no browser."""
    return origin is None or list(origins) == ["*"] or origin in origins


_PREFLIGHT: Headers = [
    (b"access-control-allow-methods", b"GET, HEAD"),
    (b"access-control-allow-headers", b"Last-Event-ID, Cache-Control, Content-Type"),
    (b"access-control-max-age", str(PREFLIGHT_MAX_AGE_S).encode()),
]


def _header(scope: Any, name: bytes) -> bytes:
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return b""
