"""Taking a connection over from uvicorn once it has done its part. The one module that leans on uvicorn's internals.

uvicorn keeps about 12 KB per open response (parser, scope, task, cycle, flow control) and its send path costs more
than the socket's. A subscriber needs none of that, so after routing, checks and the verdict the endpoint asks for the
socket: `scope["extensions"]["arenacast.takeover"]`, a `Takeover`. What it leans on (uvicorn 0.54,
tests/gateway/test_takeover.py fails when one of them moves):

    HttpToolsProtocol           on_message_begin, on_header, on_message_complete, data_received as parser callbacks;
                                attributes scope, cycle, pipeline, flow, parser, transport, connections, loop
                                method _unset_keepalive_if_required
    RequestResponseCycle        attributes disconnected, response_started, more_body, message_event; a cycle marked
                                disconnected ends in silence when its endpoint returns
    FlowControl                 attribute read_paused, method resume_reading
    handle_websocket_upgrade    called with url, headers and scope["method"] complete, instead of an endpoint, when
                                Config.ws_protocol_class is not None

Where the extension is missing (other servers, TLS, HTTP/2), `gateway.plain` serves the same subscribers.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.utils import is_ssl

EXTENSION = "arenacast.takeover"

REQUEST_TIMEOUT_S = 15.0
"""A request must be complete within this: uvicorn itself would wait for ever for the end of a slow header."""

HEAD_BYTES_MAX = 64 * 1024
"""Request line and headers; the parser itself has no limit. A cursor has at most 3,000, twice in a request."""


class Upgraded(asyncio.Protocol):
    """Protocol of a WebSocket connection, made without arguments by the `ws=` given to uvicorn."""

    __slots__ = ()

    def upgrade(self, method: str, path: str, headers: list[tuple[str, str]]) -> None:
        """The upgrade request, complete; answering it is up to the protocol."""
        raise NotImplementedError


Takeover = Callable[[asyncio.Protocol], bool]
"""Hand the connection to this protocol. False when the connection is gone or still busy with something."""


class TakeoverProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol, whose connections an endpoint may take over, and which hangs up on dawdlers."""

    _deadline: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._request_is_here()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        if self._deadline is None:
            self._await_request()
        if not is_ssl(self.transport):
            self.scope["extensions"] = {EXTENSION: self.take_over}  # type: ignore[dict-item]

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count_head(len(name) + len(value) + 4)

    def on_message_complete(self) -> None:
        self._request_is_here()
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        self._request_is_here()
        self.connections.discard(self)
        method, path, headers = self.scope["method"], self.url, self.headers
        protocol: Upgraded = self.config.ws_protocol_class()  # type: ignore[misc,assignment]
        transport = self.transport
        transport.set_protocol(protocol)
        self._let_go()
        protocol.connection_made(transport)
        protocol.upgrade(
            method, path.decode("latin-1"), [(n.decode("latin-1"), v.decode("latin-1")) for n, v in headers]
        )

    def take_over(self, protocol: asyncio.Protocol) -> bool:
        """See `Takeover`. Afterwards this protocol is empty and free."""
        cycle = self.cycle
        if cycle.disconnected or cycle.response_started or cycle.more_body or self.pipeline:
            return False
        if self.transport.is_closing():
            return False
        cycle.disconnected = True
        self.connections.discard(self)
        self._unset_keepalive_if_required()
        self._request_is_here()
        if self.flow.read_paused:
            self.flow.resume_reading()
        transport = self.transport
        transport.set_protocol(protocol)
        self._let_go()
        protocol.connection_made(transport)
        return True

    def _let_go(self) -> None:
        """Drop what refers back to this protocol, so that it goes at once and not with the next collection."""
        for name in ("scope", "cycle", "parser", "flow", "transport"):
            setattr(self, name, None)

    def _await_request(self) -> None:
        self._deadline = self.loop.call_later(REQUEST_TIMEOUT_S, self._too_slow)

    def _request_is_here(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        self.transport.close()

    def _count_head(self, count: int) -> None:
        self._head_bytes += count
        if self._head_bytes > HEAD_BYTES_MAX:
            raise ValueError("request head too large")  # ends the parser's turn: uvicorn answers 400 and closes


def takeover_of(scope: Any) -> Takeover | None:
    """The extension, where the server offers it."""
    found: Takeover | None = (scope.get("extensions") or {}).get(EXTENSION)
    return found
