"""One HTTP request -> what is asked of the engine. Pure; `assemble` is for a thread, bodies may be large."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from clickhouse.embedded import multipart
from clickhouse.embedded.encodings import decode, decode_blocks
from clickhouse.embedded.errors import ClickHouseError, Code
from clickhouse.embedded.native import FIRST_REVISION
from clickhouse.embedded.statements import SQL_MAX_BYTES, Statement, check_structure, parse

SESSION_TIMEOUT_S = 60
SESSION_TIMEOUT_MAX_S = 3600

# What the HTTP interface takes for itself; every other name in the URL is a setting of the engine.
_RESERVED = frozenset({
    "query", "database", "default_format", "user", "password", "quota_key", "role", "query_id", "stacktrace",
    "buffer_size", "wait_end_of_query", "session_id", "session_timeout", "session_check", "close_session",
    "compress", "decompress", "client_protocol_version", "enable_http_compression", "http_zlib_compression_level",
    "send_progress_in_http_headers", "http_headers_progress_interval_ms",
    "cancel_http_readonly_queries_on_client_close", "http_write_exception_in_output_format",
    "hide_version_in_exceptions",
})  # fmt: skip
_SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,127}")
_PARAMETER = re.compile(r"param_[A-Za-z0-9_$]{1,128}")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_FORMAT = re.compile(r"[A-Za-z][A-Za-z0-9]{0,63}")
_QUERY_ID = re.compile(r"[\x21-\x7e]{1,256}")
_EXTERNAL = re.compile(r"(.+)_(structure|types|format)")
_TRUE = ("1", "true")


class Session(NamedTuple):
    """A connection that outlives its request."""

    id: str
    timeout_s: float
    must_exist: bool
    is_last_request: bool


class ExternalTable(NamedTuple):
    """Data sent along with a query, a temporary table for its duration."""

    name: str
    structure: str
    format: str
    data: bytes


class Options(NamedTuple):
    """What the URL and the headers say beside the statement."""

    database: str
    role: str
    query_id: str
    default_format: str
    session: Session | None
    settings: Mapping[str, str]
    parameters: Mapping[str, str]
    revision: int
    """Of the Native protocol, 0 when none was negotiated."""
    must_buffer: bool
    """The client wants the whole result, or a clean error."""
    uses_blocks: bool
    uses_http_compression: bool
    zlib_level: int


class Query(NamedTuple):
    """A statement with everything that belongs to it."""

    options: Options
    statement: Statement
    sql: bytes
    """Text for the engine, without data."""
    data: list[bytes]
    """Of an INSERT, in pieces."""
    tables: list[ExternalTable]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.statement.first


def assemble(fields: Mapping[str, str], headers: Mapping[str, str], body: bytes, max_bytes: int) -> Query:
    """Decode the body, find the statement and its data. Raises ClickHouseError.

    `fields` are the URL's parameters; `max_bytes` bounds the decoded body. A body is a form only when it is
    multipart/form-data: curl labels SQL as urlencoded, and a ClickHouse server ignores that label.
    """
    body = decode(body, headers.get("content-encoding", ""), max_bytes)
    if fields.get("decompress") in _TRUE and body:
        body = decode_blocks(body, max_bytes)
    tables: list[ExternalTable] = []
    content_type = headers.get("content-type", "")
    if content_type.lower().startswith("multipart/form-data") and body:
        fields, tables = _form(fields, content_type, body)
        body = b""
    options = _options(fields, headers, frozenset(table.name for table in tables))
    text = fields.get("query", "").encode("utf-8", "surrogateescape")
    prefix = text + b"\n" if text and body else text
    visible = prefix + body[: SQL_MAX_BYTES + 1] if prefix or len(body) > SQL_MAX_BYTES else body
    statement = parse(visible)
    if statement.insert_format is None:
        return Query(options, statement, visible, [], tables)
    data = [visible[statement.data_start :], body[len(visible) - len(prefix) :]]
    return Query(options, statement, visible[: statement.head_end], [piece for piece in data if piece], tables)


def quote(value: str) -> str:
    """A string literal of SQL."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def quote_name(name: str) -> str:
    """An identifier of SQL."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


def _options(fields: Mapping[str, str], headers: Mapping[str, str], tables: frozenset[str]) -> Options:
    settings: dict[str, str] = {}
    parameters: dict[str, str] = {}
    for name, value in fields.items():
        if name != "query" and not _is_text(name + value):
            raise ClickHouseError(Code.BAD_ARGUMENTS, "Only the query may have bytes that are not UTF-8")
        if name in _RESERVED or ((match := _EXTERNAL.fullmatch(name)) and match[1] in tables):
            continue
        if name.startswith("param_"):
            if not _PARAMETER.fullmatch(name):
                raise ClickHouseError(Code.BAD_ARGUMENTS, "Bad name of a query parameter")
            parameters[name.removeprefix("param_")] = value
        elif not _SETTING.fullmatch(name):
            raise ClickHouseError(Code.UNKNOWN_SETTING, "Unknown setting in the URL")
        else:
            settings[name] = value
    default_format = fields.get("default_format") or headers.get("x-clickhouse-format") or "TabSeparated"
    if not _FORMAT.fullmatch(default_format) or default_format.lower() == "dataframe":  # an object of the engine's API
        raise ClickHouseError(Code.UNKNOWN_FORMAT, "Unknown format")
    query_id = fields.get("query_id", "")
    if query_id and not _QUERY_ID.fullmatch(query_id):
        raise ClickHouseError(Code.BAD_ARGUMENTS, "query_id must be 1 to 256 printable ASCII characters")
    revision = _integer(fields, "client_protocol_version", 0, 0, 1 << 31)
    return Options(
        database=fields.get("database") or headers.get("x-clickhouse-database", ""),
        role=fields.get("role", ""),
        query_id=query_id,
        default_format=default_format,
        session=_session(fields),
        settings=settings,
        parameters=parameters,
        revision=revision if revision >= FIRST_REVISION else 0,
        must_buffer=fields.get("wait_end_of_query") in _TRUE,
        uses_blocks=fields.get("compress") in _TRUE,
        uses_http_compression=fields.get("enable_http_compression") in _TRUE,
        zlib_level=_integer(fields, "http_zlib_compression_level", 3, 1, 9),
    )


def _session(fields: Mapping[str, str]) -> Session | None:
    session_id = fields.get("session_id", "")
    if not session_id:
        return None
    if len(session_id) > 256:
        raise ClickHouseError(Code.BAD_ARGUMENTS, "session_id is longer than 256 characters")
    timeout_s = _integer(fields, "session_timeout", SESSION_TIMEOUT_S, 0, SESSION_TIMEOUT_MAX_S)
    return Session(session_id, timeout_s, fields.get("session_check") in _TRUE, fields.get("close_session") in _TRUE)


def _form(fields: Mapping[str, str], content_type: str, body: bytes) -> tuple[Mapping[str, str], list[ExternalTable]]:
    """A form's text fields are further parameters; its files are tables, and so is a text field with a structure."""
    merged = dict(fields)
    files: dict[str, bytes] = {}
    for part in multipart.parse(content_type, body):
        if part.filename is not None or f"{part.name}_structure" in fields or f"{part.name}_types" in fields:
            files[part.name] = part.data
        else:
            merged[part.name] = part.data.decode("utf-8", "surrogateescape")
    return merged, [_external_table(name, data, merged) for name, data in files.items()]


def _external_table(name: str, data: bytes, fields: Mapping[str, str]) -> ExternalTable:
    if not _IDENTIFIER.fullmatch(name):
        raise ClickHouseError(Code.BAD_ARGUMENTS, "Bad name of an external table")
    structure = fields.get(f"{name}_structure", "")
    if not structure:
        types = re.split(r",(?![^(]*\))", fields.get(f"{name}_types", ""))
        structure = ", ".join(f"_{number} {kind}" for number, kind in enumerate(types, 1))
    check_structure(structure.encode("utf-8", "surrogateescape"))
    data_format = fields.get(f"{name}_format", "TabSeparated")
    if not _FORMAT.fullmatch(data_format):
        raise ClickHouseError(Code.UNKNOWN_FORMAT, "Unknown format of an external table")
    return ExternalTable(name, structure, data_format, data)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # what was not UTF-8 came in as surrogates
        return False
    return True


def _integer(fields: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    text = fields.get(name, "")
    if not text:
        return default
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise ClickHouseError(Code.BAD_ARGUMENTS, f"{name} must be a number")
    return min(max(int(text), low), high)
