"""The reader's side of an event stream and of a WebSocket: bytes in, messages out. No I/O.

Hot path: 250 subscribers get 20,000 messages a second from one process. Most of them get the same bytes, because the
gateway frames a message once for a set of topics; so parsing is memoised by these bytes, and what is left per message
is a split, a look-up and `Reader.take`. The asyncio subscribers and the locust users are thin shells around this.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol
from urllib.parse import quote, urlencode, urlsplit

import msgspec
from msgspec import Raw, Struct
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

from core.position import Position

Vector = tuple[tuple[int, Position], ...]
"""(shard, position), ascending by shard."""

_HEAD_MAX_BYTES = 16 * 1024
_MEMO_FRAMES = 8192


class StreamRefused(Exception):
    """The server answered with something other than a stream."""


class Message(Struct, frozen=True):
    """One message as far as a load test looks into it; fields that its kind lacks are empty."""

    kind: str
    topic: str
    cursor: str
    vector: Vector
    poll_id: str
    applied: int
    digest: str
    event_id: str
    data: bytes


class _Data(Struct):
    topic: str = ""
    poll_id: str = ""
    applied: int = -1
    digest: str = ""
    event_id: str = ""


class _Object(Struct):
    event: str
    topic: str = ""
    id: str = ""
    data: Raw = Raw(b"{}")


_decode_data = msgspec.json.Decoder(_Data).decode
_decode_object = msgspec.json.Decoder(_Object).decode


def parse_vector(cursor: str) -> Vector:
    """Positions in a cursor. To clients it is opaque; a test of the order that it stands for may look inside."""
    vector = []
    for part in cursor.split("~")[2:]:
        shard, *position = map(int, part.split("."))
        vector.append((shard, Position(*position)))
    return tuple(vector)


@lru_cache(maxsize=_MEMO_FRAMES)
def parse_sse(frame: bytes) -> Message:
    """One event of a stream, without the empty line that ends it."""
    cursor, kind, data = "", "message", b"{}"
    for line in frame.split(b"\n"):
        name, _, value = line.partition(b": ")
        if name == b"data":
            data = value
        elif name == b"id":
            cursor = value.decode()
        elif name == b"event":
            kind = value.decode()
    return _message(kind, "", cursor, data)


@lru_cache(maxsize=_MEMO_FRAMES)
def parse_object(line: bytes) -> Message:
    """One message object of a WebSocket message or a long-poll."""
    found = _decode_object(line)
    return _message(found.event, found.topic, found.id, bytes(found.data))


def _message(kind: str, topic: str, cursor: str, data: bytes) -> Message:
    fields = _decode_data(data)
    return Message(
        kind, topic or fields.topic, cursor, parse_vector(cursor), fields.poll_id, fields.applied, fields.digest,
        fields.event_id, data,
    )  # fmt: skip


class Stream(Protocol):
    """One connection's bytes."""

    def request(self) -> bytes:
        """What to send first."""

    def feed(self, data: bytes) -> list[Message]:
        """Take what was received. Raises StreamRefused when the server does not answer with a stream."""

    def outgoing(self) -> bytes:
        """What the transport's own rules want sent now (answers to pings)."""


class SseStream:
    """A response of Server-Sent Events over HTTP/1.1, chunked or until the end of the connection."""

    def __init__(self, gateway_url: str, topics: tuple[str, ...], cursor: str = "") -> None:
        self._host, self._path = _target(gateway_url, "/api/v1/stream", topics)
        self._cursor = cursor
        self._rest = b""
        self._is_head = True
        self._chunks: _Chunks | None = None

    def request(self) -> bytes:
        """A GET, with the cursor where EventSource has it."""
        lines = [f"GET {self._path} HTTP/1.1", f"Host: {self._host}", "Accept: text/event-stream"]
        if self._cursor:
            lines.append(f"Last-Event-ID: {self._cursor}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def feed(self, data: bytes) -> list[Message]:
        """See `Stream`."""
        if self._is_head:
            head, end, data = (self._rest + data).partition(b"\r\n\r\n")
            if not end:
                if len(head) > _HEAD_MAX_BYTES:
                    raise StreamRefused("endless response head")
                self._rest = head
                return []
            self._rest, self._is_head = b"", False
            status = head.partition(b"\r\n")[0]
            if b" 200" not in status:
                raise StreamRefused(status.decode("latin-1"))
            if b"chunked" in head.lower():
                self._chunks = _Chunks()
        if self._chunks is not None:
            data = self._chunks.feed(data)
        *frames, self._rest = (self._rest + data).split(b"\n\n")
        return [parse_sse(frame) for frame in frames if frame and not frame.startswith(b":")]

    def outgoing(self) -> bytes:
        """Nothing: the stream goes one way."""
        return b""


class _Chunks:
    """Chunked transfer coding (RFC 9112 section 7.1), as far as a stream without trailers uses it."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        rest = self._rest + data
        found = []
        while True:
            size_text, end, body = rest.partition(b"\r\n")
            if not end:
                break
            size = int(size_text.partition(b";")[0], 16)
            if len(body) < size + 2:
                break
            found.append(body[:size])
            rest = body[size + 2 :]
        self._rest = rest
        return b"".join(found)


class WebSocketStream:
    """A WebSocket, by the protocol engine of the `websockets` library: strict about every frame."""

    def __init__(self, gateway_url: str, topics: tuple[str, ...], cursor: str = "") -> None:
        host, path = _target(gateway_url, "/api/v1/ws", topics)
        if cursor:
            path += "&" + urlencode({"cursor": cursor})
        self._protocol = ClientProtocol(parse_uri(f"ws://{host}{path}"), subprotocols=None, max_size=2**22)

    def request(self) -> bytes:
        """The handshake."""
        self._protocol.send_request(self._protocol.connect())
        return self.outgoing()

    def feed(self, data: bytes) -> list[Message]:
        """See `Stream`."""
        self._protocol.receive_data(data)
        return [parse_object(line) for text in self._texts() for line in text.split(b"\n") if line]

    def outgoing(self) -> bytes:
        """Pongs, and the close handshake."""
        return b"".join(self._protocol.data_to_send())

    def _texts(self) -> Iterator[bytes]:
        if isinstance(self._protocol.handshake_exc, InvalidHandshake):
            raise StreamRefused(str(self._protocol.handshake_exc))
        for event in self._protocol.events_received():
            if isinstance(event, Response):
                continue
            assert isinstance(event, Frame)
            if event.opcode is Opcode.TEXT and event.fin:
                yield bytes(event.data)
            elif event.opcode in (Opcode.TEXT, Opcode.CONT, Opcode.BINARY):
                raise StreamRefused("fragments and binary messages are not part of the contract")


def _target(gateway_url: str, path: str, topics: tuple[str, ...]) -> tuple[str, str]:
    url = urlsplit(gateway_url)
    return url.netloc, f"{url.path.rstrip('/')}{path}?topics={quote(','.join(topics), safe=',*.')}"
