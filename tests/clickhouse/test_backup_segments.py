"""Segments that Redis' copy lists are in the backup, however long the copy took."""

import asyncio
import os
from pathlib import Path

import msgspec
import pytest

from clickhouse import backup
from clickhouse.segments import RETIRED, Shelf
from core import keys, manifest
from core.redis_client import Redis
from core.settings import Settings
from tests.support.archive_log import ArchiveLog

pytestmark = [pytest.mark.redis, pytest.mark.clickhouse]


async def test_a_segment_that_is_archived_while_redis_is_copied_is_in_the_backup(
    log: ArchiveLog, archive_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.sync.hset(keys.LOG, mapping={"id": "test", "shards": 1, "created_ms": 0})
    settings = msgspec.structs.replace(archive_settings, spill_dir=str(tmp_path / "spill"))
    shelf = Shelf(settings.spill_path, "test", 2**30)
    file = shelf.write(0, "events", 1, [(b"1-0", {b"h": b"x"})])
    copy_redis = backup._copy_redis

    async def slowly(client: Redis, settings: Settings, partial: Path, shards: int) -> None:
        await copy_redis(client, settings, partial, shards)
        shelf.retire([file])  # Redis' copy lists it; an hour passes
        os.utime(shelf.directory / (file + RETIRED), (0, 0))
        await asyncio.to_thread(shelf.expire)

    monkeypatch.setattr(backup, "_copy_redis", slowly)
    made = await backup._run(settings, tmp_path / "backups", is_incremental=False)
    names = [Path(one.path).name for one in made.files if one.path.startswith(manifest.SPILL)]
    assert file + RETIRED in names
    await asyncio.to_thread(shelf.expire)
    assert not list(shelf.directory.iterdir()), "the hold ends with the backup"
