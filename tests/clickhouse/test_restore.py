"""What a restore cuts off: everything that the restored log will give again, and what was made of it."""

import time

import pytest

from clickhouse.restore import cut
from core import keys
from core.position import EntryId
from core.updates import Message, Prediction, Update, encode_update
from tests.support.archive_log import ArchiveLog

pytestmark = [pytest.mark.redis, pytest.mark.clickhouse]


def batch(log: ArchiveLog, last: str, now_us: int) -> None:
    """The state consumer applied something up to here."""
    ms = int(last.partition("-")[0])
    messages = [Message("poll.p1", "tally", True, ms, 0, 1, b"{}", now_us - 5000, "c")]
    fact = Prediction(ms, 0, 3, "m", "1", 1, 0.5, "mr12", 5)
    encoded = encode_update(Update(1, EntryId(0, 1), EntryId(0, 0), now_us, messages, [fact]))
    log.sync.xadd(keys.updates(0), {"u": encoded}, id=last)


async def test_batches_after_the_last_restored_one_are_cut_off_and_facts_stay(log: ArchiveLog) -> None:
    """ClickHouse's copy is younger than Redis': it knows batches whose inputs will be applied again, in others."""
    now_us = int(time.time() * 1e6)
    log.vote(5, received_us=now_us)
    for number, age_min in enumerate((30, 20, 0, 0), 1):
        batch(log, f"{number}-0", now_us - age_min * 60_000_000)
    await log.archive("events")
    await log.archive("updates")
    log.sync.delete(keys.updates(0))
    for number in (1, 2):
        batch(log, f"{number}-0", now_us)
    await cut(log.client, log.clickhouse, 1)
    assert await log.rows("SELECT stream_ms FROM applied_batches ORDER BY 1") == [(1,), (2,)]
    assert await log.rows("SELECT sum(events) FROM latency WHERE kind = 'batch'") == [(2,)]
    assert await log.rows("SELECT count() FROM predictions") == [(4,)]
    assert await log.rows("SELECT sum(events) FROM latency WHERE kind = 'vote' AND stage = 'log'") == [(5,)]


async def test_what_the_log_lost_is_cut_off_with_its_latencies(log: ArchiveLog) -> None:
    now_us = int(time.time() * 1e6)
    log.vote(5, received_us=now_us - 60_000_000 * 3)
    kept = log.sync.xrevrange(keys.events(0), count=1)[0][0]
    log.vote(7, received_us=now_us)
    await log.archive()
    log.sync.delete(keys.events(0))
    log.sync.xadd(keys.events(0), {"h": "x"}, id=kept)
    assert await cut(log.client, log.clickhouse, 1) == 7
    assert await log.rows("SELECT count() FROM votes") == [(5,)]
    assert await log.rows("SELECT sum(events) FROM latency WHERE kind = 'vote' AND stage = 'log'") == [(5,)]
