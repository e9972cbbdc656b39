"""What tokens cannot cover is looked up: a log that Redis set back, a token that may be forgotten."""

import pytest

from clickhouse.reading import Limits, Stuck
from clickhouse.writer import BATCHES_SAFE
from core import keys
from core.position import EntryId
from core.updates import Prediction
from tests.support.archive_log import EVERYTHING, ArchiveLog
from tests.support.crashing_writer import Crash, CrashingWriter, crash
from tests.support.rounds import a_round

pytestmark = [pytest.mark.redis, pytest.mark.clickhouse]


async def test_a_commit_lost_by_redis_does_not_duplicate(log: ArchiveLog) -> None:
    """Redis rolled back behind a commit: rows are there that no plan explains, under tokens nobody knows."""
    log.vote(10)
    await log.archive(limits=Limits(4, 2**30))
    log.sync.delete(keys.archive(0, "events"))
    log.vote(5)
    await log.archive(limits=Limits(7, 2**30))
    await log.assert_exact()


async def test_a_torn_insert_whose_plan_was_lost_is_completed_and_its_aggregate_computed_anew(log: ArchiveLog) -> None:
    log.vote(6, "p1")
    log.vote(6, "p2")
    await log.archive()
    log.sync.delete(keys.archive(0, "events"))
    await log.clickhouse.command("DELETE FROM votes WHERE poll_id = 'p2' AND option_id = 'a'")
    await log.clickhouse.command("TRUNCATE TABLE votes_per_minute_store")
    await log.archive()
    await log.assert_exact()


async def test_an_aggregate_can_be_computed_anew_more_than_once(log: ArchiveLog) -> None:
    """The second time its rows are equal to those of the first, and must not be taken for a repeat."""
    log.vote(6)
    await log.archive()
    for _ in range(2):
        log.sync.delete(keys.archive(0, "events"))
        await log.archive()
        await log.assert_exact()


async def test_a_redo_that_may_be_forgotten_looks_instead_of_trusting_its_token(log: ArchiveLog) -> None:
    log.vote(8)
    await crash(log, "before commit")
    for table in ("votes", "votes_per_minute_store"):  # other inserts pushed the token out of the window
        await log.clickhouse.command(f"ALTER TABLE {table} MODIFY SETTING non_replicated_deduplication_window = 0")
        await log.clickhouse.command(f"ALTER TABLE {table} MODIFY SETTING non_replicated_deduplication_window = 10000")
    log.sync.hincrby(keys.archive(1, "events"), "batches", BATCHES_SAFE)
    await log.archive()
    await log.assert_exact()


async def test_the_same_forgotten_token_would_duplicate_without_looking(log: ArchiveLog) -> None:
    """Negative control of the test above."""
    log.vote(8)
    await crash(log, "before commit")
    await log.clickhouse.command("ALTER TABLE votes MODIFY SETTING non_replicated_deduplication_window = 0")
    with pytest.raises(Stuck, match="votes lacks 0 and repeats 8"):
        await log.archive()


async def test_a_new_log_is_not_taken_for_one_that_was_rolled_back(log: ArchiveLog) -> None:
    """Redis lost altogether while ClickHouse has all its rows: the new log's entries are all new."""
    log.vote(4)
    await log.archive()
    log.sync.delete(keys.archive(0, "events"), keys.events(0))
    log.vote(3)
    writer, batch = await log.taken_over()
    assert batch.first > writer._careful_until
    await writer.write(batch)
    await log.assert_exact()


async def test_facts_that_a_rolled_back_consumer_gives_again_are_stored_once(log: ArchiveLog) -> None:
    """The same inputs under another epoch and with other batch boundaries."""
    facts = [Prediction(ms, 0, 3, "m", "1", ms, 0.5, "mr12", ms) for ms in (10, 20, 30)]
    rounds = [a_round(ms, ms, "team1") for ms in (10, 20, 30)]
    log.update("20-0", *facts[:2], *rounds[:2])
    log.update("30-0", facts[2], rounds[2])
    await log.archive("updates")
    log.sync.delete(keys.archive(0, "updates"), keys.updates(0))
    log.update("30-0", *facts, *rounds, epoch=2)
    log.update("40-0", Prediction(40, 0, 3, "m", "1", 40, 0.5, "mr12", 40), epoch=2)
    await log.archive("updates")
    assert await log.rows("SELECT round_no FROM predictions ORDER BY 1") == [(10,), (20,), (30,), (40,)]
    assert await log.rows("SELECT count(), (SELECT count() FROM round_metrics) FROM rounds") == [(3, 3)]


async def test_facts_whose_inputs_were_lost_do_not_disturb_a_redo(log: ArchiveLog) -> None:
    """Rows of a rolled back past may lie between those of a plan: neither missing nor repeated."""
    log.update("15-0", Prediction(15, 0, 3, "m", "1", 15, 0.5, "mr12", 15))
    await log.archive("updates")
    log.sync.delete(keys.archive(0, "updates"), keys.updates(0))
    log.update("20-0", *(Prediction(ms, 0, 3, "m", "1", ms, 0.5, "mr12", ms) for ms in (10, 20)), epoch=2)
    writer = log.writer("updates", CrashingWriter)
    assert isinstance(writer, CrashingWriter)
    writer.crash_at = "before commit"
    await writer.take_over()
    writer._careful_until = EntryId(0, 0)
    batch = await writer.read(EVERYTHING)
    assert batch is not None
    with pytest.raises(Crash):
        await writer.write(batch)
    await log.archive("updates")
    assert await log.rows("SELECT round_no FROM predictions ORDER BY 1") == [(10,), (15,), (20,)]
