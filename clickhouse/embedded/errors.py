"""Errors as ClickHouse tells them: a number, a text with the number's name, an HTTP status."""

import re
from enum import IntEnum
from typing import NamedTuple

from core.errors import ArenacastError


class Code(IntEnum):
    """ClickHouse's numbers for what this server itself refuses."""

    BAD_ARGUMENTS = 36
    CHECKSUM_DOESNT_MATCH = 40
    NOT_IMPLEMENTED = 48
    SYNTAX_ERROR = 62
    UNKNOWN_FORMAT = 73
    UNKNOWN_SETTING = 115
    READONLY = 164
    TOO_MANY_SIMULTANEOUS_QUERIES = 202
    SOCKET_TIMEOUT = 209
    QUERY_IS_TOO_LARGE = 223
    SESSION_NOT_FOUND = 372
    SESSION_IS_LOCKED = 373
    UNKNOWN_CODEC = 432
    ACCESS_DENIED = 497
    AUTHENTICATION_FAILED = 516
    UNKNOWN_EXCEPTION = 1002


# As a ClickHouse server maps them. Not from there: 202 and 223 for bounds of our own, 372 and 432.
_STATUS = {
    400: (6, 25, 26, 27, 36, 38, 41, 44, 53, 62, 72, 117, 118, 130, 131, 167, 168, 427, 432, 441, 675, 676),
    401: (194,),
    403: (192, 193, 497, 512, 516),
    404: (46, 47, 50, 56, 60, 63, 73, 78, 81, 115, 372, 511),
    408: (159,),
    413: (223,),
    501: (48,),
    503: (76, 202, 209, 439),
}
_STATUS_BY_CODE = {code: status for status, codes in _STATUS.items() for code in codes}

_CODE = re.compile(r"Code: (\d+)\. DB::Exception: ")
_VERSION = re.compile(r" \(version [0-9.]+\)")
_REPEATED_NAME = re.compile(r"( \([A-Z0-9_]+\))(?:\.\1)+$")
_STACK_TRACE = re.compile(r"[,.]? ?Stack trace.*|\n\n0\. .*", re.DOTALL)


class ClickHouseError(ArenacastError):
    """A refusal of ours, told as the engine would tell it."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


class Failure(NamedTuple):
    """What the client is told."""

    code: int
    status: int
    text: str


def failure(error: Exception, version: str) -> Failure | None:
    """The engine's or our own error as the client sees it; None for what must not be shown: a bug of ours."""
    if isinstance(error, ClickHouseError):
        return _failure(error.code, f"{error} ({error.code.name})", version)
    text = str(error)
    found = _CODE.search(text)
    if found is None:
        return None
    text = _STACK_TRACE.sub("", text[found.start() :]).rstrip()
    while text.startswith(found.group(), len(found.group())):  # the engine wraps some errors several times
        text = text[len(found.group()) :]
    text = _REPEATED_NAME.sub(r"\1", _VERSION.sub("", text))
    return _failure(int(found.group(1)), text[len(found.group()) :], version)


def internal(version: str) -> Failure:
    """What a client is told of a bug: that there is one."""
    return _failure(Code.UNKNOWN_EXCEPTION, "Internal error, see the server's log (UNKNOWN_EXCEPTION)", version)


def status_of(code: int) -> int:
    """HTTP status of an error code."""
    return _STATUS_BY_CODE.get(code, 500)


def _failure(code: int, message: str, version: str) -> Failure:
    return Failure(
        code, status_of(code), f"Code: {int(code)}. DB::Exception: {message} (version {version} (embedded))\n"
    )
