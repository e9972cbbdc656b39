"""SQL text as far as a server must understand it before the engine does.

Pure. Three questions are answered here: where the inline data of an INSERT begins, which format the result has, and
whether the statement asks for something a client must not have. The engine in this process executes several
statements in one text and reads and writes the server's files (INFILE, OUTFILE, `file()`), as a local tool does; a
server must not.

The tokens follow ClickHouse's lexer closely (nested comments, heredocs, hex strings, typographic quotes): a
difference would let a statement hide from these checks. The engine's own classification is a second check, in
`execution`.
"""

import itertools
import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from clickhouse.embedded.errors import ClickHouseError, Code

SQL_MAX_BYTES = 1024 * 1024
"""Longest text looked at, which takes a second or two. The data of an INSERT does not count; the engine's own limit is
256 KiB unless a client raises it."""

_FORBIDDEN_CALLS = frozenset({
    b"file",  # as a scalar function it reads any file, and no grant covers it
    b"embeddedrocksdb",  # an engine that writes wherever it is told
    b"executable",  # runs programs
    b"python",  # reads objects of this process
})  # fmt: skip
_FORBIDDEN_CALLS_AS_WRITTEN = frozenset({b"disk"})
"""`disk(type = local, path = …)` makes a directory anywhere before it fails; `Disk('backups', …)` is for BACKUP."""

_SOURCE_KEYS = frozenset({b"DB", b"TABLE", b"HOST", b"PORT", b"SECURE", b"USER", b"PASSWORD"})
_STREAMABLE = frozenset({b"SELECT", b"WITH", b"FROM", b"("})

Kind = Literal["word", "quoted", "string", "open", "close", "semicolon", "other"]

_TOKEN = re.compile(
    rb"""
      (?P<skip> [ \t\n\r\f\v]+ | --[^\n]* | //[^\n]* | \#[ !][^\n]* )
    | (?P<comment> /\* )
    | (?P<string> '(?:[^'\\]|\\.|'')*' | [xX]'[0-9a-fA-F]*' | [bB]'[01]*'
                | \xe2\x80\x98(?:(?!\xe2\x80\x99).)*\xe2\x80\x99 )
    | (?P<quoted> "(?:[^"\\]|\\.|"")*" | `(?:[^`\\]|\\.|``)*` | \xe2\x80\x9c(?:(?!\xe2\x80\x9d).)*\xe2\x80\x9d )
    | (?P<heredoc> \$[^$]*\$ )
    | (?P<word> [A-Za-z0-9_$]+ )
    | (?P<open> [(\[{] )
    | (?P<close> [)\]}] )
    | (?P<semicolon> ; )
    | (?P<other> [,=+*<>%!?:|@]+ | . )
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_EDGE = re.compile(rb"/\*|\*/")
_BEFORE_DATA = re.compile(rb"(?:(?P<excess>;)|[ \t\f]*\r?\n?)")


class Statement(NamedTuple):
    """What is known of a statement."""

    first: bytes
    """First word in capitals, `(` for a parenthesised SELECT, empty when there is none."""
    output_format: str | None
    """Of a FORMAT clause at the end."""
    insert_format: str | None
    """Format of the data that follows the text; None when no data does."""
    head_end: int
    """INSERT with data: end of the text that the engine gets."""
    data_start: int
    """INSERT with data: where the data begins."""

    @property
    def is_streamable(self) -> bool:
        """Whether the engine can give the result in pieces."""
        return self.first in _STREAMABLE


def tokens(sql: bytes) -> Iterator[tuple[Kind, int, int]]:
    """(kind, start, end) of every token but space and comments."""
    position, length = 0, len(sql)
    while position < length:
        match = _TOKEN.match(sql, position)
        assert match is not None  # the last alternative takes any byte
        kind, end = match.lastgroup, match.end()
        if kind == "comment":
            end = _comment_end(sql, end)
        elif kind == "heredoc":
            closing = sql.find(match.group(), end)
            end = closing + len(match.group()) if closing >= 0 else position + 1
            yield "string" if closing >= 0 else "word", position, end
        elif kind != "skip":
            yield kind, position, end  # type: ignore[misc]  # the remaining groups are the kinds
        position = end


def parse(sql: bytes) -> Statement:
    """Look at one statement, with the beginning of the data behind it if it is an INSERT.

    Raises ClickHouseError for several statements, files of the server, and text that is too long to look at.
    """
    top = _top_level(sql[:SQL_MAX_BYTES])
    first, _, _ = next(top, (b"", 0, 0))
    if first == b"INSERT":
        insert = _parse_insert(sql, top)
        if insert is not None:
            return insert
    output_format = _output_format(sql, top)
    if len(sql) > SQL_MAX_BYTES:
        raise ClickHouseError(Code.SYNTAX_ERROR, f"Syntax error: Max query size exceeded ({SQL_MAX_BYTES} bytes)")
    return Statement(first, output_format, None, len(sql), len(sql))


def check_structure(structure: bytes) -> None:
    """Check that a list of columns (`a UInt8, b String`) stays inside the parentheses it is put into."""
    depth = 0
    for kind, _, _ in tokens(structure):
        depth += (kind == "open") - (kind == "close")
        if depth < 0 or kind == "semicolon":
            raise ClickHouseError(Code.BAD_ARGUMENTS, "Bad structure of an external table")
    if depth:
        raise ClickHouseError(Code.BAD_ARGUMENTS, "Bad structure of an external table")


def _top_level(sql: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(text in capitals, start, end) of the tokens outside of all brackets, checking every token on the way.

    A quoted name or a string is given as one quotation mark, what is in brackets as the opening one.
    """
    depth, is_over, has_dictionary = 0, False, False
    before = b""  # the token before, a quoted name without its quotes
    for kind, start, end in tokens(sql):
        text = sql[start:end]
        if kind == "semicolon":
            is_over = True
            continue
        if is_over:
            raise ClickHouseError(Code.SYNTAX_ERROR, "Syntax error (Multi-statements are not allowed)")
        if text == b"\0":
            raise ClickHouseError(Code.SYNTAX_ERROR, "Syntax error: a zero byte outside of a string")
        if text == b"(" and _is_forbidden(before):
            name = before.decode(errors="replace")
            raise ClickHouseError(Code.ACCESS_DENIED, f"{name}() is not available on the embedded server")
        if text == b"(" and before.upper() == b"SOURCE" and has_dictionary:
            _check_source(sql[end:])
        has_dictionary |= text.upper() == b"DICTIONARY"
        if text.upper() == b"OUTFILE" and before.upper() == b"INTO":
            raise ClickHouseError(Code.NOT_IMPLEMENTED, "INTO OUTFILE is not available over HTTP")
        depth -= kind == "close"
        if depth == 0 and kind != "close":
            yield b"'" if kind in ("quoted", "string") else text.upper(), start, end
        depth += kind == "open"
        before = text.strip(b'"`\xe2\x80\x9c\x9d') if kind == "quoted" else b"'" if kind == "string" else text


def _is_forbidden(name: bytes) -> bool:
    """Whether a name must not be called; `\\x66` in a quoted one may be any letter."""
    return name.lower() in _FORBIDDEN_CALLS or name in _FORBIDDEN_CALLS_AS_WRITTEN or b"\\x" in name


def _check_source(source: bytes) -> None:
    """Only tables may be a dictionary's source: others run commands and read files, or hide SQL in a string."""
    found = [(kind, source[start:end].upper()) for kind, start, end in itertools.islice(tokens(source), 40)]
    if found[:3] == [("word", b"NULL"), ("open", b"("), ("close", b")")]:
        return
    if found[:2] == [("word", b"CLICKHOUSE"), ("open", b"(")]:
        pairs = zip(found[2::2], found[3::2], strict=False)
        for (_, key), (value_kind, value) in pairs:
            if key == value == b")":
                return
            if key not in _SOURCE_KEYS or value_kind not in ("word", "string", "quoted"):
                break
    raise ClickHouseError(
        Code.ACCESS_DENIED, "A dictionary on the embedded server has SOURCE(CLICKHOUSE(TABLE … DB …)) and no other keys"
    )


def _parse_insert(sql: bytes, top: Iterator[tuple[bytes, int, int]]) -> Statement | None:
    """The statement if data follows its text, None if not (INSERT … SELECT, or a mistake)."""
    previous, previous_start, is_name = b"INSERT", 0, False
    for text, start, end in top:
        if previous == b"FORMAT" and not is_name and text[:1].isalpha():
            return _with_data(sql, text, sql[start:end], previous_start, end)
        is_name = previous in (b"INTO", b"TABLE", b"FUNCTION", b".")
        if not is_name:
            if text == b"VALUES":
                return _with_data(sql, text, b"Values", start, end)
            if text == b"INFILE" and previous == b"FROM":
                raise ClickHouseError(Code.NOT_IMPLEMENTED, "FROM INFILE is not available over HTTP")
            if text in (b"SELECT", b"WITH", b"WATCH"):
                return None
        previous, previous_start = text, start
    return None


def _with_data(sql: bytes, word: bytes, data_format: bytes, head_end: int, word_end: int) -> Statement:
    match = _BEFORE_DATA.match(sql, word_end)
    assert match is not None  # it matches the empty string
    if match["excess"] and word != b"VALUES":
        raise ClickHouseError(Code.SYNTAX_ERROR, "You have excessive ';' symbol before data for INSERT")
    return Statement(b"INSERT", None, data_format.decode(), head_end, match.end())


def _output_format(sql: bytes, top: Iterator[tuple[bytes, int, int]]) -> str | None:
    """The name in a FORMAT clause that ends the statement, or is followed by SETTINGS only."""
    found: str | None = None
    previous, in_settings = b"", False
    for text, start, end in top:
        if previous == b"FORMAT" and text[:1].isalpha():
            found, in_settings = sql[start:end].decode(), False
        elif text == b"SETTINGS":
            in_settings = True
        elif not in_settings:
            found = None
        previous = text
    return found


def _comment_end(sql: bytes, position: int) -> int:
    """End of a comment whose opening lies before `position`; comments nest."""
    depth = 1
    while depth:
        edge = _COMMENT_EDGE.search(sql, position)
        if edge is None:
            return len(sql)
        depth += 1 if edge.group() == b"/*" else -1
        position = edge.end()
    return position
