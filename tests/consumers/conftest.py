"""The archive consumer is tested with the same servers and databases as what it calls."""

from collections.abc import AsyncIterator

import pytest

from clickhouse.client import ClickHouse
from core.settings import Settings
from tests.clickhouse.conftest import archive_settings, clickhouse, database_url, log
from tests.support.books import Books

__all__ = ["archive_settings", "books", "clickhouse", "database_url", "log"]


@pytest.fixture
async def books(archive_settings: Settings, clickhouse: ClickHouse) -> AsyncIterator[Books]:
    """An empty log with its archive."""
    found = Books(archive_settings, clickhouse)
    yield found
    await found.close()
