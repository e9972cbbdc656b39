"""A statement over HTTP: authentication, body, execution, answer. Plain ASGI, because answers may end in the middle."""

import asyncio
import secrets
import socket
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import parse_qsl

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from clickhouse.embedded.engine import Engine
from clickhouse.embedded.errors import ClickHouseError, Code, Failure, failure, internal
from clickhouse.embedded.execution import Execution
from clickhouse.embedded.limits import Limits
from clickhouse.embedded.request import assemble
from clickhouse.embedded.sessions import Sessions
from clickhouse.embedded.users import Users
from clickhouse.embedded.workers import Budget, Lease, Workers
from core import logs

FIELDS_MAX = 10_000
"""Parameters of a URL: each costs an object."""

_SEND_STEP_BYTES = 256 * 1024
_CANCEL_EVERY_S = 0.5

# Of the formats whose readers care; everything else is text.
_MEDIA_TYPES = {
    "json": "application/json",
    "jsoncompact": "application/json",
    "jsoneachrow": "application/x-ndjson",
    "jsoncompacteachrow": "application/x-ndjson",
    "csv": "text/csv; charset=UTF-8",
    "csvwithnames": "text/csv; charset=UTF-8",
    "tabseparated": "text/tab-separated-values; charset=UTF-8",
    "native": "application/octet-stream",
    "rowbinary": "application/octet-stream",
    "parquet": "application/octet-stream",
    "arrow": "application/octet-stream",
    "arrowstream": "application/octet-stream",
}


class ClientGone(Exception):
    """Nobody is there to answer, or the answer is not read."""


class StatementEndpoint:
    """`/`: an ASGI application."""

    def __init__(self, engine: Engine, users: Users, sessions: Sessions, workers: Workers, limits: Limits) -> None:
        self._engine = engine
        self._users = users
        self._sessions = sessions
        self._workers = workers
        self._limits = limits
        self._budget = Budget(limits.bodies_max_bytes)
        self._name = socket.gethostname()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        answer = Answer(send, self._limits.send_timeout_s)
        answer.headers["X-ClickHouse-Server-Display-Name"] = self._name
        try:
            if scope["method"] == "HEAD":
                await answer.text(200, "Ok.\n")
            else:
                await self._statement(scope, receive, answer)
        except ClientGone:
            return
        except Exception as error:
            with suppress(ClientGone):
                await answer.failure(self._explain(error))

    async def _statement(self, scope: Scope, receive: Receive, answer: "Answer") -> None:
        headers = Headers(scope=scope)
        fields = _fields(scope["query_string"])
        user = self._users.authenticate(headers, fields)
        is_get = scope["method"] == "GET"
        with self._budget.lease() as lease:
            body = await self._body(receive, headers, lease)
            if not body and not fields.get("query", "").strip():
                if is_get:
                    return await answer.text(200, "Ok.\n")
                raise ClickHouseError(Code.SYNTAX_ERROR, "Syntax error: Empty query")
            async with self._workers.place():
                query = await self._workers.run(assemble, fields, headers, body, self._limits.body_max_bytes)
                size = len(body)
                del body  # what was decoded is in `query`
                lease.grow(max(0, sum(map(len, query.data)) - size))
                accept = headers.get("accept-encoding", "")
                await self._execute(
                    Execution(self._engine, self._sessions, user, query, accept), is_get, receive, answer
                )

    async def _execute(self, execution: Execution, is_get: bool, receive: Receive, answer: "Answer") -> None:
        answer.headers.update(execution.headers)
        watch = asyncio.create_task(self._cancel_when_gone(receive, execution, answer))
        try:
            piece = await self._workers.run(execution.begin, must_read_only=is_get)
            answer.headers.update(execution.headers)
            answer.headers["Content-Type"] = _MEDIA_TYPES.get(execution.format.lower(), "text/plain; charset=UTF-8")
            if execution.is_finished:
                return await answer.whole(200, piece)
            tag = answer.headers["X-ClickHouse-Exception-Tag"] = secrets.token_hex(8)
            await answer.begin(200)
            await answer.write(piece)
            while not execution.is_finished:
                try:
                    piece = await self._workers.run(execution.more)
                except Exception as error:
                    await self._workers.run(execution.close)
                    await answer.write(execution.interrupted(tag, self._explain(error)))
                    raise ClientGone from error  # the answer stays without an end, so that nobody takes it for whole
                await answer.write(piece)
            await answer.end()
        finally:
            watch.cancel()
            if not execution.is_finished:
                await asyncio.shield(self._workers.run(execution.close))

    async def _body(self, receive: Receive, headers: Mapping[str, str], lease: Lease) -> bytes:
        announced = headers.get("content-length", "0")
        limit = self._limits.body_max_bytes
        if not announced.isdecimal() or int(announced) > limit:
            raise _too_large(limit)
        pieces: list[bytes] = []
        while True:
            try:
                async with asyncio.timeout(self._limits.receive_timeout_s):
                    message: Message = await receive()
            except TimeoutError:
                raise ClickHouseError(Code.SOCKET_TIMEOUT, "Timeout while reading the body") from None
            if message["type"] == "http.disconnect":
                raise ClientGone
            if piece := message.get("body", b""):
                lease.grow(len(piece))
                pieces.append(piece)
                if lease.size > limit:
                    raise _too_large(limit)
            if not message.get("more_body"):
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _cancel_when_gone(self, receive: Receive, execution: Execution, answer: "Answer") -> None:
        """Stop a statement that reads, when nobody waits for it any more; one that writes runs to its end."""
        while (await receive())["type"] != "http.disconnect":
            pass
        answer.is_unwanted = True
        while not execution.is_finished:
            if execution.is_read_only:
                try:
                    await self._workers.control(self._engine.cancel, execution.query_id)
                except RuntimeError as error:
                    logs.get().warning("statement not cancelled", error=str(error))
            await asyncio.sleep(_CANCEL_EVERY_S)

    def _explain(self, error: Exception) -> Failure:
        found = failure(error, self._engine.version)
        if found is None:
            logs.get().error("statement failed", exc_info=error)
        return found or internal(self._engine.version)


class Answer:
    """The way to the client. Every step is bounded in time; a client that does not read is gone."""

    def __init__(self, send: Send, timeout_s: float) -> None:
        self.headers = {"Content-Type": "text/plain; charset=UTF-8"}
        self.is_unwanted = False  # the client has left
        self._send = send
        self._timeout_s = timeout_s
        self._has_begun = False

    async def text(self, status: int, text: str) -> None:
        """A short answer."""
        await self.whole(status, text.encode())

    async def failure(self, failure: Failure) -> None:
        """An error instead of an answer; nothing when one has begun."""
        if self._has_begun:
            return
        for name in ("X-ClickHouse-Format", "X-ClickHouse-Exception-Tag", "Content-Encoding"):
            self.headers.pop(name, None)
        self.headers["Content-Type"] = "text/plain; charset=UTF-8"
        self.headers["X-ClickHouse-Exception-Code"] = str(int(failure.code))
        if failure.status in (413, 503):
            self.headers["Connection"] = "close"  # much of the body may still be on its way
        if failure.status == 503:
            self.headers["Retry-After"] = "1"
        await self.text(failure.status, failure.text)

    async def whole(self, status: int, body: bytes) -> None:
        """Everything at once."""
        self.headers["Content-Length"] = str(len(body))
        await self.begin(status)
        await self.write(body, is_last=True)

    async def begin(self, status: int) -> None:
        """Status and headers."""
        self._has_begun = True
        headers = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in self.headers.items()]
        await self._put({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, body: bytes, *, is_last: bool = False) -> None:
        """A part of the body, in steps, so that a slow reader holds us back."""
        for start in range(0, len(body) or 1, _SEND_STEP_BYTES):
            step = body[start : start + _SEND_STEP_BYTES]
            has_more = not is_last or start + _SEND_STEP_BYTES < len(body)
            await self._put({"type": "http.response.body", "body": step, "more_body": has_more})

    async def end(self) -> None:
        """The end of a body that was written in parts."""
        await self._put({"type": "http.response.body", "body": b"", "more_body": False})

    async def _put(self, message: Message) -> None:
        if self.is_unwanted:
            raise ClientGone
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._send(message)
        except TimeoutError:
            raise ClientGone from None


def _fields(query_string: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            query_string.decode("ascii", "surrogateescape"),
            keep_blank_values=True, errors="surrogateescape", max_num_fields=FIELDS_MAX,
        )  # fmt: skip
    except ValueError as error:
        raise ClickHouseError(Code.BAD_ARGUMENTS, f"More than {FIELDS_MAX} parameters") from error
    return dict(pairs)


def _too_large(limit: int) -> ClickHouseError:
    return ClickHouseError(Code.QUERY_IS_TOO_LARGE, f"Request body is over {limit} bytes")
