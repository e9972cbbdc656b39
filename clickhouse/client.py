"""The way to ClickHouse: one lazily opened HTTP client per process, every call bounded in time.

Opened at the first use and kept: opening asks the server for its version and settings (three queries), and a process
may start before its ClickHouse does. After a failure the next call simply tries again.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import aiohttp
import pyarrow as pa
from clickhouse_connect.driver import create_async_client
from clickhouse_connect.driver.asyncclient import AsyncClient
from clickhouse_connect.driver.exceptions import ClickHouseError, Error, OperationalError

from core.errors import ArenacastError, Fatal, Retry

DATABASE = "arenacast"
"""Database of a URL that names none."""

_CONNECT_TIMEOUT_S = 5.0

_SILENCE_MAX_S = 48 * 3600.0
"""Bound of the library, beyond any that a call of ours names (`asyncio.timeout`): a long statement answers nothing
until its end, and one that we give up while it runs would run beside its own repeat."""

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

_TRANSIENT_CODES = frozenset(
    {
        60,  # UNKNOWN_TABLE: not migrated yet
        81,  # UNKNOWN_DATABASE: not migrated yet
        3, 159, 160, 202, 209, 210, 225, 236, 241, 242, 243, 252, 279, 285, 286, 319, 394, 425, 439, 473, 999,
    }
)  # fmt: skip
"""Timeouts, limits, memory, too many parts or queries, network, disk full, read-only replica, Keeper, unknown quorum
status: what an operator or time mends. The outcome of an insert that ended so is unknown."""


_TOO_LARGE_CODE = 396  # TOO_MANY_ROWS_OR_BYTES


class TooLarge(Fatal):
    """The result exceeds the bound that the query was given."""


class Target(NamedTuple):
    """Where ClickHouse is, taken from a URL."""

    interface: str
    host: str
    port: int
    username: str
    password: str
    database: str


def parse_target(url: str) -> Target:
    """Read `http(s)://user:password@host:port/database`. Raises Fatal when it is not such a URL."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Fatal("ARENACAST_CLICKHOUSE_URL: not a URL") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Fatal("ARENACAST_CLICKHOUSE_URL must be http(s)://user:password@host:port/database")
    return Target(
        parts.scheme,
        parts.hostname,
        port or (8443 if parts.scheme == "https" else 8123),
        unquote(parts.username or "default"),
        unquote(parts.password or ""),
        unquote(parts.path.strip("/")) or DATABASE,
    )


def translate(error: Exception) -> ArenacastError:
    """What an error of the client means to the caller: Retry, or Fatal when repeating cannot help.

    Only code and name are told: the server's text may quote the data that was being inserted.
    """
    if isinstance(error, Error) and error.code is not None:
        text = f"ClickHouse: error {error.code} {error.name or ''}".rstrip()
        if error.code == _TOO_LARGE_CODE:
            return TooLarge(text)
        return Retry(text) if error.code in _TRANSIENT_CODES else Fatal(text)
    if isinstance(error, OperationalError | aiohttp.ClientError | OSError | TimeoutError):
        return Retry(f"ClickHouse does not answer: {type(error).__name__}")
    if isinstance(error, pa.ArrowException):  # the stream broke off; a table is given whole or not at all
        return Retry(f"ClickHouse: broken answer: {type(error).__name__}")
    return Fatal(f"ClickHouse client: {type(error).__name__}")


@asynccontextmanager
async def _bounded(timeout_s: float) -> AsyncIterator[None]:
    """Bound a call in time, and tell its errors in our terms.

    A cancellation that meets the library's clean-up after an error is swallowed there (clickhouse-connect 1.12.0,
    `AsyncClient._initialize`), and the error raised; whoever cancelled would wait for ever for a task that goes on.
    """
    task = asyncio.current_task()
    assert task is not None
    cancelling = task.cancelling()
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except (ClickHouseError, aiohttp.ClientError, pa.ArrowException, OSError, TimeoutError) as error:
        if task.cancelling() > cancelling:
            raise asyncio.CancelledError from error
        raise translate(error) from error


class ClickHouse:
    """One process's access to one database. `database=""` selects none, for creating it."""

    def __init__(
        self, url: str, *, timeout_s: float = 30.0, connections_max: int = 8, database: str | None = None
    ) -> None:
        """Opens nothing. `timeout_s` bounds every call that does not name its own bound."""
        target = parse_target(url)
        self._target = target if database is None else target._replace(database=database)
        self._timeout_s = timeout_s
        self._connections_max = connections_max
        self._client: AsyncClient | None = None
        self._opening = asyncio.Lock()

    async def query(
        self,
        sql: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
        formats: Mapping[str, str] | None = None,
    ) -> Sequence[Sequence[Any]]:
        """Rows of a SELECT. `{name:Type}` in `sql` takes `parameters`; `formats` maps a column to its Python format."""
        bound_s = timeout_s or self._timeout_s
        async with _bounded(bound_s):
            result = await (await self._opened()).query(
                sql,
                parameters=dict(parameters or {}),
                column_formats=dict(formats or {}),
                settings={"max_execution_time": bound_s},  # so that the server stops working, too
            )
        return result.result_rows

    async def arrow(
        self,
        sql: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> pa.Table:
        """Rows of a SELECT as an Arrow table, strings as bytes: for many rows, or large ones.

        Raises TooLarge when `settings` bound the result (`max_result_bytes`) and it exceeds that.
        """
        bound_s = timeout_s or self._timeout_s
        async with _bounded(bound_s):
            client = await self._opened()
            return await client.query_arrow(
                sql,
                parameters=dict(parameters or {}),
                settings=_known(client, {"max_execution_time": bound_s, **(settings or {})}),
                use_strings=False,
            )

    async def command(
        self,
        sql: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Run a statement that returns nothing of interest."""
        async with _bounded(timeout_s or self._timeout_s):
            client = await self._opened()
            await client.command(sql, parameters=dict(parameters or {}), settings=_known(client, settings or {}))

    async def insert(
        self, table: str, columns: Sequence[str], body: bytes, settings: Mapping[str, Any], *, timeout_s: float
    ) -> None:
        """Insert an Arrow file in one request. After Retry the outcome is unknown: the rows may be there, or come."""
        async with _bounded(timeout_s):
            client = await self._opened()
            await client.raw_insert(table, columns, body, _known(client, settings), "Arrow")

    async def check(self) -> str:
        """For readiness: "" when a query is answered, else what is wrong."""
        try:
            await self.query("SELECT 1", timeout_s=2.0)
        except ArenacastError as error:
            return str(error)
        return ""

    async def close(self) -> None:
        """Close the connections; a later call opens them again."""
        client, self._client = self._client, None
        if client is not None:
            with suppress(ClickHouseError, aiohttp.ClientError, OSError):
                await client.close()

    async def _opened(self) -> AsyncClient:
        async with self._opening:
            if self._client is None:
                target = self._target
                self._client = await create_async_client(
                    interface=target.interface,
                    host=target.host,
                    port=target.port,
                    username=target.username,
                    password=target.password,
                    database=target.database or "__default__",
                    connector_limit=self._connections_max,
                    connector_limit_per_host=self._connections_max,
                    autogenerate_session_id=False,  # a session allows one query at a time
                    compress=False if target.host in _LOOPBACK else "lz4",
                    connect_timeout=_CONNECT_TIMEOUT_S,
                    send_receive_timeout=_SILENCE_MAX_S,
                )
        return self._client


def _known(client: AsyncClient, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those the server does not know, which it would refuse: `deduplicate_insert` exists since 26.2,
    and before it `insert_deduplicate`, which we send too, said the same."""
    return {name: value for name, value in settings.items() if name in client.server_settings}
