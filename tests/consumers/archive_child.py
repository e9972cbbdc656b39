"""An archive process for crash tests: it kills itself, as nobody could tell from outside when to.

    python -m tests.consumers.archive_child POINT [careless]

POINT is a step of the protocol, or `never`. `careless` is the negative control: without deduplication, and without
looking at what a redo did. Settings come from the environment, as for the real process.
"""

import asyncio
import os
import signal
import sys

from clickhouse import writer
from clickhouse.tables import Block, Table
from clickhouse.writer import Batch, Plan, Writer
from consumers import archive
from core import settings

POINTS = ("before plan", "after plan", "in insert", "between inserts", "before commit", "after commit", "redo inserted")

is_careless = sys.argv[2:] == ["careless"]
point = sys.argv[1] if __name__ == "__main__" else "never"  # POINTS is imported by the test


def reach(here: str) -> None:
    """Die without a word if this is the point."""
    if here == point:
        os.kill(os.getpid(), signal.SIGKILL)


class MortalWriter(Writer):
    """The real writer with a death wish."""

    async def _plan(self, plan: Plan) -> bytes:
        reach("before plan")
        text = await super()._plan(plan)
        reach("after plan")
        return text

    async def _insert(self, table: Table, rows: Block, token: str) -> None:
        if point == "in insert":
            loop = asyncio.get_running_loop()
            sending = asyncio.create_task(super()._insert(table, rows, token))
            sending.add_done_callback(lambda _: reach(point))  # at the latest
            loop.call_later(0.02, reach, point)
            await sending
        await super()._insert(table, rows, token)
        reach("between inserts")

    async def _verify(self, plan: Plan, batch: Batch) -> None:
        reach("redo inserted")
        if not is_careless:
            await super()._verify(plan, batch)

    async def _commit(self, plan: Plan, text: bytes, batch: Batch) -> None:
        reach("before commit")
        await super()._commit(plan, text, batch)
        reach("after commit")


if __name__ == "__main__":
    archive.Writer = MortalWriter  # type: ignore[attr-defined]
    if is_careless:
        writer.INSERT_SETTINGS = {
            "async_insert": 0,
            "deduplicate_insert": "disable",
            "insert_deduplicate": 0,
            "deduplicate_blocks_in_dependent_materialized_views": 0,
        }
    archive.run(settings.load())
