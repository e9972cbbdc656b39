"""One statement on one connection. Every method is called on a thread of the pool, one at a time."""

import json
import threading
import time
import uuid
from collections.abc import Iterator, Mapping

from clickhouse.embedded.encodings import Blocks, Compressed, Encoder, Identity, negotiate
from clickhouse.embedded.engine import Connection, Engine, Result, classify
from clickhouse.embedded.errors import ClickHouseError, Code, Failure
from clickhouse.embedded.native import convert
from clickhouse.embedded.request import Query, quote, quote_name
from clickhouse.embedded.sessions import Kept, Sessions
from clickhouse.embedded.users import ANALYST
from core import logs

FIRST_BYTES = 64 * 1024
"""Of a result, gathered before the answer begins: an error up to there has a status of its own."""

_PIECE_BYTES = 256 * 1024  # of a streamed result
_GATHER_MAX_S = 0.1  # a slow result is passed on in smaller pieces
_INSERT_STEP_BYTES = 4 * 1024 * 1024
_COMPRESS_MIN_BYTES = 1024
_BUFFERED_RESULT_MAX_BYTES = 1 << 30  # as the engine counts them, before formatting

# The engine repeats headers and footers of all other formats for every piece.
_STREAMED_FORMATS = frozenset({
    "native", "tabseparated", "tsv", "tabseparatedraw", "tsvraw", "raw", "csv", "rowbinary", "tskv", "msgpack",
    "jsoneachrow", "jsonlines", "jsonl", "ndjson", "jsoncompacteachrow", "jsonstringseachrow",
    "jsoncompactstringseachrow",
})  # fmt: skip
_FORMATS_AS_ARRAY = "output_format_json_array_of_rows"  # turns JSONEachRow into one document


class Execution:
    """From a query to the bytes of its answer, in `begin`, `more`, `close`; `headers` are complete after `begin`."""

    def __init__(self, engine: Engine, sessions: Sessions, user: str, query: Query, accept_encoding: str) -> None:
        self._engine = engine
        self._sessions = sessions
        self._user = user
        self._query = query
        options = query.options
        self.query_id = options.query_id or str(uuid.uuid4())
        self.headers = {
            "X-ClickHouse-Query-Id": self.query_id,
            "X-ClickHouse-Timezone": engine.timezone,
        }
        self.is_read_only = False
        """Whether nothing is lost by cancelling it; known after `begin` has classified it."""
        self.encoder: Encoder = Identity()
        self._encoding = negotiate(accept_encoding) if options.uses_http_compression else None
        self.format = ""
        self.is_finished = False
        self._connection: Connection | None = None
        self._kept: Kept | None = None
        self._undo: list[str] = []
        self._pieces: Iterator[bytes] = iter(())
        self._stream: object = None
        self._error: Exception | None = None
        self._started_at = time.perf_counter()
        self._turn = threading.Lock()  # `close` may come while a cancelled caller's `begin` is still at work

    def begin(self, *, must_read_only: bool) -> bytes:
        """Run it up to the first FIRST_BYTES of the answer, or to its end. Raises as the engine does."""
        with self._turn:
            self._started_at = time.perf_counter()
            self._connection = self._take_connection()
            self._pieces = self._run(self._connection, must_read_only)
            body, is_all = self._gather(FIRST_BYTES)
            if self._query.options.uses_blocks:
                self.encoder = Blocks()
            elif self._encoding and (len(body) > _COMPRESS_MIN_BYTES or not is_all):
                self.encoder = Compressed(self._encoding, self._query.options.zlib_level)
                self.headers["Content-Encoding"] = self._encoding
            return self._encoded(body, is_all)

    def more(self) -> bytes:
        """The next part of the answer. Raises as the engine does."""
        with self._turn:
            return self._encoded(*self._gather(_PIECE_BYTES))

    def interrupted(self, tag: str, failure: Failure) -> bytes:
        """What a client finds at the end of an answer that could not be finished; `tag` was announced in a header."""
        text, mark = failure.text.encode(), tag.encode()
        block = b"\r\n__exception__\r\n%s\r\n%s%d %s\r\n__exception__\r\n" % (mark, text, len(text), mark)
        return self.encoder.push(block) + self.encoder.finish()

    def close(self) -> None:
        """Give the connection back, if the end of the answer has not done so. Never raises."""
        with self._turn:
            self._give_back()

    def _give_back(self) -> None:
        """The connection as it was; a session that cannot be restored is closed."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        session = self._query.options.session
        is_well = True
        try:
            if self._stream is not None:
                connection.streaming_cancel_query(self._stream)
            if session:
                for sql in reversed(self._undo):
                    connection.query(sql)
        except RuntimeError as error:
            is_well = False
            logs.get().warning("connection not restored", error=str(error))
        if session:
            is_kept = is_well and not session.is_last_request
            self._sessions.give_back((self._user, session.id), session.timeout_s if is_kept else 0)
        else:
            connection.close()

    def _take_connection(self) -> Connection:
        session = self._query.options.session
        if session is None:
            return self._engine.connect(self._user)
        self._kept = self._sessions.take((self._user, session.id), must_exist=session.must_exist)
        self._kept.has_own_settings |= self._query.statement.first == b"SET" or self._user == ANALYST
        return self._kept.connection

    def _run(self, connection: Connection, must_read_only: bool) -> Iterator[bytes]:
        query, options = self._query, self._query.options
        self._check(connection, must_read_only)
        is_insert = query.statement.insert_format is not None
        self.format = query.statement.output_format or options.default_format
        is_streamed = (
            query.statement.is_streamable
            and self.format.lower() in _STREAMED_FORMATS
            and not options.must_buffer
            and _FORMATS_AS_ARRAY not in options.settings
            and _FORMATS_AS_ARRAY.encode() not in query.sql
        )
        self._prepare(connection, must_read_only, is_buffered=self.is_read_only and not is_streamed)
        if is_insert:
            self._insert_body(connection)
            return
        if self.is_read_only:
            self.headers["X-ClickHouse-Format"] = self.format
        if is_streamed and self._begin_stream(connection):
            yield from map(self._converted, self._streamed(connection))
            return
        result = connection.query(query.sql, self.format, params=options.parameters)
        body = result.bytes()
        if body:  # BACKUP and KILL have results, too
            self.headers["X-ClickHouse-Format"] = self.format
        self._summarise(result)
        yield self._converted(body)

    def _check(self, connection: Connection, must_read_only: bool) -> None:
        """The engine's own view of the statement, after `statements` had theirs. Sets `is_read_only`."""
        statement = self._query.statement
        if statement.insert_format is None:
            kind, statements = classify(connection, self._query.sql)
            if statements > 1:
                raise ClickHouseError(Code.SYNTAX_ERROR, "Syntax error (Multi-statements are not allowed)")
            if kind == "CONTROL" and statement.is_streamable:
                raise ClickHouseError(Code.NOT_IMPLEMENTED, "A SELECT over HTTP cannot write to a file")
            # What does not parse is left to the engine, for its message.
            self.is_read_only = kind == "READ_ONLY" or (kind == "UNKNOWN" and statements == 0)
        if self._user == ANALYST and (not self.is_read_only or self._query.options.role or self._query.tables):
            raise ClickHouseError(
                Code.READONLY,
                f"The user {ANALYST} reads only: one SELECT, SHOW, DESCRIBE or EXPLAIN, settings in the URL",
            )
        if must_read_only and not self.is_read_only:
            raise ClickHouseError(
                Code.READONLY,
                "Cannot execute query in readonly mode. For queries over HTTP, method GET implies readonly. "
                "You should use method POST for modifying queries.",
            )

    def _prepare(self, connection: Connection, must_read_only: bool, *, is_buffered: bool) -> None:
        """Database, role, settings and external tables of this request; in a session all of it is undone later."""
        options, first = self._query.options, self._query.statement.first
        if options.database:
            if options.session and first != b"USE":
                current = connection.query("SELECT currentDatabase()", "TabSeparatedRaw").bytes().decode().rstrip("\n")
                self._undo.append(f"USE {quote_name(current)}")
            connection.query(f"USE {quote_name(options.database)}")
        if options.role:
            self._undo.append("SET ROLE DEFAULT")
            connection.query(f"SET ROLE {quote_name(options.role)}")
        if first == b"SET":
            return  # settings from the URL would have nothing to act on, and undoing them might undo the statement
        settings = dict(options.settings)
        if self._query.statement.insert_format is None:
            settings.setdefault("log_comment", self.query_id)  # how a running statement is found, see Engine.cancel
        if is_buffered:
            settings.setdefault("max_result_bytes", str(_BUFFERED_RESULT_MAX_BYTES))
        if must_read_only and self._user != ANALYST and not options.session and settings.get("readonly") != "1":
            settings["readonly"] = "2"  # a session could not take it back; `_check` is enough there
        if settings:
            if self._kept:
                self._undo += _restore(self._kept, list(settings))
            _set(connection, settings)
        for table in self._query.tables:  # after the settings, which may be about reading the data
            self._undo.append(f"DROP TEMPORARY TABLE IF EXISTS {quote_name(table.name)}")
            connection.query(f"CREATE TEMPORARY TABLE {quote_name(table.name)} ({table.structure}\n)")
            self._insert(connection, f"INSERT INTO {quote_name(table.name)}", table.format, [table.data])

    def _insert_body(self, connection: Connection) -> None:
        statement, parameters = self._query.statement, self._query.options.parameters
        assert statement.insert_format is not None
        if parameters:
            _set(connection, {f"param_{name}": value for name, value in parameters.items()})
        self._summarise(self._insert(connection, self._query.sql, statement.insert_format, self._query.data))

    def _insert(self, connection: Connection, sql: bytes | str, data_format: str, data: list[bytes]) -> Result:
        insert = connection.send_insert(sql, data_format)
        try:
            for piece in data:
                for start in range(0, len(piece), _INSERT_STEP_BYTES):
                    connection.insert_append(insert, piece[start : start + _INSERT_STEP_BYTES])
        except BaseException:
            connection.insert_cancel(insert)
            raise
        return connection.insert_done(insert)

    def _begin_stream(self, connection: Connection) -> bool:
        options = self._query.options
        try:
            self._stream = connection.send_query(self._query.sql, self.format, params=options.parameters)
        except RuntimeError as error:
            if "Streaming query is not supported" in str(error):  # as for SHOW
                return False
            raise
        return True

    def _streamed(self, connection: Connection) -> Iterator[bytes]:
        while (result := connection.streaming_fetch_result(self._stream)) is not None:
            if result.has_error():
                raise RuntimeError(result.error_message())
            piece = result.bytes()
            if not piece:
                break
            yield piece
        self._stream = None

    def _gather(self, enough: int) -> tuple[bytes, bool]:
        """Pieces of the result until there is `enough` of it or time is up; whether that was all.

        What precedes an error is not lost, unless the answer has not begun: then the error is the answer.
        """
        if self._error is not None:
            raise self._error
        gathered: list[bytes] = []
        size = 0
        until = time.perf_counter() + _GATHER_MAX_S
        try:
            for piece in self._pieces:
                gathered.append(piece)
                size += len(piece)
                if self._stream is not None and (size >= enough or (size and time.perf_counter() > until)):
                    return b"".join(gathered), False
        except Exception as error:
            if not gathered or enough == FIRST_BYTES:
                raise
            self._error = error
            return b"".join(gathered), False
        return b"".join(gathered), True

    def _encoded(self, body: bytes, is_all: bool) -> bytes:
        encoded = self.encoder.push(body) if body else b""
        if is_all:
            encoded += self.encoder.finish()
            self._give_back()  # before the client has its answer: its next request may be for the same session
            self.is_finished = True
        return encoded

    def _converted(self, body: bytes) -> bytes:
        revision = self._query.options.revision
        return convert(body, revision) if revision and self.format.lower() == "native" else body

    def _summarise(self, result: Result) -> None:
        self.headers["X-ClickHouse-Summary"] = json.dumps({
            "read_rows": str(result.storage_rows_read()),
            "read_bytes": str(result.storage_bytes_read()),
            "written_rows": str(result.rows_written()),
            "written_bytes": str(result.bytes_written()),
            "total_rows_to_read": str(result.storage_rows_read()),
            "result_rows": str(result.rows_read()),
            "result_bytes": str(result.bytes_read()),
            "elapsed_ns": str(int((time.perf_counter() - self._started_at) * 1e9)),
        })  # fmt: skip


def _set(connection: Connection, settings: Mapping[str, str]) -> None:
    connection.query("SET " + ", ".join(f"{name} = {quote(value)}" for name, value in settings.items()))


def _restore(kept: Kept, names: list[str]) -> list[str]:
    """The statements that give settings the values they have now."""
    changed: dict[str, str] = {}
    if kept.has_own_settings:  # asking takes 3 ms
        wanted = ", ".join(map(quote, names))
        rows = kept.connection.query(
            f"SELECT name, value FROM system.settings WHERE changed AND name IN ({wanted})",  # noqa: S608 - quoted
            "JSONCompactEachRow",
        ).bytes()
        changed = dict(json.loads(line) for line in rows.splitlines())
    return [f"SET {name} = {quote(changed[name]) if name in changed else 'DEFAULT'}" for name in names]
