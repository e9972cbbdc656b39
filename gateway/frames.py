"""Messages as bytes: server-sent events, WebSocket frames, JSON objects. Pure.

Hot path, budget 2 µs per message and channel: `data` arrives as JSON bytes and is spliced, never parsed or encoded
again. What does not depend on the reader is built once per message (`Item.sse`, `Item.object`); what depends on the
topic set is the cursor, built once per channel and message.

    sse        id: <cursor> / event: <kind> / data: {"topic":…, …}
    envelope   id: <cursor> / data: {"event":…,"topic":…,"id":…,"data":{…}}      (plain `message` events)
    ws         text frames holding such objects, joined by newlines; unmasked, so one frame serves every socket
    text       the same objects joined by newlines, for servers that frame WebSocket messages themselves
    poll       the same, for the long-poll's list
    sse-gzip, envelope-gzip, ws-deflate        the same bytes, compressed (`gateway.compression`)

No field may carry a line break into an event stream: kinds and topics are checked when an `Item` is made, and a line
break in JSON is white space (it cannot stand inside a string), so it is replaced by a space.
"""

import re
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final, Literal

import msgspec

from core.errors import Poison
from core.position import Position
from core.updates import Message
from gateway import compression

Wire = Literal["sse", "envelope", "ws", "text", "poll", "sse-gzip", "envelope-gzip", "ws-deflate"]
TRANSPORTS: Final[dict[Wire, str]] = {
    "sse": "sse", "envelope": "sse", "ws": "ws", "text": "ws", "poll": "poll",
    "sse-gzip": "sse", "envelope-gzip": "sse", "ws-deflate": "ws",
}  # fmt: skip
"""Wire format -> value of the label `transport`."""

GZIPPED: Final[dict[Wire, Wire]] = {"sse": "sse-gzip", "envelope": "envelope-gzip"}
"""Wire format of an event stream -> the same as a gzip stream, which begins with `opening`."""

WS_MESSAGE_MAX = 256 * 1024
"""Joined messages of one WebSocket message: clients commonly refuse more than 1 MiB, and one event has 256 KiB."""

_SAFE = re.compile(r"[A-Za-z0-9_.*-]+\Z")
_FIN_TEXT, _FIN_CLOSE, _FIN_PING = 0x81, 0x88, 0x89
_FIN_DEFLATED_TEXT = _FIN_TEXT | 0x40  # RSV1, RFC 7692 section 6

encode_json = msgspec.json.Encoder().encode


class Item:
    """A message and its place in the log; its bytes are built at first use and shared by every reader."""

    __slots__ = (
        "_object", "_owed", "_sse", "applied_us", "correlation", "data", "is_state", "kind", "position", "received_us",
        "shard", "topic",
    )  # fmt: skip

    def __init__(
        self,
        shard: int,
        position: Position,
        topic: str,
        kind: str,
        data: bytes,
        *,
        is_state: bool,
        received_us: int = 0,
        applied_us: int = 0,
        correlation: str = "",
    ) -> None:
        """Raises Poison when kind or topic could forge a line of a stream. Times are Unix µs, 0 = unknown."""
        if not (_is_safe(kind) and _is_safe(topic)):
            raise Poison(f"message of shard {shard} at {position} has no safe kind or topic")
        self.shard = shard
        self.position = position
        self.topic = topic
        self.kind = kind
        self.data = data
        self.is_state = is_state
        self.received_us = received_us
        self.applied_us = applied_us
        self.correlation = correlation
        self._sse: bytes | None = None
        self._object: tuple[bytes, bytes] | None = None
        self._owed: Item | None = None

    @property
    def size(self) -> int:
        """Bytes it takes in a ring, about: the data, the two spliced copies, the objects around them."""
        return 3 * len(self.data) + 800

    @property
    def owed(self) -> "Item":
        """The same message for a reader to whom states are owed (`core.position.K_OWED`)."""
        if self._owed is None:
            place = self.position.owing
            self._owed = Item(self.shard, place, self.topic, self.kind, self.data, is_state=self.is_state)
        return self._owed

    @property
    def sse(self) -> bytes:
        """What follows the id line in an event stream."""
        if self._sse is None:
            rest = _one_line(self.data)[1:].lstrip()
            comma = b"" if rest[:1] == b"}" else b","
            self._sse = b'event: %b\ndata: {"topic":"%b"%b%b\n\n' % (
                self.kind.encode(), self.topic.encode(), comma, rest,
            )  # fmt: skip
        return self._sse

    @property
    def object(self) -> tuple[bytes, bytes]:
        """The message object before and after its cursor."""
        if self._object is None:
            head = b'{"event":"%b","topic":"%b","id":"' % (self.kind.encode(), self.topic.encode())
            self._object = head, b'","data":%b}' % _one_line(self.data)
        return self._object


def item(message: Message, shard: int, epoch: int, applied_us: int) -> Item:
    """A message of the output log. Raises Poison when it cannot be framed safely."""
    return Item(
        shard,
        message.position(epoch),
        message.topic,
        message.kind,
        message.data,
        is_state=message.is_state,
        received_us=message.received_us,
        applied_us=applied_us,
        correlation=message.correlation,
    )


@lru_cache(maxsize=16_384)
def _is_safe(text: str) -> bool:
    return _SAFE.match(text) is not None


def _one_line(data: bytes) -> bytes:
    if b"\n" in data or b"\r" in data:
        return data.replace(b"\n", b" ").replace(b"\r", b" ")
    return data


# -- one message


def _sse(item: Item, cursor: bytes) -> bytes:
    return b"id: %b\n%b" % (cursor, item.sse)


def _object(item: Item, cursor: bytes) -> bytes:
    head, tail = item.object
    return head + cursor + tail


def _envelope(item: Item, cursor: bytes) -> bytes:
    return b"id: %b\ndata: %b\n\n" % (cursor, _object(item, cursor))


encoders: Final[dict[Wire, Callable[[Item, bytes], bytes]]] = {
    "sse": _sse, "envelope": _envelope, "ws": _object, "text": _object, "poll": _object,
    "sse-gzip": _sse, "envelope-gzip": _envelope, "ws-deflate": _object,
}  # fmt: skip
"""Wire format -> one message with its cursor, still to be joined."""


# -- several messages


def _concatenate(parts: Sequence[bytes]) -> bytes:
    return b"".join(parts)


def _lines(parts: Sequence[bytes]) -> bytes:
    return b"\n".join(parts)


def _text_frames(parts: Sequence[bytes]) -> bytes:
    return _framed(parts, ws_text)


def _deflated_frames(parts: Sequence[bytes]) -> bytes:
    return _framed(parts, ws_deflated)


def _framed(parts: Sequence[bytes], frame: Callable[[bytes], bytes]) -> bytes:
    if sum(map(len, parts)) + len(parts) <= WS_MESSAGE_MAX:
        return frame(b"\n".join(parts))
    frames: list[bytes] = []
    group: list[bytes] = []
    size = 0
    for part in parts:
        if group and size + len(part) > WS_MESSAGE_MAX:
            frames.append(frame(b"\n".join(group)))
            group, size = [], 0
        group.append(part)
        size += len(part) + 1
    frames.append(frame(b"\n".join(group)))
    return b"".join(frames)


joiners: Final[dict[Wire, Callable[[Sequence[bytes]], bytes]]] = {
    "sse": _concatenate, "envelope": _concatenate, "ws": _text_frames, "text": _lines, "poll": _lines,
    "sse-gzip": compression.in_blocks(_concatenate), "envelope-gzip": compression.in_blocks(_concatenate),
    "ws-deflate": _deflated_frames,
}  # fmt: skip
"""Wire format -> what is written for several encoded messages (at least one)."""


# -- messages about the connection


def control(
    wire: Wire,
    event: str,
    data: Any,
    *,
    cursor: bytes | None = None,
    ref: Any = None,
    retry_ms: int | None = None,
) -> bytes:
    """A message that is no news of a topic: welcome, heartbeat, bye, subscribed, unsubscribed, error.

    `retry_ms` is also told in EventSource's own words where there are such; `ref` is echoed when not None.
    """
    body: dict[str, Any] = {"event": event}
    if ref is not None:
        body["ref"] = ref
    if cursor is not None:
        body["id"] = cursor.decode()
    body["data"] = data
    if wire in ("ws", "ws-deflate"):
        return (ws_text if wire == "ws" else ws_deflated)(encode_json(body))
    if wire in ("text", "poll"):
        return encode_json(body)
    lines: list[bytes] = []
    if retry_ms is not None:
        lines.append(b"retry: %d\n" % retry_ms)
    if cursor is not None:
        lines.append(b"id: %b\n" % cursor)
    if wire in ("sse", "sse-gzip"):
        lines.append(b"event: %b\ndata: %b\n\n" % (event.encode(), encode_json(data)))
    else:
        lines.append(b"data: %b\n\n" % encode_json(body))
    return joiners[wire](lines)


def opening(wire: Wire) -> bytes:
    """What precedes the first message of a connection."""
    return compression.GZIP_HEAD if wire in GZIPPED.values() else b""


# -- WebSocket frames (RFC 6455 section 5.2), from server to client and therefore unmasked


def ws_text(payload: bytes) -> bytes:
    """One text message in one frame."""
    return _ws_frame(_FIN_TEXT, payload)


def ws_deflated(payload: bytes) -> bytes:
    """One text message in one frame, compressed where that makes it shorter."""
    packed = compression.message(payload)
    return _ws_frame(_FIN_TEXT, payload) if packed is None else _ws_frame(_FIN_DEFLATED_TEXT, packed)


def _ws_frame(first: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        return struct.pack("!BB", first, size) + payload
    if size < 65_536:
        return struct.pack("!BBH", first, 126, size) + payload
    return struct.pack("!BBQ", first, 127, size) + payload


def ws_close(code: int, reason: str) -> bytes:
    """A close frame; the reason is cut to what a control frame may hold."""
    text = reason.encode()[:123].decode(errors="ignore").encode()
    return struct.pack("!BBH", _FIN_CLOSE, 2 + len(text), code) + text


WS_PING: Final = struct.pack("!BB", _FIN_PING, 0)
