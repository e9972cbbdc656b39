"""Reading request bodies: bounded in type, size, time, and in what all of them together hold."""

import asyncio

from starlette.requests import ClientDisconnect, Request

from core.problem import Problem, unavailable
from ingest.decode import Media, media_type

BODY_MAX_BYTES = 4 << 20
"""CONTRACT §3. A body is held and decoded as a whole."""
BODY_MAX_S = 30.0
"""A body that takes longer holds memory and a connection for nothing."""
HELD_MAX_BYTES = 256 << 20
"""Of all bodies that are arriving: many slow senders must not exhaust the process."""


def media_of(request: Request, *, json_only: bool = False) -> Media:
    """What the body is announced as. Raises Problem 415."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Problem(415, "Content-Encoding is not supported")
    media = media_type(request.headers.get("content-type"))
    if json_only and media != "json":
        raise Problem(415, "Content-Type must be application/json here")
    return media


class BodyReader:
    """Reads bodies and knows how much of them it holds."""

    def __init__(self, held_max_bytes: int = HELD_MAX_BYTES) -> None:
        self._held = 0
        self._held_max_bytes = held_max_bytes

    async def read(self, request: Request) -> bytes:
        """The whole body. Raises Problem 413 as soon as it is known to be too large, 408, 503.

        What a refused client still sends is dropped by the server as it arrives, so that the client, which usually
        writes all before it reads, sees the answer instead of a reset connection.
        """
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > BODY_MAX_BYTES:
            raise _too_large()
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_MAX_S):
                async for chunk in request.stream():
                    size += len(chunk)
                    self._held += len(chunk)
                    if size > BODY_MAX_BYTES:
                        raise _too_large()
                    if self._held > self._held_max_bytes:
                        raise unavailable("too many bodies are arriving at once, repeat the request")
                    chunks.append(chunk)
        except TimeoutError:
            raise Problem(408, f"the body did not arrive within {BODY_MAX_S:g} s") from None
        except ClientDisconnect:
            raise Problem(400, "the body ended early") from None  # nobody hears it; half a body stores nothing
        finally:
            self._held -= size
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large() -> Problem:
    return Problem(413, f"a body has at most {BODY_MAX_BYTES} bytes")
