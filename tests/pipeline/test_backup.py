"""Backup under load, incremental backup, drill, restore, and every way in which a backup may be no good."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from core import keys, manifest
from core.local.services import environment
from core.names import poll_topic, shard_of
from tests.support.crowd import Crowd
from tests.support.pipeline import Pipeline, pipeline_settings, running_pipeline
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.redis, pytest.mark.clickhouse, pytest.mark.timeout(300)]

POLLS = ["kept-0", "kept-1"]


class Backups:
    """A pipeline that was backed up twice while a crowd voted: fully, then on top of it."""

    def __init__(self, pipeline: Pipeline, directory: Path) -> None:
        self.pipeline = pipeline
        self.directory = directory
        self.full = self.incremental = directory
        self.votes_before = self.votes_after = 0
        self.cursor = ""

    async def make(self) -> None:
        pipeline = self.pipeline
        crowd = Crowd(pipeline.ingest_url, pipeline.settings.ingest_key, POLLS, "kept")
        await crowd.define_polls()
        crowd.start()
        await wait_until(lambda: sum(crowd.votes.values()) > 200, 30, "the crowd votes")
        self.votes_before = sum(crowd.votes.values())
        self.full = await self._backup("--to", str(self.directory))
        assert sum(crowd.votes.values()) > self.votes_before, "it went on voting meanwhile"
        self.incremental = await self._backup("--to", str(self.directory), "--incremental")
        before = sum(crowd.votes.values())
        await wait_until(lambda: sum(crowd.votes.values()) > before + 50, 30, "the crowd goes on")
        await crowd.stop()
        self.votes_after = sum(crowd.votes.values())
        async with httpx.AsyncClient(base_url=pipeline.gateway_url) as client:
            answer = await client.get("/api/v1/updates", params={"topics": f"poll.{POLLS[0]}"})
            self.cursor = answer.json()["cursor"]

    async def _backup(self, *arguments: str) -> Path:
        done = await asyncio.to_thread(self.pipeline.run, "backup", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr + self.pipeline.logs()
        return Path(done.stdout.partition(": ")[0])


@pytest.fixture(scope="module")
def backups(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backups]:
    with running_pipeline(tmp_path_factory.mktemp("p") / "d") as running:
        made = Backups(running, tmp_path_factory.mktemp("b"))
        asyncio.run(made.make())
        yield made


async def test_a_drill_finds_the_books_of_a_backup_under_load_in_order(backups: Backups, tmp_path: Path) -> None:
    done = await asyncio.to_thread(backups.pipeline.run, "drill", str(backups.incremental), "--scratch", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("clean: 2 polls")
    assert "this backup restores, and its books agree" in done.stderr
    assert not await asyncio.to_thread(lambda: list(tmp_path.iterdir())), "nothing is left of it"


async def test_what_was_restored_goes_on_and_counts_nothing_twice(backups: Backups, tmp_path: Path) -> None:
    settings = msgspec.structs.replace(
        pipeline_settings(tmp_path / "d"), voter_secret=backups.pipeline.settings.voter_secret
    )
    restored = Pipeline(settings)
    done = await asyncio.to_thread(restored.run, "restore", str(backups.full))
    assert done.returncode == 0, done.stdout + done.stderr
    again = await asyncio.to_thread(restored.run, "restore", str(backups.full))
    assert again.returncode == 1
    assert "is not empty" in again.stderr
    try:
        await asyncio.to_thread(restored.start)
        votes = "SELECT count(), uniqExact(event_hash), uniqExact(shard, stream_ms, stream_seq) FROM votes"

        async def is_whole() -> bool:
            books = await asyncio.to_thread(restored.run, "reconcile")
            assert books.returncode == 0, books.stdout + books.stderr
            return True

        await wait_until(is_whole, 60, "the restored log is archived")
        count, events, positions = (int(value) for value in restored.query(votes)[0])
        assert count == events == positions
        assert backups.votes_before <= count < backups.votes_after
        crowd = Crowd(restored.ingest_url, settings.ingest_key, POLLS, "kept")
        crowd._number = 10_000_000  # event ids of its own
        crowd.start()
        await wait_until(lambda: sum(crowd.votes.values()) > 20, 30, "it takes votes")
        await crowd.stop()
        expected = count + sum(crowd.votes.values())
        await wait_until(lambda: int(restored.query(votes)[0][0]) == expected, 30, "they are archived")
        await wait_until(is_whole, 60, "the books agree")
        async with httpx.AsyncClient(base_url=restored.gateway_url) as client:
            params = {"topics": f"poll.{POLLS[0]}", "cursor": backups.cursor}
            verdict = (await client.get("/api/v1/updates", params=params)).json()["resume"]
        assert verdict[f"poll.{POLLS[0]}"]["resume"] == "reset", "that cursor is from after the backup"
    finally:
        restored.end()


async def test_an_incremental_backup_holds_less_and_needs_its_base(backups: Backups, tmp_path: Path) -> None:
    full, top = manifest.read(backups.full), manifest.read(backups.incremental)
    assert (full.base, top.base) == ("", full.name)
    assert [one.name for _, one in manifest.verify(backups.incremental)] == [top.name, full.name]
    alone = shutil.copytree(backups.incremental, tmp_path / top.name)
    done = await asyncio.to_thread(backups.pipeline.run, "drill", str(alone))
    assert done.returncode == 2
    assert f"{full.name} is no complete backup" in done.stderr


async def test_no_secret_is_in_a_backup(backups: Backups) -> None:
    settings = backups.pipeline.settings
    secrets = [settings.ingest_key, settings.voter_secret, settings.clickhouse_password]
    for path in backups.full.rglob("*"):
        if path.is_file():
            assert not [one for one in secrets if one.encode() in path.read_bytes()], path
    kept = json.loads((backups.full / manifest.MANIFEST).read_bytes())
    assert any("voter.secret" in text for text in kept["to_keep"])
    assert kept["settings"]["voter_secret"] == "set"


@pytest.mark.parametrize("damage", ["byte", "missing", "extra", "manifest", "cut"])
async def test_a_damaged_backup_is_refused_with_one_line(backups: Backups, tmp_path: Path, damage: str) -> None:
    copy = shutil.copytree(backups.full, tmp_path / backups.full.name)
    victim = copy / manifest.RDB
    match damage:
        case "byte":
            data = bytearray(victim.read_bytes())
            data[len(data) // 2] ^= 1
            victim.write_bytes(data)
            expected = f"{victim} is damaged"
        case "cut":
            victim = next(path for path in sorted(copy.rglob("data.bin")))
            victim.write_bytes(victim.read_bytes()[:-1])
            expected = f"{victim} is damaged"
        case "missing":
            victim.unlink()
            expected = f"{victim} is missing"
        case "extra":
            (copy / "more").write_text("x")
            expected = f"{copy / 'more'} does not belong"
        case _:
            (copy / manifest.MANIFEST).unlink()
            expected = "is no complete backup"
    data_dir = tmp_path / "d"
    environ = environment(pipeline_settings(data_dir), {})
    result = await asyncio.to_thread(run_cli, environ, "restore", str(copy))
    assert result[0] == 1
    assert expected in result[1]
    assert len(result[1].splitlines()) == 1
    assert not data_dir.exists() or not list(data_dir.iterdir())


def run_cli(environ: dict[str, str], *arguments: str) -> tuple[int, str]:
    import os
    import subprocess

    from core.local.child import python_command, python_environment

    done = subprocess.run(
        python_command(*arguments), env=python_environment({**os.environ, **environ}), capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


async def test_a_backup_starts_no_epoch(backups: Backups) -> None:
    client: Any = backups.pipeline.redis
    shard = shard_of(poll_topic(POLLS[0]), 4)
    replication, server = client.info("replication"), client.info("server")
    run = f"{server['run_id']}:{replication['master_replid']}".encode()
    assert client.hget(keys.epochs(shard), "run") == run
    assert len([name for name in client.hkeys(keys.epochs(shard)) if name.isdigit()]) == 1


def test_expired_backups_go_unless_a_younger_one_needs_them(tmp_path: Path) -> None:
    def made(name: str, base: str, ms: int) -> None:
        (tmp_path / name).mkdir()
        one = manifest.Manifest(1, name, ms, "0", "log", 4, base, ["d"], True, {}, [], [])
        manifest.write(tmp_path / name, one)

    for name, base, ms in (("a", "", 10), ("b", "a", 20), ("c", "", 30), ("d", "c", 40), ("e", "d", 50)):
        made(name, base, ms)
    (tmp_path / ".f.partial").mkdir()
    known = manifest.complete_backups(tmp_path)
    assert [one.name for _, one in known] == list("abcde")
    assert [path.name for path in manifest.expired(known, 45)] == ["a", "b"]
    assert manifest.expired(known, 5) == []
    assert [path.name for path in manifest.expired(known, 60)] == list("abcde")
