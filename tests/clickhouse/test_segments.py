"""Segment files: whole or not there, told from damaged ones, deleted only when nobody can need them."""

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clickhouse.rows import RawEntry
from clickhouse.segments import ERASED, RETIRED, Damaged, Shelf, erase_voters, held, read_file, rewrite
from core.errors import Retry
from core.position import EntryId

MIB = 1024 * 1024


def entries(count: int, body: bytes = b"{}") -> list[RawEntry]:
    return [(b"%d-0" % number, {b"h": b"vote poll.p 1 c %d" % number, b"d": body}) for number in range(1, count + 1)]


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "spill", "log1", 10 * MIB)


bodies = st.dictionaries(st.binary(min_size=1, max_size=10), st.binary(max_size=200), max_size=3)


@settings(max_examples=50)
@given(st.lists(bodies, min_size=1, max_size=20))
def test_every_byte_of_every_entry_comes_back(
    tmp_path_factory: pytest.TempPathFactory, fields: list[dict[bytes, bytes]]
) -> None:
    shelf = Shelf(tmp_path_factory.mktemp("spill"), "log1", MIB)
    written = [(b"%d-%d" % (number, number), item) for number, item in enumerate(fields, 1)]
    assert shelf.read(shelf.write(0, "events", 1, written)) == written


def test_a_name_tells_what_is_inside_and_only_the_owner_may_look(shelf: Shelf) -> None:
    name = shelf.write(3, "updates", 7, entries(5))
    assert name == "03.updates.7.1-0.5-0.seg"
    header, _ = read_file(shelf.directory / name)
    assert (header.shard, header.log, header.epoch, header.count) == (3, "updates", 7, 5)
    assert stat.S_IMODE(os.stat(shelf.directory / name).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(shelf.directory.parent).st_mode) == 0o700


def test_segments_are_compressed(shelf: Shelf) -> None:
    name = shelf.write(0, "events", 1, entries(1000, b'{"voter":"0123456789abcdef"}'))
    assert (shelf.directory / name).stat().st_size < 1000 * 20


def test_a_directory_is_recognised_by_every_process_that_has_it(tmp_path: Path) -> None:
    first, second = Shelf(tmp_path / "a", "log1", MIB), Shelf(tmp_path / "a", "log2", MIB)
    other = Shelf(tmp_path / "b", "log1", MIB)
    assert first.store == second.store != other.store
    assert first.store


@pytest.mark.parametrize("keep", [0, 10, 100, -1])
def test_a_torn_segment_is_damaged(shelf: Shelf, keep: int) -> None:
    path = shelf.directory / shelf.write(0, "events", 1, entries(50))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(Damaged):
        shelf.read(path.name)


def test_any_changed_byte_is_damage(shelf: Shelf) -> None:
    path = shelf.directory / shelf.write(0, "events", 1, entries(20))
    whole = path.read_bytes()
    body = whole.index(b"\n") + 1
    for at in range(body, len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(Damaged):
            shelf.read(path.name)


def test_a_missing_segment_is_damaged(shelf: Shelf) -> None:
    with pytest.raises(Damaged, match="cannot be read"):
        shelf.read("00.events.1.1-0.2-0.seg")


def test_over_the_budget_nothing_is_written(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, "log1", 3000)
    shelf.write(0, "events", 1, entries(1, os.urandom(1500)))
    with pytest.raises(Retry, match="budget"):
        shelf.write(0, "events", 1, [(b"9-0", {b"d": os.urandom(2000)})])
    assert len(list(shelf.directory.iterdir())) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 256 KiB."""
    path = tmp_path / "small"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small filesystem here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_is_a_retry_and_leaves_nothing_half_written(small_disk: Path) -> None:
    shelf = Shelf(small_disk, "log1", 10 * MIB)
    random: list[list[RawEntry]] = [[(b"%d-0" % number, {b"d": os.urandom(60_000)})] for number in range(1, 10)]
    with pytest.raises(Retry, match="ENOSPC"):
        [shelf.write(0, "events", 1, item) for item in random]
    written = shelf.names()
    assert written
    assert len(list(shelf.directory.iterdir())) == len(written)
    for name in written:
        assert shelf.read(name)


def test_an_archived_segment_stays_for_a_while(shelf: Shelf) -> None:
    name = shelf.write(0, "events", 1, entries(5))
    shelf.retire([name])
    shelf.expire()
    retired = shelf.directory / (name + RETIRED)
    assert (shelf.names(), retired.exists()) == ([], True)
    os.utime(retired, (0, 0))
    shelf.expire()
    assert list(shelf.directory.iterdir()) == []


def test_nothing_retired_is_deleted_while_a_backup_copies(shelf: Shelf) -> None:
    name = shelf.write(0, "events", 1, entries(5))
    root, retired = shelf.directory.parent, shelf.directory / (name + RETIRED)
    with held(root):
        shelf.retire([name])
        os.utime(retired, (0, 0))
        shelf.expire()
        assert retired.exists()
    killed = root / "deadbeef.hold"  # of a backup that was killed the day before yesterday
    killed.touch()
    os.utime(killed, (0, 0))
    shelf.expire()
    assert (retired.exists(), killed.exists()) == (False, False)


def test_what_a_crash_left_is_retired_only_when_it_is_archived_and_not_listed(shelf: Shelf) -> None:
    old, listed, beyond = (
        shelf.write(0, "events", 1, [(raw_id, {})]) for raw_id in (b"1-0", b"2-0", b"100-0")
    )  # fmt: skip
    others = [shelf.write(0, "updates", 1, [(b"1-0", {})]), shelf.write(1, "events", 1, [(b"1-0", {})])]
    shelf.sweep(0, "events", [listed], EntryId(99, 0))
    assert old not in shelf.names()
    assert {listed, beyond, *others} == set(shelf.names())


def test_a_retired_segment_that_redis_lists_again_is_taken_back(shelf: Shelf) -> None:
    name = shelf.write(0, "events", 1, entries(3))
    shelf.retire([name])
    shelf.sweep(0, "events", [name], EntryId(0, 0))
    assert shelf.read(name) == entries(3)


def test_temporary_files_that_nobody_writes_any_more_go(shelf: Shelf) -> None:
    fresh, stale = shelf.directory / "a.seg.1.tmp", shelf.directory / "b.seg.2.tmp"
    for path in (fresh, stale):
        path.touch()
    os.utime(stale, (0, 0))
    shelf.expire()
    assert (fresh.exists(), stale.exists()) == (True, False)


def test_files_of_another_log_are_left_alone(tmp_path: Path) -> None:
    other = Shelf(tmp_path, "lost", MIB)
    name = other.write(0, "events", 1, entries(1))
    shelf = Shelf(tmp_path, "new", MIB)
    shelf.sweep(0, "events", [], EntryId(2**40, 0))
    shelf.expire()
    assert other.names() == [name]
    assert shelf.used_bytes() >= (other.directory / name).stat().st_size, "and count, as they take the room"


def test_a_voter_is_erased_from_every_segment_and_nothing_else_changes(shelf: Shelf) -> None:
    mine, yours = b'{"event_id":"e","voter":"0123456789abcdef"}', b'{"event_id":"e","voter":"fedcba9876543210"}'
    name = shelf.write(0, "events", 1, [*entries(2, mine), (b"3-0", {b"h": b"vote x", b"d": yours})])
    retired = shelf.write(1, "events", 1, [(b"3-0", {b"h": b"match x", b"d": mine}), *entries(1, mine)[:1]])
    shelf.retire([retired])
    assert erase_voters(shelf.directory.parent, {"0123456789abcdef": 2**63}) == (3, [])
    found = shelf.read(name)
    assert [fields[b"d"] for _, fields in found] == [mine.replace(b"0123456789abcdef", ERASED.encode())] * 2 + [yours]
    _, other = read_file(shelf.directory / (retired + RETIRED))
    assert other[0][1][b"d"] == mine, "a match event is nobody's vote"
    assert erase_voters(shelf.directory.parent, {"0123456789abcdef": 2**63}) == (0, [])


def test_a_damaged_segment_keeps_no_voter_in_the_others(shelf: Shelf) -> None:
    mine = b'{"event_id":"e","voter":"0123456789abcdef"}'
    damaged, good = (shelf.write(shard, "events", 1, entries(2, mine)) for shard in (0, 1))
    (shelf.directory / damaged).write_bytes(b"nonsense")
    assert erase_voters(shelf.directory.parent, {"0123456789abcdef": 2**63}) == (2, [damaged])
    assert b"0123456789abcdef" not in shelf.read(good)[0][1][b"d"]


def test_rewriting_keeps_the_old_segment_until_the_new_one_is_whole(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = shelf.write(0, "events", 1, entries(3))

    def full(descriptor: int) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        rewrite(shelf.directory / name, lambda entry: (entry[0], {}))
    assert shelf.read(name) == entries(3)
    assert shelf.names() == [name]
