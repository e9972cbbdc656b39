"""The schema may change while the archive works."""

import asyncio
from pathlib import Path

import pytest

from clickhouse.migrate import Migration, migrate, read_migrations
from core.settings import Settings
from tests.support.archive_log import EVERYTHING, ArchiveLog
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.redis, pytest.mark.clickhouse]

LATER = Migration(
    9999,
    "region",
    """
ALTER TABLE votes {on_cluster} ADD COLUMN IF NOT EXISTS region LowCardinality(String) DEFAULT 'none';

CREATE TABLE IF NOT EXISTS regions_store {on_cluster}
(region LowCardinality(String), votes SimpleAggregateFunction(sum, UInt64))
ENGINE = {replicated}AggregatingMergeTree
ORDER BY region
SETTINGS {deduplication}, {durability};

CREATE MATERIALIZED VIEW IF NOT EXISTS regions_feed {on_cluster} TO regions_store AS
SELECT region, count() AS votes FROM votes GROUP BY region;
""",
)


async def test_a_column_and_a_view_are_added_between_two_inserts(
    log: ArchiveLog, database_url: str, tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path, clickhouse_url=database_url)
    migrated = asyncio.Event()

    async def load() -> int:
        """Archive batches until some came after the migration; how many votes there were before it for certain."""
        writer = log.writer()
        await writer.take_over()
        before, after = 0, 0
        while after < 3:
            log.vote(40)
            batch = await writer.read(EVERYTHING)
            assert batch is not None
            if migrated.is_set():
                after += 1
            else:
                before = log.votes
            await writer.write(batch)
        return before

    loading = asyncio.create_task(load())
    await wait_until(lambda: log.votes >= 120, 30.0, "some batches are archived")
    await migrate(settings, known=[*read_migrations(), LATER])
    migrated.set()
    before = await loading
    assert before > 0
    await log.assert_exact()
    assert await log.rows("SELECT region, count() FROM votes GROUP BY region") == [("none", log.votes)]
    ((counted,),) = await log.rows("SELECT sum(votes) FROM regions_store")
    assert 120 <= counted <= log.votes, "a new view sees what comes after it"
