"""The same subscribers on any ASGI server: for TLS, HTTP/2, and servers whose connections cannot be taken over.

A bounded buffer stands where the taken-over socket has its transport's: the hub writes into it, the response's own
task sends it on and waits for the client as the server makes it wait. Above the high-water mark the hub is told.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from starlette.responses import StreamingResponse
from starlette.types import Send

from gateway.frames import Wire, opening
from gateway.hub import Subscriber
from gateway.service import Joining, Service, bye, welcome

LINGER_S = 5.0


class Outbox:
    """Buffer between the hub, which never waits, and a sender, which may. A `gateway.hub.Sink`."""

    def __init__(self, service: Service, wire: Wire) -> None:
        self._service = service
        self._wire: Wire = wire
        self._parts: list[bytes] = []
        self._size = 0
        self._news = asyncio.Event()
        self._sender = asyncio.current_task()
        self.subscribers: list[Subscriber] = []
        self.fd = -1
        self.is_paused = False
        self.slot = 0
        self.end: tuple[int, str] | None = None
        """Close code and reason, once the connection is to be closed."""

    def open(self) -> None:
        """Count it and give it a place on the wheel. Pair with `lost`."""
        self._service.wheel.add(self)
        self._service.meter.opened(self._wire)

    def lost(self) -> None:
        """The connection is gone."""
        self._service.wheel.remove(self)
        self._service.meter.closed(self._wire)
        for subscriber in tuple(self.subscribers):
            self._service.leave(subscriber)
        self.subscribers.clear()

    @property
    def is_closing(self) -> bool:
        """See `gateway.hub.Sink`."""
        return self.end is not None

    @property
    def unsent(self) -> int:
        """See `gateway.wheel`."""
        return self._size

    def cut(self) -> None:
        """See `gateway.wheel`."""
        if self._sender is not None:
            self._sender.cancel()

    def write(self, data: bytes) -> None:
        """See `gateway.hub.Sink`."""
        if self.end is not None:
            return
        self._parts.append(data)
        self._size += len(data)
        self._news.set()
        if self._size > self._service.high_water and not self.is_paused:
            self.is_paused = True
            for subscriber in tuple(self.subscribers):
                self._service.pause(subscriber)

    def close(self, code: int, reason: str) -> None:
        """See `gateway.hub.Sink`. A client that does not even take what is in the buffer is cut off."""
        if self.end is None:
            self.end = code, reason
            self._news.set()
            if self._sender is not None:
                asyncio.get_running_loop().call_later(LINGER_S, self._sender.cancel)

    def dismiss(self) -> None:
        """See `gateway.hub.Sink`."""
        self.write(bye(self._wire))
        self.close(1012, "reconnect now")

    def beat(self, now: float) -> None:
        """See `gateway.wheel`."""
        for subscriber in tuple(self.subscribers):
            self._service.hub.beat(subscriber, now)

    async def parts(self) -> AsyncGenerator[list[bytes]]:
        """What was written, in order, until `close`. Asking for more means that the last parts were sent."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._parts:
                parts, self._parts = self._parts, []
                yield parts
                # Only now is it out of our hands; the server's own buffer has its own limit.
                self._size -= sum(map(len, parts))
                if self.is_paused and self._size <= self._service.high_water // 4:
                    self.is_paused = False
                    for subscriber in tuple(self.subscribers):
                        self._service.resume(subscriber)
            if self.end is not None:
                return


class EventStreamResponse(StreamingResponse):
    """One reader on a streaming response; takes the joining over."""

    def __init__(self, service: Service, joining: Joining, headers: Mapping[str, str]) -> None:
        super().__init__((), headers=headers)
        self._service = service
        self._joining = joining

    async def stream_response(self, send: Send) -> None:
        """Send until the hub closes, the client leaves or the server fails; in every case the reader is forgotten."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        except BaseException:
            self._service.abandon(self._joining)
            raise
        wire = self._joining.channel.wire
        outbox = Outbox(self._service, wire)
        outbox.open()
        try:
            if start := opening(wire):
                outbox.write(start)
            outbox.subscribers.append(self._service.start(self._joining, outbox, welcome(wire)))
            async with aclosing(outbox.parts()) as written:
                async for parts in written:
                    if not await _was_sent(send, b"".join(parts)):
                        return
        finally:
            outbox.lost()
        await _was_sent(send, b"", is_last=True)


async def _was_sent(send: Send, body: bytes, *, is_last: bool = False) -> bool:
    """False when the connection is gone, which servers say in one of two ways: a reader that left is no error."""
    try:
        await send({"type": "http.response.body", "body": body, "more_body": not is_last})
    except (OSError, RuntimeError):
        return False
    return True
