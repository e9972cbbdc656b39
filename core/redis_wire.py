"""One connection to Redis for calls made over and over, such as the blocking read of a stream's end.

Hot path: `WireConnection.call`. redis-py spends more on a blocking read of one entry than on everything else that is
done with it: 44 us of CPU in its timeouts, streams and parsers, beside 5 us here (hiredis on an asyncio protocol).

redis-py still makes the connection, with all that a URL may ask for (TLS, unix socket, user, password, database), and
then its transport is taken over: `_writer` of its connection is what this leans on (redis-py 8; the test fails when
it moves). One call at a time; a call that is cancelled or fails ends the connection, and the next one makes it anew.
"""

import asyncio
from typing import Any

import hiredis
from redis.asyncio.connection import DefaultParser
from redis.exceptions import ConnectionError, RedisError, TimeoutError

from core.redis_client import Argument, Redis, translate

ANSWERS_WITHIN_S = 5.0
"""Beyond what the call itself may take: a server that hangs is noticed after that."""


class WireConnection:
    """Where the client's pool connects to, over a connection of its own. Opens nothing yet."""

    def __init__(self, client: Redis) -> None:
        self._pool: Any = client.connection_pool
        self._wire: _Wire | None = None
        self._connection: Any = None  # redis-py's, kept because it closes its transport when it is forgotten

    async def call(self, *words: Argument, takes_s: float = 0.0) -> Any:
        """One command's answer. Raises Retry, Fenced or the error itself, as `redis_client.call` does.

        `takes_s`: how long the command may keep us waiting on purpose.
        """
        try:
            wire = self._wire or await self._connect()
            return await wire.ask(hiredis.pack_command(words), takes_s + ANSWERS_WITHIN_S)  # type: ignore[arg-type]
        except (RedisError, OSError) as error:
            self.close()
            raise translate(error) from error
        except BaseException:
            self.close()  # its answer is still to come, and must not be taken for the next one's
            raise

    async def _connect(self) -> "_Wire":
        self._connection = connection = self._pool.make_connection()
        await connection.connect()
        self._wire = _Wire(connection._writer.transport)
        return self._wire

    def close(self) -> None:
        """Let go of the connection, if there is one."""
        wire, self._wire, self._connection = self._wire, None, None
        if wire is not None:
            wire.transport.abort()


class _Wire(asyncio.Protocol):
    """Bytes in, one answer at a time out."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(replyError=DefaultParser.parse_error)
        self._answer: asyncio.Future[Any] | None = None
        transport.set_protocol(self)

    async def ask(self, command: bytes, timeout_s: float) -> Any:
        if self.transport.is_closing():
            raise ConnectionError("the connection is closed")
        self._answer = self._loop.create_future()
        timer = self._loop.call_later(timeout_s, self._fail, TimeoutError("no answer in time"))
        try:
            self.transport.write(command)
            return await self._answer
        finally:
            timer.cancel()
            self._answer = None

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            reply = self._reader.gets()
        except hiredis.ProtocolError as error:
            self._fail(ConnectionError(f"not a Redis server: {error}"))
            return
        if reply is False:
            return
        if isinstance(reply, Exception):
            self._fail(reply)
        elif self._answer is not None and not self._answer.done():
            self._answer.set_result(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ConnectionError(f"the server closed the connection{f': {exc}' if exc else ''}"))

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
