"""An export holds every row once, can be checked, tells nobody who voted, and appears whole or not at all."""

import csv
import hashlib
import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet
import pytest

from clickhouse import export as module
from clickhouse.export import Manifest, export
from core import keys
from core.digest import format_digest
from core.errors import Fatal, Retry
from core.local.child import python_command, python_environment
from core.local.services import environment
from core.settings import Settings
from tests.support.archive_log import ArchiveLog

pytestmark = [pytest.mark.redis, pytest.mark.clickhouse]

KEY = b"k" * 32


@pytest.fixture
async def poll(log: ArchiveLog, monkeypatch: pytest.MonkeyPatch) -> ArchiveLog:
    """30 archived votes of poll p1 with a tally that agrees, and some of another poll."""
    monkeypatch.setattr(module, "_FIRST_ROWS", 4)
    monkeypatch.setattr(module, "CHUNK_ROWS", 7)
    log.sync.hset(keys.LOG, mapping={"id": "test", "shards": 1, "created_ms": 0})
    await log.scripts.ensure()
    log.vote(30)
    stand(log, log.votes, log.digest)
    await log.archive()
    return log


def stand(log: ArchiveLog, applied: int, digest: int, status: str = "open") -> None:
    """What the state consumer says of p1."""
    last = log.sync.xrevrange(keys.events(0), count=1)[0][0]
    data = {"status": status, "applied": applied, "digest": format_digest(digest), "options": {}}
    log.sync.hset(keys.progress(0), "last_id", last)
    log.sync.hset(keys.state(0, "poll.p1"), "data", json.dumps(data))


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def names_in(directory: Path, part: str) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if part in path.name)


async def test_a_poll_is_exported_with_the_digest_of_its_tally(
    poll: ArchiveLog, archive_settings: Settings, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    path = tmp_path / "out.parquet"
    manifest = await export(archive_settings, "p1", "parquet", path, KEY, lambda done, of: seen.append((done, of)))
    assert (manifest.rows, manifest.digest, manifest.verified) == (30, format_digest(poll.digest), True)
    assert msgspec.json.decode((tmp_path / "out.parquet.manifest.json").read_bytes(), type=Manifest) == manifest
    assert manifest.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    table = pyarrow.parquet.read_table(path)
    rows = table.to_pylist()
    assert format_digest(sum(row["vote_hash"] for row in rows)) == manifest.digest
    order = [(row["option_id"], row["stream_ms"], row["stream_seq"]) for row in rows]
    assert order == sorted(set(order))
    assert table.schema.names == manifest.columns
    assert (seen[0], seen[-1], len(seen) > 4) == ((0, 30), (30, 30), True), "chunk by chunk"
    assert names_in(tmp_path, "out") == ["out.parquet", "out.parquet.manifest.json"]


async def test_both_formats_hold_the_same(poll: ArchiveLog, archive_settings: Settings, tmp_path: Path) -> None:
    await export(archive_settings, "poll.p1", "parquet", tmp_path / "a", KEY)
    await export(archive_settings, "poll.p1", "csv", tmp_path / "b", KEY)
    rows = pyarrow.parquet.read_table(tmp_path / "a").to_pylist()
    names = ("option_id", "stream_ms", "stream_seq", "voter", "event_hash", "vote_hash", "source")
    expected = [["" if row[name] is None else str(row[name]) for name in names] for row in rows]
    assert [[row[name] for name in names] for row in read_csv(tmp_path / "b")] == expected


async def test_a_voter_is_the_same_within_a_file_and_nobody_in_two(
    poll: ArchiveLog, archive_settings: Settings, tmp_path: Path
) -> None:
    for number in range(3):
        body = {"event_id": f"again{number}", "poll_id": "p1", "option": "a", "voter": f"{3:016x}", "source": "load"}
        poll.log_writer.append("vote", "poll.p1", body)
    poll.sync.delete(keys.state(0, "poll.p1"))
    await poll.archive()
    voters = []
    for number in range(2):
        path = tmp_path / f"{number}.csv"
        manifest = await export(archive_settings, "p1", "csv", path, bytes([number]) * 32)
        assert manifest.verified is None, "no tally to compare with"
        voters.append([row["voter"] for row in read_csv(path)])
    for names in voters:
        assert sorted(Counter(names).values())[-2:] == [1, 4], "one of 30 voted four times"
        assert len(set(names)) == 30
    assert set(voters[0]) & set(voters[1]) == {""}
    assert not {f"{voter:016x}" for voter in range(30)} & set(voters[0])


async def test_an_erased_voter_is_nobody(poll: ArchiveLog, archive_settings: Settings, tmp_path: Path) -> None:
    """`log.vote` gives the first voter the hash 0, which is what an erasure leaves."""
    await export(archive_settings, "p1", "csv", tmp_path / "a.csv", KEY)
    assert [row["voter"] for row in read_csv(tmp_path / "a.csv")].count("") == 1


async def test_a_tally_that_disagrees_is_said(poll: ArchiveLog, archive_settings: Settings, tmp_path: Path) -> None:
    stand(poll, 30, poll.digest + 1)
    manifest = await export(archive_settings, "p1", "csv", tmp_path / "a.csv", KEY)
    assert manifest.verified is False
    assert manifest.tally is not None
    assert manifest.tally.applied == 30


async def test_an_export_ends_where_its_tally_stands(
    poll: ArchiveLog, archive_settings: Settings, tmp_path: Path
) -> None:
    """Votes that came later, archived or not, are not in it: both sides are compared at one position."""
    before = poll.votes
    poll.vote(5)
    await poll.archive()
    poll.vote(2)
    manifest = await export(archive_settings, "p1", "parquet", tmp_path / "a", KEY)
    assert (manifest.rows, manifest.verified) == (before, True)


async def test_an_export_waits_for_the_archive_but_not_for_ever(
    poll: ArchiveLog, archive_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ARCHIVE_WAIT_S", 0.2)
    poll.vote(1)
    stand(poll, poll.votes, poll.digest)
    with pytest.raises(Retry, match="the archive has not reached"):
        await export(archive_settings, "p1", "parquet", tmp_path / "a", KEY)
    assert not (tmp_path / "a").exists()


async def test_a_match_is_exported_in_log_order_byte_for_byte(
    poll: ArchiveLog, archive_settings: Settings, tmp_path: Path
) -> None:
    for number in range(9):
        poll.log_writer.event("m1", str(number % 2), "kill", {"text": 'a,"b"\\ é'})
    bodies = [fields[b"d"].decode() for _, fields in poll.sync.xrange(keys.events(0))[-9:]]
    await poll.archive()
    for kind in ("parquet", "csv"):
        path = tmp_path / f"m.{kind}"
        manifest = await export(archive_settings, "m1", kind, path, KEY)
        assert (manifest.subject, manifest.rows, manifest.verified) == ("match.m1", 9, None)
        rows = read_csv(path) if kind == "csv" else pyarrow.parquet.read_table(path).to_pylist()
        assert [row["payload"] for row in rows] == bodies


async def test_nothing_is_replaced_and_nothing_unknown_is_exported(
    poll: ArchiveLog, archive_settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(Fatal, match="taken exists"):
        await export(archive_settings, "p1", "csv", tmp_path / "taken", KEY)
    assert (tmp_path / "taken").read_text() == "mine"
    for subject, reason in (
        ("nobody", "nothing is archived"),
        ("a b", "say poll"),
        ("match.nobody", "nothing is arch"),
    ):
        with pytest.raises(Fatal, match=reason):
            await export(archive_settings, subject, "csv", tmp_path / "x", KEY)
    with pytest.raises(Fatal, match="not a directory"):
        await export(archive_settings, "p1", "csv", tmp_path / "no" / "x", KEY)
    poll.log_writer.event("p1", "1", "kill", {})
    await poll.archive()
    with pytest.raises(Fatal, match="a poll and a match p1"):
        await export(archive_settings, "p1", "csv", tmp_path / "x", KEY)
    assert names_in(tmp_path, "x") + names_in(tmp_path, "part") == []


async def test_the_command_writes_a_file_and_its_exit_code_tells(
    poll: ArchiveLog, archive_settings: Settings, tmp_path: Path
) -> None:
    environ = python_environment(environment(archive_settings, {}))

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = python_command("export", *arguments)
        return subprocess.run(
            command, check=False, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )

    good = run("p1", "--format", "csv", "--show-key")
    assert good.returncode == 0, good.stderr
    assert good.stdout.startswith(f"poll.p1.csv: 30 rows, digest {format_digest(poll.digest)}")
    assert "voter key " in good.stderr
    assert len(read_csv(tmp_path / "poll.p1.csv")) == 30
    again = run("p1", "--format", "csv")
    assert (again.returncode, again.stderr.splitlines()[-1]) == (
        1, "arenacast: poll.p1.csv exists: name another file with --to",
    )  # fmt: skip
    stand(poll, 31, poll.digest)
    assert run("p1", "--to", "b.parquet").returncode == 3
    notes: Any = poll.sync.xrange(keys.audit(0))
    assert [json.loads(fields[b"d"])["action"] for _, fields in notes] == ["export", "export"]
