"""Reads are noted in batches, bounded, and never at the reader's expense."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis
from prometheus_client import REGISTRY

from core import audit, keys
from core.audit import Record, decode_record, key_id
from core.names import shard_of
from core.redis_client import Redis, Scripts, connect
from core.settings import Settings
from gateway import auditor as module
from gateway.auditor import Auditor
from tests.support.redis_server import RedisServer, running_redis
from tests.support.waiting import wait_until

pytestmark = pytest.mark.redis


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    client = connect(Settings(redis_url=redis_url))
    yield client
    await client.aclose()


@pytest.fixture
def scripts(client: Redis) -> Scripts:
    return Scripts(client, 4, audit.sources())


async def records(client: Redis, subject: str = "match.m1") -> list[Record]:
    found: Any = await client.xrange(keys.audit(shard_of(subject, 4)))
    return [decode_record(fields) for _, fields in found]


async def test_equal_reads_of_a_second_are_one_record(
    client: Redis, scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FLUSH_S", 0.05)
    auditor = Auditor(scripts, 4, clock=lambda: 5_000_000)
    for last in ("1.0.1", "2.0.1", ""):
        auditor.note("match.m1", "read_events", "anonymous", 10, "", last, "c1")
    auditor.note("match.m1", "read_events", "key:1", 1, "7.0.1", "8.0.1", "c2")
    await wait_until(lambda: auditor._task is not None and auditor._task.done(), 5, "nothing waits any more")
    assert await records(client) == [
        Record("match.m1", "read_events", "anonymous", 5000, 3, 30, "", "2.0.1", "c1"),
        Record("match.m1", "read_events", "key:1", 5000, 1, 1, "7.0.1", "8.0.1", "c2"),
    ]
    auditor.note("match.m1", "replay", "anonymous", 4, "", "9.0.1", "c3")
    await auditor.close()
    assert len(await records(client)) == 3, "what waits at the end is appended"


async def test_there_is_room_for_so_many_records_and_archived_ones_make_room(
    client: Redis, scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "ENTRIES_MAX", 5)
    many = [Record("match.m1", "replay", "anonymous", n) for n in range(8)]
    assert await audit.append(scripts, 4, many) == 3
    assert [record.at_ms for record in await records(client)] == [0, 1, 2, 3, 4]
    shard = shard_of("match.m1", 4)
    entries: Any = await client.xrange(keys.audit(shard))
    await client.hset(keys.archive(shard, "audit"), "committed", entries[3][0])
    assert await audit.append(scripts, 4, many[5:]) == 0
    assert [record.at_ms for record in await records(client)] == [3, 4, 5, 6, 7], "only what is archived is dropped"


async def test_records_beyond_the_bound_are_lost_and_counted(scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_MAX", 2)
    before = REGISTRY.get_sample_value("audit_lost_total") or 0.0
    auditor = Auditor(scripts, 4)
    for number in range(5):
        auditor.note(f"match.m{number}", "replay", "anonymous", 1, "", "", "c")
    assert (REGISTRY.get_sample_value("audit_lost_total") or 0.0) - before == 3
    await auditor.close()


@pytest.fixture
def own_server(tmp_path: Any) -> Any:
    with running_redis(tmp_path / "redis") as server:
        yield server


async def test_records_wait_for_a_redis_that_is_away(own_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_S", 0.02)
    monkeypatch.setattr(module, "BACKOFF_S", 0.05)
    client = connect(Settings(redis_url=own_server.url))
    own_server.kill9()
    auditor = Auditor(Scripts(client, 4, audit.sources()), 4)
    errors = REGISTRY.get_sample_value("loop_errors_total", {"loop": "audit"}) or 0.0
    auditor.note("match.m1", "replay", "anonymous", 1, "", "", "c")
    await wait_until(
        lambda: (REGISTRY.get_sample_value("loop_errors_total", {"loop": "audit"}) or 0.0) > errors, 10, "a failure"
    )
    own_server.start()
    with redis.Redis.from_url(own_server.url) as sync:
        await wait_until(lambda: sync.exists(keys.audit(shard_of("match.m1", 4))) == 1, 10, "the record arrives")
    await auditor.close()
    await client.aclose()


async def test_what_cannot_be_appended_at_the_end_is_counted(
    own_server: RedisServer,
) -> None:
    client = connect(Settings(redis_url=own_server.url))
    own_server.kill9()
    auditor = Auditor(Scripts(client, 4, audit.sources()), 4)
    lost = REGISTRY.get_sample_value("audit_lost_total") or 0.0
    auditor.note("match.m1", "replay", "anonymous", 1, "", "", "c")
    await auditor.close()
    assert (REGISTRY.get_sample_value("audit_lost_total") or 0.0) - lost == 1
    await client.aclose()


def test_a_key_is_told_apart_and_not_told() -> None:
    assert key_id("secret-key-1") != key_id("secret-key-2")
    assert "secret" not in key_id("secret-key-1")
    assert len(key_id("x")) == len("key:") + 8
