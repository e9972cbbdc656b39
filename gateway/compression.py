"""Compressed wire formats whose bytes are shared by every reader of a channel. Pure.

Hot path, budget 40 µs per frame whatever the number of readers (`python -m loadtests.bench_compression`). What makes
sharing possible is that nothing refers to what a reader got before: every frame is compressed on its own.

    gzip       SSE with `Content-Encoding: gzip`: one gzip stream per connection, of blocks that end on a byte and never
               look back. An event stream has no end, so the last block and the checksum never come; every client we
               know reads what there is (tests/clients).
    deflate    WebSocket permessage-deflate (RFC 7692) with `server_no_context_takeover`: one message in one frame.
               Unlike a stream's blocks, a message may also stay as it is.

Without a memory of earlier frames one small message gains little: a lone tally shrinks by a quarter, a state with its
rounds or several messages in one flush by three quarters.
"""

import struct
import zlib
from collections import deque
from collections.abc import Callable, Sequence

from websockets.exceptions import NegotiationError
from websockets.extensions.base import Extension
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.frames import CTRL_OPCODES, Frame
from websockets.typing import ExtensionParameter

MIN_BYTES = 200
"""Shorter frames (heartbeats, bye) are not worth the 20 µs: they shrink by a fifth at most."""

LEVEL = 1
"""Of zlib. Level 6 takes twice as long for frames of some KB and saves another 7 % (a tally: nothing)."""

WINDOW_BITS = 13
"""8 KiB. A frame is seldom longer, and the 32 KiB of the default are 256 KiB to set up for each of them."""

_MEMORY_LEVEL = 6
_STORED_MAX = 65_535  # of one stored block, RFC 1951 section 3.2.4
_FLUSH_MARK = b"\x00\x00\xff\xff"  # what a flush ends with; RFC 7692 section 7.2.1 leaves it out

GZIP_HEAD = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
"""Opens a gzip stream (RFC 1952): deflate, no name, no time, unknown system."""


def block(data: bytes) -> bytes:
    """One or more blocks of a deflate stream, complete for the reader as soon as they have arrived."""
    if len(data) >= MIN_BYTES:
        packed = _deflate(data)
        if len(packed) < len(data):
            return packed
    pieces = (data[start : start + _STORED_MAX] for start in range(0, len(data), _STORED_MAX))
    return b"".join(b"\x00%b%b" % (struct.pack("<HH", len(piece), len(piece) ^ 0xFFFF), piece) for piece in pieces)


def message(data: bytes) -> bytes | None:
    """Payload of one compressed WebSocket message; None when it is better sent as it is."""
    if len(data) < MIN_BYTES:
        return None
    packed = _deflate(data).removesuffix(_FLUSH_MARK)
    return packed if len(packed) < len(data) else None


def in_blocks(join: Callable[[Sequence[bytes]], bytes]) -> Callable[[Sequence[bytes]], bytes]:
    """A joiner of plain event streams, for compressed ones."""
    return lambda parts: block(join(parts))


def _deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, -WINDOW_BITS, _MEMORY_LEVEL)
    return packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH)


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether a request's `Accept-Encoding` allows gzip (RFC 9110 section 12.5.3)."""
    weights: dict[str, float] = {}
    for part in accept_encoding.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    weight = float(parameter[2:])
                except ValueError:
                    weight = 0.0
        weights[name] = weight
    return weights.get("gzip", weights.get("x-gzip", weights.get("*", 0.0))) > 0


class Inflater(PerMessageDeflate):
    """Unpacks what a client sends, one message at a time and never more than the parser's `max_size`."""

    def __init__(self) -> None:
        super().__init__(True, True, 15, 15)  # any window is within 15 bits
        self.sizes: deque[int] = deque()
        """Bytes that each data frame had on the wire, for whoever counts what was parsed and takes them away."""

    def decode(self, frame: Frame, *, max_size: int | None = None) -> Frame:
        if frame.opcode not in CTRL_OPCODES:
            self.sizes.append(len(frame.data))
        return super().decode(frame, max_size=max_size)


class Negotiator(ServerPerMessageDeflateFactory):
    """Accepts the first offer of permessage-deflate that shared frames can keep to.

    Neither side keeps a context: ours are shared, and the client's would cost us 40 KB per connection.
    """

    def __init__(self) -> None:
        super().__init__(server_no_context_takeover=True, client_no_context_takeover=True)

    def process_request_params(
        self, params: Sequence[ExtensionParameter], accepted_extensions: Sequence[Extension]
    ) -> tuple[list[ExtensionParameter], PerMessageDeflate]:
        """See the base class. An offer of a window smaller than ours is declined, and the client's next one tried."""
        answer, extension = super().process_request_params(params, accepted_extensions)
        if extension.local_max_window_bits < WINDOW_BITS:
            raise NegotiationError(f"server_max_window_bits is at least {WINDOW_BITS}")
        return answer, extension
