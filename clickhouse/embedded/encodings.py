"""Bodies in and out: HTTP content encodings and ClickHouse's own blocks. Pure.

A body may consist of several frames (clickhouse-connect sends one per block of 1 to 2 MB), and an unfinished one is an
error: a decoder that stops after the first frame answers 200 and loses the rest.
"""

import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

import brotli
import lz4.block
import lz4.frame
from backports import zstd
from clickhouse_cityhash.cityhash import CityHash128

from clickhouse.embedded.errors import ClickHouseError, Code

_STEP_BYTES = 1 << 20

# ClickHouse's block: checksum (16), method (1), size of the block without checksum (4), size of its data (4), payload.
_CHECKSUM, _HEAD = 16, 25
_LZ4 = 0x82


def decode(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Undo a Content-Encoding. Raises ClickHouseError for damage, an unfinished frame, more than `max_bytes`."""
    match encoding.strip().lower():
        case "" | "identity":
            return body
        case "gzip" | "x-gzip":
            return _frames(body, lambda: _Zlib(31), max_bytes)
        case "deflate":
            return _frames(body, lambda: _Zlib(15), max_bytes)
        case "zstd":
            return _frames(body, zstd.ZstdDecompressor, max_bytes)
        case "lz4":
            return _frames(body, lz4.frame.LZ4FrameDecompressor, max_bytes)
        case "br":
            return _frames(body, _Brotli, max_bytes)
    raise ClickHouseError(Code.UNKNOWN_CODEC, "Unknown Content-Encoding; known: gzip, deflate, br, zstd, lz4")


def decode_blocks(body: bytes, max_bytes: int) -> bytes:
    """Undo ClickHouse's block framing (`decompress=1`), checksums verified. Raises as `decode` does."""
    out: list[bytes] = []
    position = total = 0
    while position < len(body):
        size = int.from_bytes(body[position + 17 : position + 21], "little")
        end = position + _CHECKSUM + size
        if size < _HEAD - _CHECKSUM or end > len(body):
            raise _undecodable("compressed blocks", "truncated")
        total += (raw_size := int.from_bytes(body[position + 21 : position + _HEAD], "little"))
        _check_size(total, max_bytes)
        if _checksum(body[position + _CHECKSUM : end]) != body[position : position + _CHECKSUM]:
            raise ClickHouseError(Code.CHECKSUM_DOESNT_MATCH, "Checksum doesn't match: corrupted data")
        raw = _decode_block(body[position + _CHECKSUM], body[position + _HEAD : end], raw_size)
        if len(raw) != raw_size:
            raise _undecodable("compressed blocks", "wrong size")
        out.append(raw)
        position = end
    return b"".join(out)


class Encoder(Protocol):
    """Encodes a body piece by piece. What a piece gives can be decoded at once; `finish` gives the end."""

    def push(self, data: bytes) -> bytes:
        """The encoded form of a piece."""

    def finish(self) -> bytes:
        """The end of the body."""


class Identity:
    """As it is."""

    def push(self, data: bytes) -> bytes:
        """See `Encoder`."""
        return data

    def finish(self) -> bytes:
        """See `Encoder`."""
        return b""


class Blocks:
    """ClickHouse's block framing with LZ4 (`compress=1`)."""

    def push(self, data: bytes) -> bytes:
        """See `Encoder`."""
        return b"".join([self._block(piece) for piece in _slices(data)])

    def finish(self) -> bytes:
        """See `Encoder`."""
        return b""

    @staticmethod
    def _block(raw: bytes) -> bytes:
        payload: bytes = lz4.block.compress(raw, store_size=False)
        sizes = (len(payload) + _HEAD - _CHECKSUM).to_bytes(4, "little") + len(raw).to_bytes(4, "little")
        block = bytes([_LZ4]) + sizes + payload
        return _checksum(block) + block


class Compressed:
    """An HTTP content encoding. Every piece is flushed, so that a reader gets it when it is sent."""

    def __init__(self, encoding: str, zlib_level: int) -> None:
        """`encoding` as `negotiate` gives it."""
        self._push: Callable[[bytes], bytes]
        self._finish: Callable[[], bytes]
        match encoding:
            case "lz4":
                frame = lz4.frame.LZ4FrameCompressor(auto_flush=True)
                header = frame.begin()
                self._push, self._finish = frame.compress, frame.flush
            case "zstd":
                header, compressor = b"", zstd.ZstdCompressor(level=1)
                self._push = lambda data: compressor.compress(data, compressor.FLUSH_BLOCK)
                self._finish = lambda: compressor.flush(compressor.FLUSH_FRAME)
            case "br":
                header, broccoli = b"", brotli.Compressor(quality=1)
                self._push = lambda data: broccoli.process(data) + broccoli.flush()
                self._finish = broccoli.finish
            case _:
                header, deflater = b"", zlib.compressobj(zlib_level, wbits=31 if encoding == "gzip" else 15)
                self._push = lambda data: deflater.compress(data) + deflater.flush(zlib.Z_SYNC_FLUSH)
                self._finish = deflater.flush
        self._header: bytes = header

    def push(self, data: bytes) -> bytes:
        """See `Encoder`."""
        header, self._header = self._header, b""
        return header + self._push(data)

    def finish(self) -> bytes:
        """See `Encoder`."""
        return self._header + self._finish()


def negotiate(accept_encoding: str) -> str | None:
    """The encoding to answer in: the cheapest one that an Accept-Encoding header allows."""
    accepted = {
        name.strip().lower()
        for name, _, parameters in (item.partition(";") for item in accept_encoding.split(","))
        if parameters.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    }
    return next((name for name in ("lz4", "zstd", "gzip", "deflate", "br") if name in accepted), None)


class _Decompressor(Protocol):
    """What the decompressors of zstd and lz4 have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes | None: ...
    @property
    def needs_input(self) -> bool: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Zlib:
    def __init__(self, wbits: int) -> None:
        self._inner = zlib.decompressobj(wbits)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(data or self._inner.unconsumed_tail, max_length)


class _Brotli:
    unused_data = b""

    def __init__(self) -> None:
        self._inner = brotli.Decompressor()

    @property
    def eof(self) -> bool:
        return bool(self._inner.is_finished())

    @property
    def needs_input(self) -> bool:
        return bool(self._inner.can_accept_more_data())

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return bytes(self._inner.process(data, output_buffer_limit=max_length))


def _frames(body: bytes, decompressor: Callable[[], _Decompressor], max_bytes: int) -> bytes:
    out: list[bytes] = []
    position = total = 0
    try:
        while position < len(body):
            frame = decompressor()
            while not frame.eof:
                data = body[position : position + _STEP_BYTES] if frame.needs_input else b""
                position += len(data)
                piece = frame.decompress(data, _STEP_BYTES)
                total += len(piece)
                _check_size(total, max_bytes)
                out.append(piece)
                if not (data or piece or frame.eof):
                    raise _undecodable("request body", "truncated")
            position -= len(frame.unused_data or b"")
    except (zlib.error, zstd.ZstdError, brotli.error, RuntimeError, EOFError, ValueError) as error:
        raise _undecodable("request body", "damaged") from error
    return b"".join(out)


def _decode_block(method: int, payload: bytes, raw_size: int) -> bytes:
    try:
        match method:
            case 0x02:  # stored
                return payload
            case 0x82:
                return bytes(lz4.block.decompress(payload, uncompressed_size=raw_size))
            case 0x90:
                return _frames(payload, zstd.ZstdDecompressor, raw_size)
    except (lz4.block.LZ4BlockError, ClickHouseError) as error:
        raise _undecodable("compressed blocks", "damaged") from error
    raise ClickHouseError(Code.UNKNOWN_CODEC, f"Unknown method {method} of a compressed block")


def _checksum(block: bytes) -> bytes:
    value: int = CityHash128(block)
    return (value >> 64).to_bytes(8, "little") + (value & (1 << 64) - 1).to_bytes(8, "little")


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise ClickHouseError(Code.QUERY_IS_TOO_LARGE, f"Request body is over {max_bytes} bytes when decompressed")


def _slices(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), _STEP_BYTES):
        yield data[start : start + _STEP_BYTES]


def _undecodable(what: str, reason: str) -> ClickHouseError:
    return ClickHouseError(Code.UNKNOWN_CODEC, f"Cannot decompress {what}: {reason}")
