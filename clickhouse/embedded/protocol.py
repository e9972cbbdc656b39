"""uvicorn's HTTP protocol with a bound on what comes before a body: neither it nor its parser has one.

Leans on HttpToolsProtocol calling `on_message_begin` and `on_headers_complete`, and on `send_400_response`.
"""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_MAX_BYTES = 1024 * 1024
"""Request line and headers: as much URL as a ClickHouse server takes."""


class BoundedHeadProtocol(HttpToolsProtocol):
    """Refuses a head that does not end."""

    _is_in_head = True
    _head_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Count while the head is incomplete."""
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_MAX_BYTES + len(data):  # what came with the piece before may be body
                self.send_400_response("Request head is too long.")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A new request."""
        self._is_in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """What follows is body."""
        self._is_in_head = False
        super().on_headers_complete()
