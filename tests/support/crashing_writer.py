"""A writer that ends at a point of its protocol, where a kill would."""

import pytest

from clickhouse.tables import Block, Table
from clickhouse.writer import Batch, Plan, Writer
from tests.support.archive_log import EVERYTHING, ArchiveLog


class Crash(Exception):
    """Ends a writer where a kill would."""


class CrashingWriter(Writer):
    """Ends before or after one step."""

    crash_at = ""

    async def _plan(self, plan: Plan) -> bytes:
        self._reach("before plan")
        text = await super()._plan(plan)
        self._reach("after plan")
        return text

    async def _insert(self, table: Table, rows: Block, token: str) -> None:
        await super()._insert(table, rows, token)
        self._reach("between inserts")

    async def _commit(self, plan: Plan, text: bytes, batch: Batch) -> None:
        self._reach("before commit")
        await super()._commit(plan, text, batch)
        self._reach("after commit")

    def _reach(self, point: str) -> None:
        if point == self.crash_at:
            raise Crash(point)


async def crash(log: ArchiveLog, point: str) -> None:
    """Write one batch, and end at a point of the protocol."""
    writer = log.writer(kind=CrashingWriter)
    assert isinstance(writer, CrashingWriter)
    writer.crash_at = point
    await writer.take_over()
    batch = await writer.read(EVERYTHING)
    assert batch is not None
    with pytest.raises(Crash):
        await writer.write(batch)
