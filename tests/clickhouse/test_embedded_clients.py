"""clickhouse-connect, sync and async, against the embedded ClickHouse."""

import secrets
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from ipaddress import IPv6Address
from typing import Any
from uuid import UUID

import clickhouse_connect
import pyarrow
import pytest
from clickhouse_connect.driver.asyncclient import AsyncClient
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError, StreamFailureError
from clickhouse_connect.driver.external import ExternalData

from tests.support.clickhouse_server import ClickHouseServer

pytestmark = pytest.mark.clickhouse

COLUMNS = ["a", "s", "d", "l", "ip"]
DDL = (
    "(a UInt64, s LowCardinality(String), d DateTime64(3), l Array(Nullable(Int8)), ip IPv6)"
    " ENGINE MergeTree ORDER BY a"
)
ROWS_MANY = 300_000
"""clickhouse-connect sends them as several blocks, and each block as a frame of its own."""


def rows(number: int) -> list[list[Any]]:
    """Columns of a table."""
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    return [
        list(range(number)),
        [f"s{value % 3}" for value in range(number)],
        [moment] * number,
        [[1, None]] * number,
        [IPv6Address("::1")] * number,
    ]


def arguments(server: ClickHouseServer, **more: Any) -> dict[str, Any]:
    return {"host": "127.0.0.1", "port": server.port, "password": server.password, **more}


@pytest.fixture(params=[False, "lz4", "zstd", "gzip"], ids=str)
def client(clickhouse_server: ClickHouseServer, request: pytest.FixtureRequest) -> Iterator[Client]:
    client = clickhouse_connect.get_client(**arguments(clickhouse_server, compress=request.param))
    yield client
    client.close()


@pytest.fixture(params=[False, "lz4"], ids=str)
async def async_client(
    clickhouse_server: ClickHouseServer, request: pytest.FixtureRequest
) -> AsyncIterator[AsyncClient]:
    client = await clickhouse_connect.get_async_client(**arguments(clickhouse_server, compress=request.param))
    yield client
    await client.close()


@pytest.fixture
def table(clickhouse_server: ClickHouseServer) -> Iterator[str]:
    name = f"t_{secrets.token_hex(6)}"
    clickhouse_server.query(f"CREATE TABLE {name} {DDL}")
    yield name
    clickhouse_server.query(f"DROP TABLE {name}")


def test_no_row_of_a_large_insert_is_lost(client: Client, table: str) -> None:
    result = client.insert(table, [list(range(ROWS_MANY))] * 2, ["a", "d"], column_oriented=True)
    assert result.written_rows == ROWS_MANY
    assert client.query(f"SELECT count(), sum(a), uniqExact(a) FROM {table}").first_row == (
        ROWS_MANY, ROWS_MANY * (ROWS_MANY - 1) // 2, ROWS_MANY,
    )  # fmt: skip


def test_what_was_inserted_is_read_back(client: Client, table: str) -> None:
    client.insert(table, rows(3), COLUMNS, column_oriented=True)
    result = client.query(f"SELECT * FROM {table} WHERE s = {{s:String}} ORDER BY a", parameters={"s": "s1"})
    moment = datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None)
    assert [tuple(row) for row in result.result_rows] == [(1, "s1", moment, [1, None], IPv6Address("::1"))]
    assert result.column_names == tuple(COLUMNS)


def test_arrow_in_and_out(client: Client, clickhouse_server: ClickHouseServer) -> None:
    name = f"t_{secrets.token_hex(6)}"
    client.command(f"CREATE TABLE {name} (a Int64, s String) ENGINE MergeTree ORDER BY a")
    sent = pyarrow.table({"a": list(range(ROWS_MANY)), "s": [str(value) for value in range(ROWS_MANY)]})
    client.insert_arrow(name, sent)
    found = client.query_arrow(f"SELECT a, s FROM {name} ORDER BY a", use_strings=True)
    assert found.to_pydict() == sent.to_pydict()
    clickhouse_server.query(f"DROP TABLE {name}")


def test_types_survive(client: Client) -> None:
    uuid = UUID("12345678-1234-5678-1234-567812345678")
    row = client.query(
        "SELECT 1::UInt256, -1::Int8, toUUID({u:String}), 1.25::Decimal(9, 2), map('a', 1), (1, 'x'), NULL, [[1], []]",
        parameters={"u": str(uuid)},
    ).first_row
    assert row is not None
    assert list(row) == [1, -1, uuid, Decimal("1.25"), {"a": 1}, (1, "x"), None, [[1], []]]


def test_stream_of_blocks(client: Client) -> None:
    with client.query_row_block_stream("SELECT number FROM numbers(1000000)") as stream:
        assert sum(len(block) for block in stream) == 1_000_000


def test_error_before_and_in_a_result(client: Client) -> None:
    with pytest.raises(DatabaseError, match="UNKNOWN_TABLE"):
        client.query("SELECT * FROM nothing")
    with (
        pytest.raises((StreamFailureError, DatabaseError), match="throwIf"),
        client.query_rows_stream("SELECT throwIf(number = 3000000) FROM numbers(10000000)") as stream,
    ):
        for _ in stream:
            pass
    assert client.command("SELECT 1") == 1


def test_session_of_the_client(client: Client) -> None:
    client.command("CREATE TEMPORARY TABLE mine (a UInt8)")
    client.insert("mine", [[1], [2]], ["a"])
    assert client.command("SELECT sum(a) FROM mine") == 3


def test_external_data(client: Client) -> None:
    data = ExternalData(file_name="people.csv", data=b"ann,1\nbob,2\n", fmt="CSV", structure="name String, age UInt8")
    assert client.query("SELECT sum(age) FROM people", external_data=data).first_row == (3,)


def test_both_codecs_agree(clickhouse_server: ClickHouseServer, table: str) -> None:
    client = clickhouse_connect.get_client(**arguments(clickhouse_server, compress="lz4"))
    client.raw_insert(table, ["a"], b"\n".join(b'{"a": %d}' % value for value in range(1000)), fmt="JSONEachRow")
    assert client.raw_query(f"SELECT count() FROM {table}", fmt="CSV") == b"1000\n"
    client.close()


async def test_async_client(async_client: AsyncClient, table: str) -> None:
    await async_client.insert(table, [list(range(ROWS_MANY))] * 2, ["a", "d"], column_oriented=True)
    assert await async_client.command(f"SELECT uniqExact(a) FROM {table}") == ROWS_MANY
    count = 0
    async with await async_client.query_row_block_stream(f"SELECT a FROM {table}") as stream:
        async for block in stream:
            count += len(block)
    assert count == ROWS_MANY
    with pytest.raises(DatabaseError, match="SYNTAX_ERROR"):
        await async_client.query("SELEC 1")
