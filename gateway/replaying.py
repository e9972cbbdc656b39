"""Sending a replay: as NDJSON or as an event stream, bounded in number, in memory and in patience.

A replay that fails in its middle ends with its connection cut: the body has no length and no last chunk, which every
HTTP client reports, and an event stream is not dismissed with `bye`, so an EventSource comes back and goes on from the
last id it saw. A reader who takes nothing for `stall_s` is cut off in the same way. When the client leaves, nothing is
read any more.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager

from msgspec import Struct
from starlette.responses import StreamingResponse
from starlette.types import Send

from clickhouse.queries import StoredEvent
from core import logs
from core.errors import Fatal, Retry
from core.metrics import EVICTIONS, REPLAYS
from core.problem import unavailable

PIECE_BYTES = 64 * 1024
"""Written at once: what a slow reader must take within `stall_s`, and what waits for it in the server's buffer."""

HEARTBEAT_S = 15.0
"""A comment in an event stream that has nothing to say: intermediaries cut what is silent for a minute."""

RETRY_AFTER_S = 5


class Sent(Struct):
    """Some of a replay, encoded, and what it stands for."""

    body: bytes
    events: int
    last: str


class Slots:
    """How many replays there may be at once."""

    def __init__(self, slots_max: int) -> None:
        self._free = slots_max

    @contextmanager
    def one(self) -> Iterator[None]:
        """A place, as long as the context lasts. Raises Problem 503 when there is none."""
        if self._free == 0:
            raise unavailable("too many replays at once", RETRY_AFTER_S)
        self._free -= 1
        REPLAYS.inc()
        try:
            yield
        finally:
            self._free += 1
            REPLAYS.dec()


class ReplayResponse(StreamingResponse):
    """Sends parts one after the other, each as the client takes it."""

    def __init__(
        self, parts: AsyncGenerator[Sent], media_type: str, *, stall_s: float, heartbeat: bytes, farewell: bytes,
        on_end: Callable[[int, str], None],
    ) -> None:  # fmt: skip
        """`on_end` is called once with the number of events that were sent and the place of the last one."""
        headers = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
        super().__init__((), headers=headers, media_type=media_type)
        self._parts = parts
        self._stall_s = stall_s
        self._heartbeat = heartbeat
        self._farewell = farewell
        self._on_end = on_end

    async def stream_response(self, send: Send) -> None:
        """See the module. A body that is left unfinished is how an application has its server cut the connection."""
        events, last = 0, ""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with aclosing(self._parts) as parts, aclosing(self._with_heartbeats(parts)) as beating:
                async for part in beating:
                    await self._send(send, part.body)
                    events, last = events + part.events, part.last or last
            await self._send(send, self._farewell)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (Retry, Fatal) as error:
            logs.get().warning("replay broken off", events=events, error=str(error))
        finally:
            self._on_end(events, last)

    async def _send(self, send: Send, body: bytes) -> None:
        view = memoryview(body)
        for start in range(0, len(view), PIECE_BYTES):
            message = {
                "type": "http.response.body",
                "body": bytes(view[start : start + PIECE_BYTES]),
                "more_body": True,
            }
            try:
                async with asyncio.timeout(self._stall_s):
                    await send(message)
            except TimeoutError:
                EVICTIONS.labels("replay").inc()
                raise Retry(f"the reader took nothing for {self._stall_s:g} s") from None

    async def _with_heartbeats(self, parts: AsyncIterator[Sent]) -> AsyncGenerator[Sent]:
        if not self._heartbeat:
            async for part in parts:
                yield part
            return
        beat = Sent(self._heartbeat, 0, "")
        coming: asyncio.Future[Sent] | None = None
        try:
            while True:
                coming = coming or asyncio.ensure_future(anext(parts))
                done, _ = await asyncio.wait([coming], timeout=HEARTBEAT_S)
                if not done:
                    yield beat
                    continue
                try:
                    part = coming.result()
                except StopAsyncIteration:
                    return
                coming = None
                yield part
        finally:
            if coming is not None:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)


def as_event_stream(events: list[StoredEvent]) -> bytes:
    """Events as an EventSource takes them: the id is where to go on."""
    return b"".join(
        b"id: %b\nevent: %b\ndata: %b\n\n" % (str(event.place).encode(), event.type.encode(), event.payload)
        for event in events
    )
