"""What Redis gave back is archived from disk: in order, once, through crashes of everything."""

import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from clickhouse.reading import Limits, Stuck
from clickhouse.segments import RETIRED, Shelf, erase_voters
from clickhouse.spill import SpilledLog, parse_records
from clickhouse.writer import Plan
from core import keys
from core.errors import Fenced, Retry
from core.position import EntryId, parse_entry_id
from core.redis_client import Scripts
from core.updates import Prediction
from tests.support.archive_log import EVERYTHING, ArchiveLog
from tests.support.crashing_writer import CrashingWriter, crash

pytestmark = [pytest.mark.redis, pytest.mark.clickhouse]

FOREVER = EntryId(2**47, 0)
TENS = Limits(10, 2**30)


@pytest.fixture
def shelf(log: ArchiveLog, tmp_path: Path) -> Shelf:
    """A spill directory that the log's writers have."""
    log.shelf = Shelf(tmp_path / "spill", "log1", 2**30)
    return log.shelf


def spilled_log(log: ArchiveLog, token: int | None = None) -> SpilledLog:
    number = log.own() if token is None else token
    return SpilledLog(log.client, log.scripts, log.shelf, 0, "events", number)


async def spill(log: ArchiveLog, limits: Limits = TENS) -> int:
    """Spill everything there is; how many entries."""
    spilling = spilled_log(log)
    count = 0
    while spilled := await spilling.spill(FOREVER, limits):
        count += spilled
    return count


def records(log: ArchiveLog) -> list[Any]:
    return list(parse_records(log.sync.lrange(keys.segments(0, "events"), 0, -1)))


async def test_a_spilled_and_trimmed_log_is_archived_in_order_and_once(log: ArchiveLog, shelf: Shelf) -> None:
    log.vote(35)
    assert await spill(log) == 35
    assert [record.count for record in records(log)] == [10, 10, 10, 5]
    assert log.trim() == 34  # MINID keeps the entry it names
    log.vote(5)
    await log.archive(limits=Limits(8, 2**30))
    await log.assert_exact()
    assert log.state().keys() == {"committed", "entries", "batches"}
    assert (log.state()["entries"], records(log)) == ("40", [])
    assert shelf.names() == []


async def test_segments_follow_each_other_without_a_hole(log: ArchiveLog, shelf: Shelf) -> None:
    log.vote(25)
    await spill(log)
    log.vote(7)
    await spill(log)
    found = records(log)
    assert [record.after for record in found] == ["0-0", *(record.last for record in found[:-1])]
    assert sum(record.count for record in found) == 32


async def test_without_being_on_disk_nothing_is_trimmed(log: ArchiveLog, shelf: Shelf) -> None:
    log.vote(20)
    assert log.trim() == 0
    await spilled_log(log).spill(FOREVER, TENS)
    assert log.trim() == 9
    assert log.sync.xlen(keys.events(0)) == 11


async def test_a_segment_noted_without_an_answer_leaves_no_hole(
    log: ArchiveLog, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record is in Redis, the connection broke, the log is trimmed, and the same owner goes on."""
    log.vote(25)
    writer = log.writer()
    await writer.take_over()
    original = Scripts.run

    async def run(self: Scripts, name: str, names: Any, args: Any) -> Any:
        await original(self, name, names, args)
        raise Retry("connection lost after the effect")

    with monkeypatch.context() as patched:
        patched.setattr(Scripts, "run", run)
        with pytest.raises(Retry):
            await writer.spilled.spill(FOREVER, TENS)
    assert log.trim() == 9
    with pytest.raises(Retry, match="not known"):
        await writer.read(EVERYTHING)
    await writer.take_over()
    while (batch := await writer.read(EVERYTHING)) is not None:
        await writer.write(batch)
    await log.assert_exact()


async def test_a_plan_in_flight_is_redone_from_segments_and_stream(log: ArchiveLog, shelf: Shelf) -> None:
    log.vote(25)
    await crash(log, "before commit")  # all 25 are written and planned
    spilling = spilled_log(log)
    assert await spilling.spill(FOREVER, TENS) == 10
    assert log.trim() == 9
    log.vote(5)
    await log.archive()
    await log.assert_exact()
    assert shelf.names() == []


async def test_a_plan_that_ends_within_a_segment_is_redone(log: ArchiveLog, shelf: Shelf) -> None:
    log.vote(25)
    writer = log.writer(kind=CrashingWriter)
    assert isinstance(writer, CrashingWriter)
    writer.crash_at = "after plan"
    await writer.take_over()
    batch = await writer.read(Limits(15, 2**30))
    assert batch is not None
    with pytest.raises(Exception, match="after plan"):
        await writer.write(batch)
    await spill(log)
    log.trim()
    await log.archive()
    await log.assert_exact()


async def test_a_crash_before_the_record_leaves_a_file_that_goes_once_archived(log: ArchiveLog, shelf: Shelf) -> None:
    log.vote(10)
    leftover = shelf.write(0, "events", 1, log.sync.xrange(keys.events(0), count=7))
    await spill(log)
    log.trim()
    await log.archive()
    await log.assert_exact()
    assert shelf.names() == [leftover]
    await log.archive()  # the next owner
    assert shelf.names() == []


async def test_a_commit_that_redis_lost_finds_its_segment_again(log: ArchiveLog, shelf: Shelf) -> None:
    log.vote(20)
    await spill(log)
    log.trim()
    archive, listed = keys.archive(0, "events"), keys.segments(0, "events")
    before, segments = log.sync.hgetall(archive), log.sync.lrange(listed, 0, -1)
    await log.archive()
    assert shelf.names() == []
    log.sync.delete(archive)
    log.sync.hset(archive, mapping=before)
    log.sync.rpush(listed, *segments)
    await log.archive()
    await log.assert_exact()
    assert shelf.names() == []


async def test_a_damaged_segment_is_read_from_the_log_while_that_has_it(log: ArchiveLog, shelf: Shelf) -> None:
    log.vote(20)
    await spill(log)
    for name in shelf.names():
        (shelf.directory / name).write_bytes(b"torn")
    await log.archive()
    await log.assert_exact()


async def test_a_segment_that_is_gone_stops_the_log_until_it_is_brought_back(log: ArchiveLog, shelf: Shelf) -> None:
    log.vote(20)
    await spill(log)
    log.trim()
    path = shelf.directory / shelf.names()[0]
    path.rename(path.with_suffix(".elsewhere"))
    before = log.state()
    with pytest.raises(Stuck, match=r"segment 00\.events.* cannot be read.*the log has its entries no more"):
        await log.archive()
    assert log.state() == before
    path.with_suffix(".elsewhere").rename(path)
    await log.archive()
    await log.assert_exact()


async def test_a_lost_segment_can_be_given_up(log: ArchiveLog, shelf: Shelf) -> None:
    """What `Stuck` tells the operator to do."""
    log.vote(10)
    await spill(log)
    log.trim()
    for name in shelf.names():
        (shelf.directory / name).unlink()
    log.vote(4)
    text = log.sync.lrange(keys.segments(0, "events"), 0, 0)[0]
    log.sync.lrem(keys.segments(0, "events"), 1, text)
    await log.archive()
    assert await log.rows("SELECT count() FROM votes") == [(5,)]  # the last one of the segment was not trimmed
    assert "spilled" not in log.state()


async def test_segments_of_another_directory_stop_the_log_and_nothing_is_added_to_them(
    log: ArchiveLog, shelf: Shelf, tmp_path: Path
) -> None:
    log.vote(20)
    await spilled_log(log).spill(FOREVER, TENS)
    log.trim()
    log.shelf = Shelf(tmp_path / "other machine", "log1", 2**30)
    with pytest.raises(Stuck, match=f"spill directory {shelf.store}, which is not mine"):
        await log.archive()
    with pytest.raises(Stuck, match="not mine"):
        await spilled_log(log).spill(FOREVER, TENS)
    assert len(records(log)) == 1
    log.shelf = shelf
    await log.archive()
    await log.assert_exact()


async def test_a_former_owner_cannot_spill(log: ArchiveLog, shelf: Shelf) -> None:
    log.vote(5)
    former = spilled_log(log)
    log.own()
    with pytest.raises(Fenced):
        await former.spill(FOREVER, TENS)
    assert records(log) == []
    assert "spilled" not in log.state()


async def test_an_owner_that_does_not_know_the_newest_incarnation_cannot_spill(log: ArchiveLog, shelf: Shelf) -> None:
    """Its entries may be ones that a rollback took from the log, and others have their place."""
    log.vote(5)
    spilling = spilled_log(log)
    note = spilling._note

    async def late(record: Any, epoch: int) -> None:
        log.sync.hset(keys.epochs(0), mapping={"now": epoch + 1, str(epoch + 1): "9999999999999-0"})
        await note(record, epoch)

    spilling._note = late  # type: ignore[method-assign]
    with pytest.raises(Retry, match="a new epoch began"):
        await spilling.spill(FOREVER, TENS)
    assert records(log) == []


async def test_what_was_archived_meanwhile_is_not_spilled_behind(log: ArchiveLog, shelf: Shelf) -> None:
    log.vote(5)
    token = log.own()
    spilling = spilled_log(log, token)
    note = spilling._note

    async def late(record: Any, epoch: int) -> None:
        writer = log.writer(token=token)
        await writer.take_over()
        batch = await writer.read(Limits(2, 2**30))
        assert batch is not None
        await writer.write(batch)
        await note(record, epoch)

    spilling._note = late  # type: ignore[method-assign]
    with pytest.raises(Retry, match="the position is not"):
        await spilling.spill(FOREVER, TENS)
    await log.archive()
    await log.assert_exact()


async def test_a_segment_lies_within_one_epoch(log: ArchiveLog, shelf: Shelf) -> None:
    await log.scripts.load()
    newer = int(log.sync.hget(keys.epochs(0), "now")) + 1
    log.vote(3)
    last = parse_entry_id(log.sync.xrevrange(keys.events(0), count=1)[0][0])
    log.sync.hset(keys.epochs(0), mapping={"now": newer, str(newer): str(last.next)})
    log.vote(4)
    await spill(log)
    assert [record.count for record in records(log)] == [3, 4]
    assert [name.split(".")[2] for name in shelf.names()][-1] == str(newer)
    log.trim()
    await log.archive()
    await log.assert_exact()


async def test_a_voter_erased_on_disk_does_not_stop_the_plan_in_flight(log: ArchiveLog, shelf: Shelf) -> None:
    log.vote(12)
    await crash(log, "after plan")
    await spill(log)
    log.trim()
    assert erase_voters(shelf.directory.parent, {f"{3:016x}": 2**63}) == (1, [])
    await log.archive()
    assert await log.rows("SELECT count(), sum(vote_hash), countIf(voter_hash = 3) FROM votes") == [(12, log.digest, 0)]


async def test_a_dead_letter_from_a_segment_keeps_its_fields(log: ArchiveLog, shelf: Shelf) -> None:
    bad = log.append_garbage()
    log.vote(3)
    await spill(log)
    log.trim()
    await log.archive()
    ((_, letter),) = log.sync.xrange(keys.dead(0))
    assert (letter[b"id"].decode(), letter[b"d"]) == (bad, b"{nonsense")
    await log.assert_exact()


async def test_derived_facts_are_spilled_the_same_way(log: ArchiveLog, shelf: Shelf) -> None:
    for ms in (10, 20, 30):
        log.update(f"{ms}-0", Prediction(ms, 0, 3, "m", "1", ms, 0.5, "mr12", ms))
    spilling = SpilledLog(log.client, log.scripts, shelf, 0, "updates", log.own())
    assert await spilling.spill(EntryId(25, 0), TENS) == 2
    log.sync.xtrim(keys.updates(0), minid="25-0", approximate=False)
    await log.archive("updates")
    assert await log.rows("SELECT round_no FROM predictions ORDER BY 1") == [(10,), (20,), (30,)]
    assert shelf.names() == []


async def test_only_what_is_old_enough_is_spilled(log: ArchiveLog, shelf: Shelf) -> None:
    log.vote(5)
    assert await spilled_log(log).spill(EntryId(int(time.time() * 1000) - 60_000, 0), TENS) == 0
    assert shelf.names() == []


async def test_a_full_directory_stops_spilling_and_loses_nothing(log: ArchiveLog, tmp_path: Path) -> None:
    log.shelf = Shelf(tmp_path / "spill", "log1", 2500)
    log.vote(200)
    with pytest.raises(Retry, match="budget"):
        await spill(log, Limits(50, 2**30))
    assert 0 < log.trim() < 200
    await log.archive()
    await log.assert_exact()


async def test_a_retired_segment_is_not_what_a_redo_waits_for(log: ArchiveLog, shelf: Shelf) -> None:
    """The commit happened, its answer was lost: the next take-over must not want the segment any more."""
    log.vote(10)
    await spill(log)
    log.trim()
    await crash(log, "after commit")
    for path in shelf.directory.iterdir():
        os.utime(path, (0, 0))
    await log.archive()
    assert [path.name for path in shelf.directory.iterdir() if not path.name.endswith(RETIRED)] == []
    await log.assert_exact()


def test_a_plan_names_entries_and_no_places() -> None:
    assert set(Plan.__struct_fields__) == {
        "after", "first", "last", "count", "crc", "epoch", "schema", "batches", "only_missing"
    }  # fmt: skip
    assert msgspec.json.decode(msgspec.json.encode(Plan("0-0", "1-0", "2-0", 2, 0, 1, 1, 0)), type=Plan)


async def test_everything_is_read_once_whatever_the_batch_size(log: ArchiveLog, shelf: Shelf) -> None:
    log.vote(23)
    await spill(log)
    log.trim()
    log.vote(4)
    for size in (1, 3, 10, 11, 100):
        reading = spilled_log(log)
        await reading.load(EntryId(0, 0))
        after, seen = EntryId(0, 0), 0
        while True:
            entries, is_full = await reading.entries(after, Limits(size, 2**30))
            seen += len(entries)
            if not is_full:
                break
            ms, sequence = entries[-1][0].split(b"-")
            after = EntryId(int(ms), int(sequence))
        assert seen == 27
    assert EVERYTHING.entries_max > 27
