"""Every entry once, whatever happened between the plan and the commit."""

import asyncio
import time
from collections.abc import Mapping

import msgspec
import pytest

from clickhouse import writer as module
from clickhouse.client import ClickHouse
from clickhouse.reading import Limits, Stuck
from clickhouse.tables import VOTES, Block, Table
from clickhouse.writer import BATCHES_SAFE, Batch, Plan, Writer
from core import keys
from core.errors import ArenacastError, Fenced, Retry
from core.position import EntryId, parse_entry_id
from core.updates import MapState, PollState, Prediction, Round
from tests.support.archive_log import EVERYTHING, ArchiveLog

pytestmark = [pytest.mark.redis, pytest.mark.clickhouse]

MONTH_US = 31 * 24 * 3600 * 1_000_000


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
    plan = msgspec.json.decode(log.state()["inflight"], type=Plan)
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
    plan = msgspec.json.decode(log.state()["inflight"], type=Plan)
    writer = log.writer()
    batch = await writer._rebuild(plan)
    await asyncio.gather(*(writer._insert_all(plan, batch) for _ in range(4)))
    await log.archive()
    await log.assert_exact()


async def test_a_former_owner_can_neither_plan_nor_commit_nor_insert(log: ArchiveLog) -> None:
    log.vote(3)
    writer = log.writer()
    await writer.take_over()
    batch = await writer.read(EVERYTHING)
    assert batch is not None
    log.own()
    with pytest.raises(Fenced):
        await writer.write(batch)
    assert log.state() == {}
    with pytest.raises(Fenced):
        await writer._insert(VOTES, batch.rows.tables["votes"], "t")
    assert await log.rows("SELECT count() FROM votes") == [(0,)]


async def test_nothing_is_planned_over_a_plan_in_flight(log: ArchiveLog) -> None:
    log.vote(3)
    writer = log.writer()
    await writer.take_over()
    batch = await writer.read(EVERYTHING)
    assert batch is not None
    plan = Plan("0-0", "1-0", "2-0", 2, 0, 1, 1, 0)
    text = await writer._plan(plan)
    with pytest.raises(Retry, match="a plan is in flight"):
        await writer.write(batch)
    assert log.state()["inflight"].encode() == text


async def test_nothing_is_planned_from_another_position(log: ArchiveLog) -> None:
    log.vote(3)
    writer = log.writer()
    await writer.take_over()
    batch = await writer.read(EVERYTHING)
    assert batch is not None
    await log.archive()
    log.sync.set(keys.fence(0, "archive"), writer._token)  # as if a fencing token could repeat
    with pytest.raises(Retry, match="the position is not 0-0"):
        await writer.write(batch)
    await log.assert_exact()


async def test_only_the_plan_in_flight_can_be_committed(log: ArchiveLog) -> None:
    log.vote(3)
    writer = log.writer()
    await writer.take_over()
    batch = await writer.read(EVERYTHING)
    assert batch is not None
    plan = Plan("0-0", str(batch.first), str(batch.last), 3, batch.crc, batch.epoch, 1, 0)
    await writer._plan(plan)
    with pytest.raises(Retry, match="this plan is not in flight"):
        await writer._commit(plan, b"another", batch)
    assert "committed" not in log.state()


async def test_a_paused_owner_is_refused_at_its_commit(log: ArchiveLog) -> None:
    log.vote(3)
    writer = log.writer()
    await writer.take_over()
    batch = await writer.read(EVERYTHING)
    assert batch is not None
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
    plan = msgspec.json.decode(log.state()["inflight"], type=Plan)
    other = msgspec.structs.replace(plan, crc=plan.crc ^ 1)
    log.sync.hset(keys.archive(0, "events"), "inflight", msgspec.json.encode(other))
    with pytest.raises(Stuck, match="CRC"):
        await log.archive()


async def test_a_plan_of_another_schema_is_left_to_its_version(log: ArchiveLog) -> None:
    log.vote(5)
    await crash(log, "after plan")
    plan = msgspec.json.decode(log.state()["inflight"], type=Plan)
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
    writer = log.writer()
    await writer.take_over()
    batch = await writer.read(EVERYTHING)
    assert batch is not None
    newer = int(log.sync.hget(keys.epochs(0), "now")) + 1
    log.sync.hset(keys.epochs(0), mapping={"now": newer, str(newer): "9999999999999-0"})
    with pytest.raises(Retry, match="a new epoch began"):
        await writer.write(batch)
    assert "inflight" not in log.state()
    await writer.take_over()
    await writer.write(batch)
    await log.assert_exact()


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
    writer = log.writer()
    await writer.take_over()
    batch = await writer.read(EVERYTHING)
    assert batch is not None
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


def a_round(ms: int, round_no: int, winner: str, *, is_void: bool = False, k: int = 2, seq: int = 0) -> Round:
    return Round(ms, seq, k, "m", "1", round_no, winner, "r", ms, 0, is_void, ms)  # type: ignore[arg-type]


async def test_derived_facts_reach_their_tables_and_views_show_the_newest(log: ArchiveLog) -> None:
    log.update(
        "30-0",
        PollState(10, 0, 1, "p", "open", "T", "first", "m", {"a": "A", "b": "B"}, 10),
        a_round(20, 1, "team1"),
        MapState(20, 0, 2, "m", "1", "de_dust2", "live", "", 1, "A", "B", 1, 0, 20),
        Prediction(20, 0, 3, "m", "1", 1, 0.625, "mr12", 20),
        a_round(30, 2, "team1"),
    )
    log.update(
        "60-0",
        a_round(40, 1, "team2"),  # corrects round 1
        a_round(50, 2, "team1", is_void=True),  # takes round 2 back
        MapState(50, 0, 2, "m", "1", "de_dust2", "finished", "team2", 1, "A", "B", 0, 13, 50),
        a_round(60, 3, "team1", is_void=True),  # one event withdraws round 3 and announces it anew
        a_round(60, 3, "team2"),
    )
    await log.archive("updates")
    assert await log.rows("SELECT round_no, winner, score_team1 FROM round_metrics ORDER BY round_no") == [
        (1, "team2", 40),
        (3, "team2", 60),
    ]
    assert await log.rows("SELECT map_name, status, winner, score_team1, score_team2 FROM map_metrics") == [
        ("de_dust2", "finished", "team2", 0, 13)
    ]
    assert await log.rows("SELECT round_no, p_team1, model FROM predictions") == [(1, 0.625, "mr12")]
    assert await log.rows("SELECT poll_id, status, options FROM poll_states") == [("p", "open", {"a": "A", "b": "B"})]
    assert await log.rows("SELECT count() FROM rounds") == [(6,)]


async def test_a_late_insert_of_an_older_result_does_not_win(log: ArchiveLog) -> None:
    """Order of the log decides, not order of arrival."""
    log.update("20-0", a_round(20, 1, "team1"))
    await log.archive("updates")
    await log.clickhouse.command(
        "INSERT INTO rounds SELECT * REPLACE (toUInt64(10) AS stream_ms, 'team2' AS winner) FROM rounds",
        settings={"async_insert": 0, "insert_deduplication_token": "late"},
    )
    assert await log.rows("SELECT winner FROM round_metrics") == [("team1",)]


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


async def test_a_new_log_is_not_taken_for_one_that_was_rolled_back(log: ArchiveLog) -> None:
    """Redis lost altogether while ClickHouse has all its rows: the new log's entries are all new."""
    log.vote(4)
    await log.archive()
    log.sync.delete(keys.archive(0, "events"), keys.events(0))
    log.vote(3)
    writer = log.writer()
    await writer.take_over()
    batch = await writer.read(EVERYTHING)
    assert batch is not None
    assert batch.first > writer._careful_until
    await writer.write(batch)
    await log.assert_exact()


async def test_voters_are_counted_exactly_and_once_in_a_minute(log: ArchiveLog) -> None:
    for option in "aab":
        body = {"event_id": f"x{option}{log.votes}", "poll_id": "p", "option": option, "voter": "00" * 8}
        log.log_writer.append("vote", "poll.p", body)
        log.votes += 1
    await log.archive()
    assert await log.rows("SELECT option_id, sum(votes), max(voters) FROM votes_per_minute GROUP BY 1 ORDER BY 1") == [
        ("a", 2, 1),
        ("b", 1, 1),
    ]


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
