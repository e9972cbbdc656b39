"""The demo and the player against the real ingest: what a newcomer sees first must not be refused."""

import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis

from core import keys
from core.local.child import python_command, python_environment
from core.local.demo import Run, recorded_map
from core.local.sender import Sender
from core.local.services import environment
from core.settings import Settings
from tests.support.pipeline import Process

pytestmark = pytest.mark.redis


@pytest.fixture
def ingest_url(settings: Settings) -> Iterator[str]:
    """A real ingest process on the test's Redis."""
    url = f"http://127.0.0.1:{settings.ingest_port}"
    settings.data_dir.mkdir()

    def is_ready() -> bool:
        try:
            return httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    environ = python_environment(environment(settings, os.environ))
    process = Process("ingest", python_command("ingest"), environ, is_ready)
    try:
        process.start()
        yield url
    finally:
        process.end()


async def test_whole_run_is_accepted_and_ends_with_every_poll_closed(ingest_url: str, settings: Settings) -> None:
    async with Sender(ingest_url, settings.ingest_key) as sender:
        run = Run(sender, "cafe", random.Random(5))
        await run.play(recorded_map(), speed=100)
    assert (sender.sums.refused, sender.sums.first_refusal, sender.sums.duplicates) == (0, "", 0)
    assert sender.sums.accepted > 200
    with redis.Redis.from_url(settings.redis_target) as client:
        polls = [client.hgetall(key) for key in client.scan_iter(keys.definition(0, "*").replace("{s00}", "*"))]
        entries = [entry for shard in range(4) for entry in client.xrange(keys.events(shard))]
    assert len(polls) == 1 + 22
    assert {poll[b"closed"] for poll in polls} == {b"1"}
    votes = [json.loads(fields[b"d"]) for _, fields in entries if fields[b"h"].startswith(b"vote ")]
    assert len(votes) + len(recorded_map()) == sender.sums.accepted
    kinds = [fields[b"h"].split()[0] for _, fields in entries]
    assert (kinds.count(b"match"), kinds.count(b"poll"), kinds.count(b"close")) == (33, 23, 23)


def test_recording_played_twice_counts_once(ingest_url: str, settings: Settings, tmp_path: Path) -> None:
    options = [{"id": "a", "label": "A"}]
    lines: list[object] = [{"method": "PUT", "path": "/api/v1/polls/p1", "body": {"title": "t", "options": options}}]
    lines += [{"at_ms": n, "event_id": f"e{n}", "poll_id": "p1", "option": "a", "voter": f"v{n}"} for n in range(700)]
    lines += [{"event_id": f"m{n}", "match_id": "m1", "map_id": "1", "type": "kill"} for n in range(20)]
    recording = tmp_path / "recording.ndjson"
    recording.write_text("\n".join(map(json.dumps, lines)))
    key_file = tmp_path / "key"
    key_file.write_text(settings.ingest_key + "\n")

    def play() -> str:
        arguments = ["play", str(recording), "--to", ingest_url, "--speed", "0", "--key-file", str(key_file)]
        environ = python_environment(environment(Settings(data_dir=tmp_path), os.environ))
        done = subprocess.run(
            python_command(*arguments), env=environ, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "720 accepted, 0 duplicates" in play()
    assert "0 accepted, 720 duplicates" in play()
