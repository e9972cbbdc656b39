"""Migrated databases at the price of a copy.

Migrating takes a second of processor time, and a run of the tests needs hundreds of migrated, empty databases. So one
is migrated and backed up per test process, and every other one is restored from that: tests/clickhouse/test_migrate.py
is where migrations themselves are tested.
"""

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clickhouse.analysts import analysts_database
from clickhouse.client import DATABASE
from clickhouse.migrate import migrate
from core.settings import Settings
from tests.support.clickhouse_server import ClickHouseServer

_NAME = "migrated"


class Schema:
    """A backup of a database that was migrated and never used."""

    def __init__(self, server: ClickHouseServer) -> None:
        """Migrate a database on `server` and back it up there. Not within a running event loop."""
        asyncio.run(migrate(Settings(data_dir=server.directory.parent, clickhouse_url=server.target(_NAME))))
        self._files: Path = server.backups / _NAME
        both = ", ".join(f"DATABASE `{name}`" for name in (_NAME, analysts_database(_NAME)))
        server.query(f"BACKUP {both} TO Disk('backups', '{_NAME}')")

    def make(self, server: ClickHouseServer, database: str = DATABASE) -> None:
        """Make a migrated database, which must not be there yet, on any server that runs."""
        files = server.backups / _NAME
        if not files.exists():
            shutil.copytree(self._files, files)
        pairs = ((_NAME, database), (analysts_database(_NAME), analysts_database(database)))
        both = ", ".join(f"DATABASE `{name}` AS `{copy}`" for name, copy in pairs)
        server.query(f"RESTORE {both} FROM Disk('backups', '{_NAME}')")

    @contextmanager
    def lent(self, server: ClickHouseServer, database: str) -> Iterator[None]:
        """The same, dropped at the end."""
        self.make(server, database)
        try:
            yield
        finally:
            for name in (analysts_database(database), database):
                server.query(f"DROP DATABASE IF EXISTS `{name}`")
