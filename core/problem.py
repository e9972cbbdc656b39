"""RFC 9457 problems: the one shape of every error a client sees.

`application/problem+json` with `type`, `title`, `status`, `detail`, and `errors: [{"index", "path", "reason"}]` where
there are items. No payload, no stack trace, no library's text leaves the server.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus

import msgspec
from msgspec import UNSET, Struct, UnsetType
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from core.errors import ArenacastError, Retry
from core.logs import get as get_log

ITEM_ERRORS_MAX = 100
"""Item errors told in one answer: enough to mend a body, and a bound on what a bad body makes us write."""


class ItemError(Struct, frozen=True):
    """What is wrong with one item of a body."""

    index: int
    path: str
    reason: str


class _Body(Struct):
    type: str
    title: str
    status: int
    detail: str
    errors: Sequence[ItemError] | UnsetType = UNSET


_RENAMED = {413: "Content Too Large", 422: "Unprocessable Content"}
"""As RFC 9110 has them, and Python from 3.13 on: what we answer does not depend on the Python we run on."""


class Problem(ArenacastError):
    """An answer other than success. Raise it anywhere in a request."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: Sequence[ItemError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = errors
        self.headers = dict(headers or {})

    @property
    def title(self) -> str:
        """The status in words."""
        return _RENAMED.get(self.status) or HTTPStatus(self.status).phrase

    @property
    def body(self) -> bytes:
        """The problem as JSON."""
        shown = [ItemError(e.index, _encodable(e.path), _encodable(e.reason)) for e in self.errors[:ITEM_ERRORS_MAX]]
        return msgspec.json.encode(
            _Body("about:blank", self.title, self.status, _encodable(self.detail), shown or UNSET)
        )

    def response(self) -> Response:
        """The problem as an HTTP answer."""
        return Response(self.body, self.status, self.headers, "application/problem+json")


def _encodable(text: str) -> str:
    """`text` without lone surrogates: it may quote a client, and no body may break the answer about it."""
    return text.encode("utf-8", "replace").decode()


def unavailable(detail: str, retry_after_s: int = 1) -> Problem:
    """503 with Retry-After: repeat the same request, what did get stored counts as duplicates."""
    return Problem(503, detail, headers={"Retry-After": str(retry_after_s)})


async def on_problem(_request: Request, error: Exception) -> Response:
    """Exception handler for `Problem`."""
    assert isinstance(error, Problem)
    return error.response()


async def on_retry(_request: Request, error: Exception) -> Response:
    """Exception handler for `Retry`: a dependency is away. Its text goes to the log, not to the client."""
    get_log().warning("dependency unavailable", error=str(error))
    return unavailable("a dependency is unavailable, repeat the request").response()


async def on_http_exception(_request: Request, error: Exception) -> Response:
    """Exception handler for Starlette's own 404 and 405."""
    assert isinstance(error, HTTPException)
    return Problem(error.status_code, error.detail, headers=error.headers).response()


async def on_bug(request: Request, error: Exception) -> Response:
    """Last resort: logged here with its trace, a plain 500 for the client."""
    get_log().error("unhandled error", path=request.url.path, exc_info=error)
    return Problem(500, "internal error").response()


HANDLERS = {Problem: on_problem, Retry: on_retry, HTTPException: on_http_exception, Exception: on_bug}
"""For Starlette's `exception_handlers`."""
