"""Errors are named after what the caller does, and say nothing of the data."""

import asyncio
from collections.abc import Callable

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError

from clickhouse.client import ClickHouse, Target, parse_target, translate
from core.errors import Fatal, Retry

pytestmark = pytest.mark.clickhouse


def test_a_url_is_taken_apart() -> None:
    url = "https://us%20er:p%40ss%2Fword@ch.example:9443/arena"
    assert parse_target(url) == Target("https", "ch.example", 9443, "us er", "p@ss/word", "arena")
    assert parse_target("http://h") == Target("http", "h", 8123, "default", "", "arenacast")
    assert parse_target("https://h/").port == 8443
    assert parse_target("http://[::1]:8/x").host == "::1"


@pytest.mark.parametrize("url", ["", "tcp://h:9000/x", "http://", "http://h:port/x", "http://[::1/x"])
def test_no_url_is_fatal(url: str) -> None:
    with pytest.raises(Fatal, match="ARENACAST_CLICKHOUSE_URL"):
        parse_target(url)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DatabaseError("x", code=241, name="MEMORY_LIMIT_EXCEEDED"), Retry),
        (DatabaseError("x", code=252, name="TOO_MANY_PARTS"), Retry),
        (DatabaseError("x", code=60, name="UNKNOWN_TABLE"), Retry),
        (DatabaseError("x", code=62, name="SYNTAX_ERROR"), Fatal),
        (DatabaseError("x", code=516, name="AUTHENTICATION_FAILED"), Fatal),
        (OperationalError("connection reset"), Retry),
        (TimeoutError(), Retry),
        (ConnectionRefusedError(), Retry),
    ],
)
def test_errors_say_what_to_do(error: Exception, kind: type[Exception]) -> None:
    assert type(translate(error)) is kind


async def test_an_error_does_not_quote_the_data(clickhouse: ClickHouse) -> None:
    with pytest.raises(Fatal) as caught:
        await clickhouse.query("SELECT toUInt8({text:String})", {"text": "a voter's secret"})
    assert str(caught.value) == "ClickHouse: error 6 CANNOT_PARSE_TEXT"


async def test_a_slow_query_ends_in_time_and_is_a_retry(clickhouse: ClickHouse) -> None:
    with pytest.raises(Retry):
        await clickhouse.query("SELECT sleepEachRow(0.5) FROM numbers(20) SETTINGS max_block_size = 1", timeout_s=0.3)


async def test_an_unmigrated_database_is_a_retry(database_url: str) -> None:
    client = ClickHouse(database_url)
    with pytest.raises(Retry):
        await client.query("SELECT 1")
    assert "81" in await client.check()
    await client.close()


async def test_a_closed_client_opens_again(clickhouse: ClickHouse) -> None:
    assert await clickhouse.query("SELECT 1") == [(1,)]
    await clickhouse.close()
    assert await clickhouse.query("SELECT 1") == [(1,)]
    assert await clickhouse.check() == ""


async def test_a_call_that_is_cancelled_ends_wherever_the_cancellation_meets_it(free_port: Callable[[], int]) -> None:
    """Nobody listens: the library cleans up after the error, and the cancellation comes at each step of that."""
    client = ClickHouse(f"http://127.0.0.1:{free_port()}/x")
    outcomes = []
    for steps in range(60):
        call = asyncio.create_task(client.query("SELECT 1"))
        for _ in range(steps):
            await asyncio.sleep(0)
        was_asked = call.cancel()
        await asyncio.wait([call])
        outcomes.append((was_asked, call.cancelled()))
    assert {True, False} == {was_asked for was_asked, _ in outcomes}, "from the first step to beyond the last"
    assert all(is_cancelled == was_asked for was_asked, is_cancelled in outcomes)
