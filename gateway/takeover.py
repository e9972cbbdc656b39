"""Taking a connection over from uvicorn once it has done its part. The one module that leans on uvicorn's internals.

uvicorn keeps about 12 KB per open response (parser, scope, task, cycle, flow control) and its send path costs more
than the socket's. A subscriber needs none of that, so after routing, checks and the verdict the endpoint asks for the
socket: `scope["extensions"]["arenacast.takeover"]`, a `Takeover`. What it leans on beyond
`core.http_protocol` (uvicorn 0.54, tests/gateway/test_takeover.py fails when something moves):

    HttpToolsProtocol           attributes scope, cycle, pipeline, flow, parser, transport, connections, url, headers
                                method _unset_keepalive_if_required
    RequestResponseCycle        attributes disconnected, response_started, more_body; a cycle marked disconnected ends
                                in silence when its endpoint returns
    FlowControl                 attribute read_paused, method resume_reading
    Server                      method startup, which makes a server for each socket; attributes servers (closed and
                                waited for at the end), server_state and lifespan.state
    handle_websocket_upgrade    called with url, headers and scope["method"] complete, instead of an endpoint, when
                                Config.ws_protocol_class is not None

Where the extension is missing (other servers, TLS, HTTP/2), `gateway.plain` serves the same subscribers.
"""

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.protocols.utils import is_ssl

from core import http
from core.http_protocol import HEAD_TIMEOUT_S, GuardedProtocol
from gateway.acceptor import Acceptor

EXTENSION = "arenacast.takeover"


class Upgraded(asyncio.Protocol):
    """Protocol of a WebSocket connection, made without arguments by the `ws=` given to uvicorn."""

    __slots__ = ()

    def upgrade(self, method: str, path: str, headers: list[tuple[str, str]]) -> None:
        """The upgrade request, complete; answering it is up to the protocol."""
        raise NotImplementedError


Takeover = Callable[[asyncio.Protocol], bool]
"""Hand the connection to this protocol. False when the connection is gone or still busy with something."""


class TakeoverProtocol(GuardedProtocol):
    """Our HTTP/1.1 protocol, whose connections an endpoint may take over."""

    message_timeout_s = HEAD_TIMEOUT_S  # no request here has a body worth waiting for

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if self.scope is not None and self.cycle is not None and not is_ssl(self.transport):
            # Bound to its own request: `self.cycle` is the newest one, which may be pipelined behind it.
            self.scope["extensions"] = {EXTENSION: partial(self.take_over, self.cycle)}  # type: ignore[dict-item]

    def handle_websocket_upgrade(self) -> None:
        self._expect(None)
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

    def take_over(self, cycle: RequestResponseCycle, protocol: asyncio.Protocol) -> bool:
        """See `Takeover`. Afterwards this protocol is empty and free; requests pipelined behind this one are dropped,
        because its answer ends with the connection."""
        if cycle.disconnected or cycle.response_started or cycle.more_body or self.transport.is_closing():
            return False
        cycle.disconnected = True
        cycle.scope.pop("extensions", None)  # it refers to the cycle, and the cycle to it
        self.pipeline.clear()
        self.connections.discard(self)
        self._unset_keepalive_if_required()
        self._expect(None)
        if self.flow.read_paused:
            self.flow.resume_reading()
        transport = self.transport
        transport.set_protocol(protocol)
        self._let_go()
        try:
            protocol.connection_made(transport)
        except BaseException:
            transport.abort()  # nobody else would ever close it
            raise
        return True

    def _let_go(self) -> None:
        """Drop what refers back to this protocol, so that it goes at once and not with the next collection."""
        for name in ("scope", "cycle", "parser", "flow", "transport"):
            setattr(self, name, None)
        self._cycles = []


class TakeoverServer(http.Server):
    """Serves with `TakeoverProtocol`, and accepts connections in our own way (`gateway.acceptor`)."""

    def __init__(self, config: Config, is_crowded: Callable[[], bool]) -> None:
        super().__init__(config)
        self._is_crowded = is_crowded

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])

        def protocol() -> asyncio.Protocol:
            return TakeoverProtocol(self.config, self.server_state, self.lifespan.state)

        self.servers = [Acceptor(one, protocol, self._is_crowded) for one in sockets or ()]  # type: ignore[misc]


def takeover_of(scope: Any) -> Takeover | None:
    """The extension, where the server offers it."""
    found: Takeover | None = (scope.get("extensions") or {}).get(EXTENSION)
    return found
