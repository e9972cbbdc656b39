"""uvicorn's HTTP/1.1 protocol with what it leaves out: bounds on heads and on time, and errors in our own form.

uvicorn buffers a request head of any size and waits for the end of one for ever, so a single client without a key
could fill the memory or hold every connection. Leans on uvicorn 0.54 (tests/core/test_http_protocol.py fails when
something moves): the parser callbacks on_message_begin, on_headers_complete and on_message_complete,
send_400_response, _unsupported_upgrade_warning, and `cycle` with disconnected, response_complete and message_event.
"""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from core.problem import Problem

HEAD_BYTES_MAX = 64 * 1024
"""Request line and headers. Our longest legitimate head carries a cursor of 3,000 characters twice."""

HEAD_TIMEOUT_S = 15.0
"""From the connection, or from the first byte of a later request, to the end of its head."""

MESSAGE_TIMEOUT_S = 45.0
"""To the end of the body: above the 30 s after which ingest answers 408, so that whoever dribbles on is hung up on."""


_END = b"\r\n\r\n"


class GuardedProtocol(HttpToolsProtocol):
    """HTTP/1.1 that hangs up on dawdlers and on heads without end. For `uvicorn.Config(http=…)`."""

    head_bytes_max = HEAD_BYTES_MAX
    message_timeout_s = MESSAGE_TIMEOUT_S

    _deadline: asyncio.TimerHandle | None = None
    _in_head = True
    _head_bytes = 0
    _cycles: list[RequestResponseCycle] = []  # noqa: RUF012 - replaced, never changed in place

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect(HEAD_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        # uvicorn tells only the newest request; pipelined ones before it would wait for ever.
        for cycle in self._cycles:
            cycle.disconnected = cycle.disconnected or not cycle.response_complete
            cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head and len(data) > self.head_bytes_max and not 0 <= data.find(_END) < self.head_bytes_max:
            self._refuse_head()  # one read can hold more than a head may have
            return
        was_in_head = self._in_head and self._head_bytes > 0
        super().data_received(data)
        if not self._in_head:
            return
        # Counted by what arrives, not by what is parsed: the parser keeps an unfinished header to itself.
        self._head_bytes += len(data) if was_in_head else 1
        if self._head_bytes > self.head_bytes_max and self.transport is not None and not self.transport.is_closing():
            self._refuse_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        if self._deadline is None:
            self._expect(HEAD_TIMEOUT_S)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._expect(self.message_timeout_s)
        super().on_headers_complete()
        if self.cycle is not None:
            self._cycles = [*(cycle for cycle in self._cycles if not cycle.response_complete), self.cycle]

    def on_message_complete(self) -> None:
        self._expect(None)
        super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: the request is answered without an upgrade, and a client must not fill the log."""

    def send_400_response(self, msg: str) -> None:
        """The parser's refusals, as a problem like every other error."""
        self._refuse(Problem(400, msg))

    def _expect(self, within_s: float | None) -> None:
        """Hang up unless called again within this time; None: nothing is awaited."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(within_s, self._too_slow) if within_s is not None else None

    def _too_slow(self) -> None:
        self._deadline = None
        self.transport.close()

    def _refuse_head(self) -> None:
        self._refuse(Problem(431, f"a request head has at most {self.head_bytes_max} bytes"))

    def _refuse(self, problem: Problem) -> None:
        body = problem.body
        head = (
            f"HTTP/1.1 {problem.status} {problem.title}\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
