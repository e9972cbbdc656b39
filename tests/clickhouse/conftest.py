"""A migrated database of its own for every test, on the session's ClickHouse."""

import secrets
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import msgspec
import pytest
import redis

from clickhouse.client import ClickHouse
from core.redis_client import connect
from core.settings import Settings
from tests.support.archive_log import ArchiveLog
from tests.support.clickhouse_server import ClickHouseServer
from tests.support.migrated import Schema


@pytest.fixture
def database_url(clickhouse_url: str) -> str:
    """URL of a database that does not exist yet."""
    return urlsplit(clickhouse_url)._replace(path=f"/test_{secrets.token_hex(6)}").geturl()


@pytest.fixture
async def clickhouse(
    database_url: str, clickhouse_server: ClickHouseServer, schema: Schema
) -> AsyncIterator[ClickHouse]:
    """Client of a migrated, empty database, which is dropped afterwards."""
    client = ClickHouse(database_url)
    with schema.lent(clickhouse_server, urlsplit(database_url).path[1:]):
        yield client
        await client.close()


@pytest.fixture
def archive_settings(settings: Settings, database_url: str) -> Settings:
    """Settings with both servers, archiving without much delay."""
    return msgspec.structs.replace(settings, clickhouse_url=database_url, archive_linger_s=0.05, lease_ttl_s=1.0)


@pytest.fixture
async def log(redis_url: str, clickhouse: ClickHouse) -> AsyncIterator[ArchiveLog]:
    """One shard's logs on an empty Redis, archived to an empty database."""
    client = connect(Settings(redis_url=redis_url), connections_max=4)
    with redis.Redis.from_url(redis_url) as sync:
        yield ArchiveLog(sync, client, clickhouse)
    await client.aclose()
