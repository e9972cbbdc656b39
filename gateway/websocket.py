"""WebSocket on a socket taken over from the HTTP server: `GET /api/v1/ws`.

`websockets`' sans-I/O protocol checks the handshake and parses what the client sends; what the server sends are the
channel's shared frames (unmasked, so the same for everybody). Close codes are sent after the handshake, because a
browser shows its page nothing else.
"""

import asyncio
import logging
from collections.abc import Sequence
from urllib.parse import parse_qs, urlsplit

from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State as ProtocolState
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from gateway import session
from gateway.compression import Inflater, Negotiator
from gateway.connection import LINGER_S, Connection
from gateway.frames import WS_PING, Wire, ws_close
from gateway.hub import Subscriber
from gateway.service import Service, bye
from gateway.session import Session
from gateway.takeover import Upgraded

PATH = "/api/v1/ws"
UNSENT_FACTOR = 4
"""Answers to requests and pings are written even to a reader who lags; at this many high-water marks it is closed."""

_DATA = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)

_quiet = logging.getLogger("arenacast.websocket")
_quiet.setLevel(logging.CRITICAL)  # a client's protocol errors are told to the client


class WebSocket(Connection, Upgraded):
    """One WebSocket client and its subscriptions."""

    __slots__ = (
        "_beats", "_fragments", "_inflater", "_is_closed", "_is_within", "_parser", "_requests", "_session", "_task",
        "_unparsed", "_wire", "subscribers",
    )  # fmt: skip

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self.subscribers: list[Subscriber] = []
        self._parser: ServerProtocol | None = None  # only while there is something to parse: it weighs 2 KB
        self._unparsed = 0  # bytes given to the parser that are not part of a whole frame yet
        self._is_within = False  # between the fragments of a message
        self._wire: Wire = "ws"
        self._inflater: Inflater | None = None  # once permessage-deflate was agreed on
        self._session = Session(service, self, self._wire)
        self._fragments: list[bytes] = []
        self._requests: list[bytes] = []
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False  # a close frame was sent: nothing may follow it
        self._beats = 0

    # -- gateway.hub.Sink and gateway.wheel.Connection

    def write(self, data: bytes) -> None:
        """See `gateway.hub.Sink`."""
        if not self._is_closed:
            super().write(data)

    def close(self, code: int, reason: str) -> None:
        """See `gateway.hub.Sink`. The client answers with its own close frame, or is cut off."""
        if self._is_closed:
            return
        self.write(ws_close(code, reason))
        self._shut()
        asyncio.get_running_loop().call_later(LINGER_S, self.transport.abort)

    def dismiss(self) -> None:
        """See `gateway.hub.Sink`."""
        self.write(bye(self._wire))
        self.close(session.RECONNECT, "reconnect now")

    def beat(self, now: float) -> None:
        """See `gateway.wheel`. A turn takes 2/3 of the heartbeat interval of at most 15 s: a ping every second one."""
        self._beats += 1
        if self._beats % 2 == 0 and not self.is_paused:
            self.write(WS_PING)
        for subscriber in tuple(self.subscribers):
            self._service.hub.beat(subscriber, now)

    def readers(self) -> tuple[Subscriber, ...]:
        """See `gateway.connection`."""
        return tuple(self.subscribers)

    def _shut(self) -> None:
        self._is_closed = True
        self.seal()

    @property
    def is_closing(self) -> bool:
        """See `gateway.hub.Sink`."""
        return self._is_closed or self.transport.is_closing()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._service.wheel.add(self)
        self._service.meter.opened("ws")

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._is_closed = True
        self._service.wheel.remove(self)
        self._service.meter.closed("ws")
        for subscriber in self.subscribers:
            self._service.leave(subscriber)
        self.subscribers.clear()
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        parser = self._parser
        if parser is None:
            parser = ServerProtocol(state=ProtocolState.OPEN, max_size=session.MESSAGE_BYTES_MAX, logger=_quiet)
            if self._inflater is not None:
                parser.extensions = [self._inflater]
            self._parser = parser
        parser.receive_data(data)
        self._unparsed += len(data)
        for event in parser.events_received():
            assert isinstance(event, Frame), "the handshake is over"
            self._unparsed -= _wire_size(event, self._inflater)
            if event.opcode in _DATA:
                self._is_within = not event.fin
            self._take(event)
        for answer in parser.data_to_send():  # pongs, an echoed close frame, and b"" for the end
            if answer:
                self.write(answer)
            else:
                self._shut()
                self._farewell()
        if not (self._unparsed or self._is_within) and parser.state is ProtocolState.OPEN:
            self._parser = None
        if self.transport.get_write_buffer_size() > UNSENT_FACTOR * self._service.high_water:
            self._service.meter.evicted("bytes")
            self.cut()

    def _farewell(self) -> None:
        """End our half. Closing at once would reset a client in the middle of sending, before it reads our code."""
        if not self.transport.is_closing():
            self.transport.write_eof()
            asyncio.get_running_loop().call_later(LINGER_S, self.transport.abort)

    # -- what came in

    def upgrade(self, method: str, path: str, headers: list[tuple[str, str]]) -> None:
        """See `gateway.takeover.Upgraded`."""
        target = urlsplit(path)
        offers = [Negotiator()] if self._service.settings.compression == "on" else None
        handshake = ServerProtocol(logger=_quiet, select_subprotocol=_select_subprotocol, extensions=offers)
        request = Request(path, Headers(headers), method)
        if target.path == PATH:
            response = handshake.accept(request)
        else:
            response = handshake.reject(404, f"WebSockets are at {PATH}\n")
        self.write(response.serialize())
        if response.status_code != 101:
            self._shut()
            self.hang_up()
            return
        if handshake.extensions:
            self._wire, self._inflater = "ws-deflate", Inflater()
            self._session = Session(self._service, self, self._wire)
        origin = request.headers.get("Origin")
        self._start(asyncio.create_task(self._open(parse_qs(target.query), origin)))

    def _take(self, frame: Frame) -> None:
        if frame.opcode is Opcode.BINARY or (frame.opcode is Opcode.CONT and not self._fragments):
            if frame.fin:
                self._session.refuse_binary()
            return
        if frame.opcode not in (Opcode.TEXT, Opcode.CONT):
            return
        self._fragments.append(bytes(frame.data))
        if not frame.fin:
            return
        self._requests.append(b"".join(self._fragments))
        self._fragments.clear()
        if len(self._requests) > session.REQUESTS_MAX:
            self._requests.clear()
            self.close(session.BAD_REQUEST, "too many requests at once")
        elif self._task is None:
            self._start(asyncio.create_task(self._work()))

    # -- requests, one after the other; nothing is read meanwhile, so that a flood waits in the client

    def _start(self, task: asyncio.Task[None]) -> None:
        self._task = task
        self.transport.pause_reading()
        task.add_done_callback(self._idle)

    def _idle(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and task.exception() is not None:
            asyncio.get_running_loop().call_exception_handler(
                {"message": "websocket request failed", "exception": task.exception()}
            )
            self.close(1011, "internal error")
        if not self.transport.is_closing():
            self.transport.resume_reading()

    async def _open(self, query: dict[str, list[str]], origin: str | None) -> None:
        await self._session.open(lambda name: query.get(name, ()), origin)
        await self._work()

    async def _work(self) -> None:
        while self._requests and not self.is_closing:
            await self._session.handle(self._requests.pop(0))


def _wire_size(frame: Frame, inflater: Inflater | None) -> int:
    """Bytes of a client's frame. At least: one that encodes its length wastefully keeps its parser, no more."""
    size = len(frame.data) if inflater is None or frame.opcode not in _DATA else inflater.sizes.popleft()
    return 6 + size + (0 if size < 126 else 2 if size < 65_536 else 8)


def _select_subprotocol(_parser: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """Ours when it is offered; a client that offers none is served as well."""
    ours = Subprotocol(session.SUBPROTOCOL)
    return ours if ours in offered else None
