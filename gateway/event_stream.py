"""Server-sent events on a taken-over socket.

The body ends with the connection (no chunks): the shared frames go out as they are, an eviction or a drain is a clean
end of stream for every client, and HTTP/1.0 proxies understand it.
"""

import asyncio
from collections.abc import Sequence

from gateway.connection import Connection
from gateway.frames import Wire, opening
from gateway.hub import Subscriber
from gateway.service import Joining, Service, bye, welcome

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
    (b"connection", b"close"),
]
"""`no-transform` and `x-accel-buffering` keep proxies from holding events back to compress or collect them."""


class EventStream(Connection):
    """One SSE reader. Whatever it sends after its request is ignored."""

    __slots__ = ("_headers", "_joining", "_subscriber", "_wire")

    def __init__(self, service: Service, joining: Joining, headers: Sequence[tuple[bytes, bytes]]) -> None:
        super().__init__(service)
        self._wire: Wire = joining.channel.wire
        self._joining: Joining | None = joining
        self._headers = headers
        self._subscriber: Subscriber | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Head, welcome, snapshots and all that is due go out before this returns."""
        super().connection_made(transport)
        assert self._joining is not None
        joining, self._joining = self._joining, None
        lines = b"".join(b"%b: %b\r\n" % header for header in (*HEADERS, *self._headers))
        head = b"HTTP/1.1 200 OK\r\n%b\r\n" % lines
        self._headers = ()
        head += opening(self._wire)
        greet = welcome(self._wire)
        self._service.wheel.add(self)
        self._service.meter.opened(self._wire)
        self._subscriber = self._service.start(joining, self, lambda verdicts: head + greet(verdicts))

    def beat(self, now: float) -> None:
        """See `gateway.wheel`."""
        if self._subscriber is not None:
            self._service.hub.beat(self._subscriber, now)

    def close(self, code: int, reason: str) -> None:
        """See `gateway.hub.Sink`: an event stream has no codes, it just ends."""
        self.hang_up()

    def dismiss(self) -> None:
        """See `gateway.hub.Sink`."""
        self.write(bye(self._wire))
        self.hang_up()

    def readers(self) -> tuple[Subscriber, ...]:
        """See `gateway.connection`. Nobody while it is being started: the hub looks at `is_paused` and `fd` then."""
        return () if self._subscriber is None else (self._subscriber,)

    # -- asyncio.Protocol

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._service.wheel.remove(self)
        self._service.meter.closed(self._wire)
        if self._subscriber is not None:
            self._service.leave(self._subscriber)
            self._subscriber = None
