"""The archive consumer is tested with the same servers and databases as what it calls."""

from tests.clickhouse.conftest import archive_settings, clickhouse, database_url, log

__all__ = ["archive_settings", "clickhouse", "database_url", "log"]
