"""Problems: the one shape of every error."""

from collections.abc import AsyncIterator

import httpx
import msgspec
import pytest
import pytest_asyncio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from core.errors import Retry
from core.problem import HANDLERS, ITEM_ERRORS_MAX, ItemError, Problem, unavailable


async def raise_problem(request: Request) -> Response:
    raise Problem(422, "two of three", errors=[ItemError(1, "$.option", "unknown option")], headers={"X-A": "b"})


async def raise_retry(request: Request) -> Response:
    raise Retry("Redis: ConnectionError: redis.internal:6379 refused")


async def raise_bug(request: Request) -> Response:
    raise RuntimeError("secret text of a library")


ROUTES = [Route("/problem", raise_problem), Route("/retry", raise_retry), Route("/bug", raise_bug)]


@pytest_asyncio.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = Starlette(routes=ROUTES, exception_handlers=HANDLERS)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def test_problem_is_rfc_9457(client: httpx.AsyncClient) -> None:
    answer = await client.get("/problem")
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert answer.headers["X-A"] == "b"
    assert answer.json() == {
        "type": "about:blank",
        "title": "Unprocessable Content",
        "status": 422,
        "detail": "two of three",
        "errors": [{"index": 1, "path": "$.option", "reason": "unknown option"}],
    }


def test_problem_without_items_has_no_errors() -> None:
    assert "errors" not in msgspec.json.decode(Problem(404, "no such poll").body)


def test_item_errors_are_bounded() -> None:
    errors = [ItemError(i, "$", "x") for i in range(10_000)]
    assert len(msgspec.json.decode(Problem(422, "x", errors=errors).body)["errors"]) == ITEM_ERRORS_MAX


async def test_dependency_that_is_away_is_503_with_retry_after_and_says_no_host(client: httpx.AsyncClient) -> None:
    answer = await client.get("/retry")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "redis" not in answer.text


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("POST", "/problem", 405)])
async def test_starlettes_own_errors_have_the_same_shape(
    client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    answer = await client.request(method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json()["status"] == status


async def test_bug_is_a_plain_500(client: httpx.AsyncClient) -> None:
    answer = await client.get("/bug")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret" not in answer.text


@pytest.mark.parametrize("status", [400, 401, 404, 409, 413, 415, 422, 429, 500, 503])
def test_every_status_of_the_contract_has_a_title(status: int) -> None:
    assert msgspec.json.decode(Problem(status, "x").body)["title"]


def test_text_of_a_client_with_a_lone_surrogate_does_not_break_the_answer() -> None:
    body = Problem(422, "bad \ud800", errors=[ItemError(0, "$.\udfff", "\ud800")]).body
    assert msgspec.json.decode(body)["status"] == 422


def test_unavailable_says_when_to_come_back() -> None:
    assert unavailable("full", 7).response().headers["retry-after"] == "7"
