"""Every entry once, whatever happened between the plan and the commit."""

import asyncio
import time
from collections.abc import Mapping

import msgspec
import pytest

from clickhouse import writer as module
from clickhouse.client import ClickHouse
from clickhouse.reading import Limits, Stuck
from clickhouse.tables import VOTES
from clickhouse.writer import Plan
from core import keys
from core.errors import ArenacastError, Fenced, Retry
from core.position import parse_entry_id
from tests.support.archive_log import EVERYTHING, ArchiveLog
from tests.support.crashing_writer import crash

pytestmark = [pytest.mark.redis, pytest.mark.clickhouse]

MONTH_US = 31 * 24 * 3600 * 1_000_000


async def test_votes_and_events_of_one_log_reach_their_tables(log: ArchiveLog) -> None:
    log.log_writer.poll("p1")
    log.vote(10)
    log.log_writer.event("m1", "1", "round_end", {"winner": "team1"}, round_no=3)
    await log.archive()
    await log.assert_exact()
    assert await log.rows("SELECT match_id, map_id, round_no, type, revision FROM match_events") == [
        ("m1", "1", 3, "round_end", 1)
    ]
    state = log.state()
    assert state.keys() == {"committed", "entries", "batches"}
    assert (state["entries"], state["batches"]) == ("12", "1")


async def test_the_position_shows_as_a_consumer_group_with_its_lag(log: ArchiveLog) -> None:
    log.vote(3)
    writer = await log.archive()
    log.vote(2)
    (group,) = log.sync.xinfo_groups(keys.events(0))
    assert group["name"] == b"archive"
    assert group["last-delivered-id"].decode() == str(writer.committed) == log.state()["committed"]
    assert (group["entries-read"], group["lag"]) == (3, 2)


@pytest.mark.parametrize("point", ["before plan", "after plan", "between inserts", "before commit", "after commit"])
async def test_a_crash_at_any_step_leaves_nothing_out_and_nothing_twice(log: ArchiveLog, point: str) -> None:
    log.vote(20)
    log.log_writer.event("m1", "1", "round_end", {})
    await crash(log, point)
    assert ("inflight" in log.state()) == (point in ("after plan", "between inserts", "before commit"))
    log.vote(5)
    await log.archive()
    await log.assert_exact()
    assert await log.rows("SELECT count() FROM match_events") == [(1,)]
    assert "inflight" not in log.state()


async def test_without_deduplication_the_same_crash_is_noticed(
    log: ArchiveLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: the tests above can fail, and a redo looks at what it did."""
    off: Mapping[str, str | int] = {
        "async_insert": 0,
        "deduplicate_insert": "disable",
        "insert_deduplicate": 0,
        "deduplicate_blocks_in_dependent_materialized_views": 0,
    }
    monkeypatch.setattr(module, "INSERT_SETTINGS", off)
    log.vote(20)
    await crash(log, "before commit")
    with pytest.raises(Stuck, match=r"20 rows, votes lacks 0 and repeats 20"):
        await log.archive()
    with pytest.raises(AssertionError):
        await log.assert_exact()
    assert "inflight" in log.state()


async def test_a_torn_insert_is_completed(log: ArchiveLog) -> None:
    """Two partitions, of which one arrived, in the raw table and in the target of its view."""
    now_us = int(time.time() * 1e6)
    log.vote(6)
    log.vote(4, received_us=now_us - MONTH_US)
    await crash(log, "after plan")
    plan = log.plan()
    batch = await log.writer()._rebuild(plan)
    at = VOTES.columns.index("received_at")
    older = [
        row for row in VOTES.rows(batch.rows.tables["votes"]) if int(str(row[at])) < (now_us - MONTH_US // 2) // 1000
    ]
    await log.writer()._insert(VOTES, older, plan.token(0, "events", "votes"))
    assert await log.rows("SELECT count() FROM votes") == [(4,)]
    await log.archive()
    await log.assert_exact()


async def test_a_clock_that_jumps_by_years_costs_nothing(log: ArchiveLog) -> None:
    """Forth and back within a batch: partitions of the future, and ids that go on all the same."""
    now_us = int(time.time() * 1e6)
    for years in (0, 3, -5, 60, 0, 300, -200):
        log.vote(4, received_us=max(1, now_us + 12 * years * MONTH_US))
    await crash(log, "before commit")
    log.vote(3)
    await log.archive()
    await log.assert_exact()


async def test_two_attempts_at_once_are_stored_once(log: ArchiveLog) -> None:
    """An attempt whose answer was lost may still run when the next one is sent."""
    log.vote(200)
    await crash(log, "after plan")
    plan = log.plan()
    writer = log.writer()
    batch = await writer._rebuild(plan)
    await asyncio.gather(*(writer._insert_all(plan, batch) for _ in range(4)))
    await log.archive()
    await log.assert_exact()


async def test_a_former_owner_can_neither_plan_nor_commit_nor_insert(log: ArchiveLog) -> None:
    log.vote(3)
    writer, batch = await log.taken_over()
    log.own()
    with pytest.raises(Fenced):
        await writer.write(batch)
    assert log.state() == {}
    with pytest.raises(Fenced):
        await writer._insert(VOTES, batch.rows.tables["votes"], "t")
    assert await log.rows("SELECT count() FROM votes") == [(0,)]


async def test_nothing_is_planned_over_a_plan_in_flight(log: ArchiveLog) -> None:
    log.vote(3)
    writer, batch = await log.taken_over()
    plan = Plan("0-0", "1-0", "2-0", 2, 0, 1, 1, 0)
    text = await writer._plan(plan)
    with pytest.raises(Retry, match="a plan is in flight"):
        await writer.write(batch)
    assert log.state()["inflight"].encode() == text


async def test_nothing_is_planned_from_another_position(log: ArchiveLog) -> None:
    log.vote(3)
    writer, batch = await log.taken_over()
    await log.archive()
    log.sync.set(keys.fence(0, "archive"), writer._token)  # as if a fencing token could repeat
    with pytest.raises(Retry, match="the position is not 0-0"):
        await writer.write(batch)
    await log.assert_exact()


async def test_only_the_plan_in_flight_can_be_committed(log: ArchiveLog) -> None:
    log.vote(3)
    writer, batch = await log.taken_over()
    plan = Plan("0-0", str(batch.first), str(batch.last), 3, batch.crc, batch.epoch, 1, 0)
    await writer._plan(plan)
    with pytest.raises(Retry, match="this plan is not in flight"):
        await writer._commit(plan, b"another", batch)
    assert "committed" not in log.state()


async def test_a_paused_owner_is_refused_at_its_commit(log: ArchiveLog) -> None:
    log.vote(3)
    writer, batch = await log.taken_over()
    plan = Plan("0-0", str(batch.first), str(batch.last), 3, batch.crc, batch.epoch, 1, 0)
    text = await writer._plan(plan)
    await writer._insert_all(plan, batch)
    await log.archive()
    with pytest.raises(Fenced):
        await writer._commit(plan, text, batch)
    await log.assert_exact()


async def test_entries_that_changed_under_a_plan_stop_the_log(log: ArchiveLog) -> None:
    log.vote(5)
    await crash(log, "after plan")
    first = log.sync.xrange(keys.events(0), count=1)[0][0]
    log.sync.xdel(keys.events(0), first)
    before = log.state()
    for _ in range(2):  # and it stays stopped
        with pytest.raises(Stuck, match=r"had 5 entries with CRC .* the log has 4"):
            await log.archive()
    assert log.state() == before
    assert await log.rows("SELECT count() FROM votes") == [(0,)]
    log.sync.hdel(keys.archive(0, "events"), "inflight")  # what an operator does when the entry is known to be lost
    await log.archive()
    assert await log.rows("SELECT count() FROM votes") == [(4,)]


async def test_a_plan_with_another_checksum_stops_the_log(log: ArchiveLog) -> None:
    log.vote(5)
    await crash(log, "after plan")
    plan = log.plan()
    other = msgspec.structs.replace(plan, crc=plan.crc ^ 1)
    log.sync.hset(keys.archive(0, "events"), "inflight", msgspec.json.encode(other))
    with pytest.raises(Stuck, match="CRC"):
        await log.archive()


async def test_a_plan_of_another_schema_is_left_to_its_version(log: ArchiveLog) -> None:
    log.vote(5)
    await crash(log, "after plan")
    plan = log.plan()
    other = msgspec.structs.replace(plan, schema=99)
    log.sync.hset(keys.archive(0, "events"), "inflight", msgspec.json.encode(other))
    with pytest.raises(Stuck, match="schema 99"):
        await log.archive()


async def test_an_undecodable_entry_is_buried_once_and_blocks_nothing(log: ArchiveLog) -> None:
    log.vote(2)
    bad = log.append_garbage()
    log.vote(2)
    await crash(log, "before commit")
    await log.archive()
    await log.assert_exact()
    ((_, letter),) = log.sync.xrange(keys.dead(0))
    assert letter[b"group"] == b"archive"
    assert letter[b"log"].decode() == keys.events(0)
    assert letter[b"id"].decode() == bad
    assert letter[b"d"] == b"{nonsense"
    assert letter[b"reason"]
    assert log.state()["entries"] == "5"


async def test_a_log_of_nothing_but_garbage_is_passed(log: ArchiveLog) -> None:
    for _ in range(3):
        log.append_garbage()
    await log.archive()
    assert log.sync.xlen(keys.dead(0)) == 3
    assert log.state()["entries"] == "3"


async def test_batches_respect_their_bounds(log: ArchiveLog) -> None:
    log.vote(25)
    await log.archive(limits=Limits(10, 2**30))
    await log.assert_exact()
    assert log.state()["batches"] == "3"
    log.vote(10)
    await log.archive(limits=Limits(1000, 1))  # a byte is exceeded by the first page already
    await log.assert_exact()
    assert log.state()["batches"] == "4"


async def test_a_batch_lies_within_one_epoch(log: ArchiveLog) -> None:
    await log.scripts.load()
    first = int(log.sync.hget(keys.epochs(0), "now"))
    log.vote(3)
    last = parse_entry_id(log.sync.xrevrange(keys.events(0), count=1)[0][0])
    log.sync.hset(keys.epochs(0), mapping={"now": first + 1, str(first + 1): str(last.next)})
    log.vote(4)
    await log.archive()
    await log.assert_exact()
    rows = await log.rows("SELECT stream_epoch, count() FROM votes GROUP BY 1 ORDER BY 1")
    assert rows == [(first, 3), (first + 1, 4)]


async def test_a_new_incarnation_of_redis_is_taken_over_before_anything_is_planned(log: ArchiveLog) -> None:
    log.vote(3)
    writer, batch = await log.taken_over()
    newer = int(log.sync.hget(keys.epochs(0), "now")) + 1
    log.sync.hset(keys.epochs(0), mapping={"now": newer, str(newer): "9999999999999-0"})
    with pytest.raises(Retry, match="a new epoch began"):
        await writer.write(batch)
    assert "inflight" not in log.state()
    await writer.take_over()
    await writer.write(batch)
    await log.assert_exact()


async def test_the_scripts_work_above_the_memory_limit(log: ArchiveLog) -> None:
    """Only what is archived can be trimmed: refusing the archive would keep a full Redis full."""
    log.vote(5)
    log.append_garbage()
    writer = log.writer()
    await writer.take_over()
    log.sync.config_set("maxmemory", 1)
    try:
        batch = await writer.read(EVERYTHING)
        assert batch is not None
        await writer.write(batch)
    finally:
        log.sync.config_set("maxmemory", 0)
    await log.assert_exact()


async def test_clickhouse_away_is_a_retry_and_exact_afterwards(log: ArchiveLog, free_port: object) -> None:
    log.vote(5)
    writer, batch = await log.taken_over()
    there = writer._clickhouse
    writer._clickhouse = ClickHouse(f"http://127.0.0.1:{free_port()}/x")  # type: ignore[operator]
    with pytest.raises(Retry):
        await writer.write(batch)
    with pytest.raises(Retry):
        await writer.take_over()
    writer._clickhouse = there
    await writer.take_over()
    await log.assert_exact()


async def test_a_failing_view_holds_the_log_until_it_is_mended(log: ArchiveLog) -> None:
    log.vote(5)
    await log.clickhouse.command("RENAME TABLE votes_per_minute_store TO elsewhere")
    with pytest.raises(ArenacastError):
        await log.archive()
    await log.clickhouse.command("RENAME TABLE elsewhere TO votes_per_minute_store")
    await log.archive()
    await log.assert_exact()


def test_a_token_names_exactly_these_entries() -> None:
    plan = Plan("0-0", "1-0", "2-0", 5, 7, 1, 1, 0)
    others = [
        msgspec.structs.replace(plan, **change)
        for change in ({"epoch": 2}, {"first": "1-1"}, {"last": "3-0"}, {"count": 4}, {"crc": 8}, {"schema": 2})
    ]
    tokens = {item.token(0, "events", "votes") for item in [plan, *others]}
    tokens |= {plan.token(1, "events", "votes"), plan.token(0, "updates", "votes"), plan.token(0, "events", "x")}
    assert len(tokens) == 10
    assert plan.token(0, "events", "votes") == "votes:events:0:1:1-0:2-0:5:00000007:1"
