"""Scripts under the incarnation rule, against real servers that are killed and restarted."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from hashlib import sha1
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from redis.exceptions import ResponseError

from core import epochs, keys
from core.errors import Fatal, Fenced, Retry
from core.position import EntryId, parse_entry_id
from core.redis_client import Redis, Scripts, call, connect, identify, lua
from core.settings import Settings
from tests.support.redis_server import Binary, RedisServer, redis_binary, running_redis
from tests.support.waiting import wait_until

pytestmark = pytest.mark.redis

SHARDS = 3
APPEND = "return redis.call('XADD', KEYS[1], '*', 'h', ARGV[1], 'd', ARGV[2])"
SOURCES = {"append": APPEND, "fence": "return redis.error_reply('FENCED token 1 is not 2')"}


@pytest.fixture(params=["valkey", "redis"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own, to be killed."""
    binary: Binary = request.param
    if binary == "redis" and redis_binary() is None:
        pytest.skip("no redis-server on this machine")
    with running_redis(tmp_path / "redis", binary, maxmemory_mb=100) as running:
        yield running


@pytest_asyncio.fixture
async def client(server: RedisServer) -> AsyncIterator[Redis]:
    client = connect(Settings(redis_url=server.url))
    yield client
    await client.aclose()


async def epochs_begun(client: Redis, shard: int) -> int:
    """How many epochs a shard has recorded."""
    return sum(name.isdigit() for name in await client.hgetall(keys.epochs(shard)))


async def append(scripts: Scripts, shard: int = 0) -> str:
    reply = await scripts.run("append", [keys.events(shard)], ["h", "d"])
    return str(reply.decode())


async def test_first_script_starts_an_epoch_of_every_shard_before_it_runs(client: Redis) -> None:
    scripts = Scripts(client, SHARDS, SOURCES)
    last = parse_entry_id(await append(scripts))
    for shard in range(SHARDS):
        table = await epochs.load(client, shard)
        assert table.of(EntryId(0, 1)) == table.current
        assert 0 <= last.ms - table.current < 60_000, "a moment of the server's clock"
    assert scripts.loads == 1


async def test_scripts_are_loaded_once_for_many_calls_at_once(client: Redis) -> None:
    scripts = Scripts(client, SHARDS, SOURCES)
    await asyncio.gather(*(append(scripts) for _ in range(30)))
    assert scripts.loads == 1
    assert await client.xlen(keys.events(0)) == 30


async def test_restarted_server_gets_a_new_epoch_before_anything_is_written(server: RedisServer, client: Redis) -> None:
    scripts = Scripts(client, SHARDS, SOURCES)
    last = await append(scripts)
    started = (await epochs.load(client, 0)).current
    server.kill9()
    server.start()
    with pytest.raises(Retry):  # the old connection is found to be dead
        await append(scripts)
    first = await append(scripts)
    assert scripts.loads == 2
    table = await epochs.load(client, 0)
    assert table.current > started
    ids = [parse_entry_id(text) for text in (last, first)]
    assert [table.of(id_) for id_ in ids] == [started, table.current]
    assert table.of(ids[0].next) == table.current


async def test_two_writers_racing_after_a_restart_start_one_epoch(server: RedisServer, client: Redis) -> None:
    other = connect(Settings(redis_url=server.url))
    writers = [Scripts(client, SHARDS, SOURCES), Scripts(other, SHARDS, SOURCES)]
    for restart in range(1, 4):
        await client.connection_pool.disconnect()
        await other.connection_pool.disconnect()
        await asyncio.gather(*(append(writer, shard) for writer in writers for shard in range(SHARDS)))
        for shard in range(SHARDS):
            assert await epochs_begun(client, shard) == restart
        server.kill9()
        server.start()
    await other.aclose()


async def test_writer_that_knows_its_scripts_cannot_write_under_an_old_epoch(
    server: RedisServer, client: Redis
) -> None:
    """A reader of another process may connect first; only `Scripts` puts a writing script into a server."""
    scripts = Scripts(client, SHARDS, SOURCES)
    await append(scripts)
    server.restart()
    await client.connection_pool.disconnect()
    assert await epochs_begun(client, 0) == 1
    await append(scripts)
    assert await epochs_begun(client, 0) == 2


async def test_rollback_is_seen_by_its_cursor(server: RedisServer, client: Redis) -> None:
    """The tail of the append-only file is lost: ids given out in it belong to no epoch any more."""
    scripts = Scripts(client, 1, SOURCES)
    kept = parse_entry_id(await append(scripts))
    before = (await epochs.load(client, 0)).at(kept)
    size = aof(server).stat().st_size
    lost = parse_entry_id(await append(scripts))
    rolled_back = (await epochs.load(client, 0)).at(lost)
    server.kill9()
    with aof(server).open("r+b") as file:
        file.truncate(size)
    server.start()
    await client.connection_pool.disconnect()
    await append(scripts)
    table = await epochs.load(client, 0)
    assert table.holds(before)
    assert not table.holds(rolled_back)


async def test_restored_copy_that_forgot_an_epoch_does_not_give_its_number_again(
    server: RedisServer, client: Redis, tmp_path: Path
) -> None:
    """Or else a cursor of the lost part would look good as soon as the log has grown beyond it again."""
    scripts = Scripts(client, 1, SOURCES)
    kept = parse_entry_id(await append(scripts))
    before = (await epochs.load(client, 0)).at(kept)
    server.stop()
    shutil.copytree(server.directory, tmp_path / "backup")
    server.start()
    await client.connection_pool.disconnect()
    lost = parse_entry_id(await append(scripts))
    cursor = (await epochs.load(client, 0)).at(lost)
    server.kill9()
    shutil.rmtree(server.directory)
    shutil.copytree(tmp_path / "backup", server.directory)
    server.start()
    await client.connection_pool.disconnect()
    assert parse_entry_id(await append(scripts)) > lost
    table = await epochs.load(client, 0)
    assert await epochs_begun(client, 0) == 2
    assert table.holds(before)
    assert not table.holds(cursor)


async def test_epochs_count_on_when_the_clock_was_set_back(client: Redis) -> None:
    ahead = 9_999_999_999_999
    await client.hset(keys.epochs(0), mapping={"run": "another server", "now": ahead, str(ahead): "0-1"})
    await append(Scripts(client, 1, SOURCES))
    assert (await epochs.load(client, 0)).current == ahead + 1


async def test_epoch_that_cannot_be_written_keeps_the_scripts_out(server: RedisServer, client: Redis) -> None:
    """Otherwise another process, which believes in the old epoch, would find its script and write under it."""
    scripts = Scripts(client, SHARDS, SOURCES)
    await append(scripts)
    digest = sha1(APPEND.encode(), usedforsecurity=False).hexdigest()
    assert await client.script_exists(digest) == [True]
    server.restart()
    await client.connection_pool.disconnect()
    await client.set(keys.epochs(SHARDS - 1), "not a hash")
    with pytest.raises(ResponseError):
        await append(scripts)
    assert await client.script_exists(digest) == [False]
    await client.delete(keys.epochs(SHARDS - 1))
    await append(scripts)
    assert await epochs_begun(client, 0) == 2


async def test_ensure_epoch_tells_who_started_it_and_starts_after_the_last_entry(client: Redis) -> None:
    source = lua("core", "ensure_epoch")

    async def ensure() -> list[Any]:
        reply: list[Any] = await client.eval(source, 2, keys.epochs(0), keys.events(0))
        return reply

    [first, *rest] = await ensure()
    assert rest == [b"0-1", 1]
    assert await ensure() == [first, b"0-1", 0]
    await client.xadd(keys.events(0), {"a": "b"}, id="5-7")
    await client.hset(keys.epochs(0), "run", "another server")
    [second, *rest] = await ensure()
    assert second > first
    assert rest == [b"5-8", 1]
    assert await ensure() == [second, b"5-8", 0]


async def test_ensure_epoch_counts_deleted_entries_too(client: Redis) -> None:
    """A trimmed stream keeps its last id, and an id is never given twice."""
    await client.xadd(keys.events(0), {"a": "b"}, id="5-7")
    await client.xtrim(keys.events(0), maxlen=0, approximate=False)
    reply = await client.eval(lua("core", "ensure_epoch"), 2, keys.epochs(0), keys.events(0))
    assert reply[1:] == [b"5-8", 1]


async def test_fenced_script_raises_fenced(client: Redis) -> None:
    with pytest.raises(Fenced, match="token 1 is not 2"):
        await Scripts(client, SHARDS, SOURCES).run("fence", [], [])


async def test_server_that_is_away_means_retry(server: RedisServer, client: Redis) -> None:
    server.stop()
    with pytest.raises(Retry):
        await Scripts(client, SHARDS, SOURCES).load()
    with pytest.raises(Retry):
        await call(client.ping())


async def test_server_that_is_full_means_retry(client: Redis) -> None:
    await client.config_set("maxmemory", 1)
    with pytest.raises(Retry):
        await call(client.set("k", "v"))
    await client.config_set("maxmemory", 0)


async def test_mistake_of_ours_is_not_translated(client: Redis) -> None:
    await client.set("k", "v")
    with pytest.raises(Exception, match="WRONGTYPE") as caught:
        await call(client.xlen("k"))
    assert not isinstance(caught.value, Retry)


async def test_identity_is_drawn_once_whoever_asks(client: Redis) -> None:
    settings = Settings()
    drawn = await asyncio.gather(*(identify(client, settings, proposal=f"id{i}", now_ms=i) for i in range(8)))
    assert len(set(drawn)) == 1
    assert drawn[0][1] == 4


async def test_number_of_shards_is_final(client: Redis) -> None:
    assert await identify(client, Settings(shards=7), proposal="a", now_ms=1) == ("a", 7)
    assert await identify(client, Settings(), proposal="b", now_ms=2) == ("a", 7)
    with pytest.raises(Fatal, match="ARENACAST_SHARDS is 8, but this log was created with 7"):
        await identify(client, Settings(shards=8), proposal="c", now_ms=3)


async def test_pool_that_is_exhausted_means_retry(server: RedisServer) -> None:
    client = connect(Settings(redis_url=server.url), connections_max=1)
    client.connection_pool.timeout = 0.05  # type: ignore[attr-defined]
    blocked = asyncio.ensure_future(call(client.blpop(["nothing"], timeout=5)))
    await wait_until(lambda: client.connection_pool._in_use_connections)
    with pytest.raises(Retry):
        await call(client.ping())
    blocked.cancel()
    await asyncio.gather(blocked, return_exceptions=True)
    await client.aclose()


def aof(server: RedisServer) -> Path:
    """The file that a running server appends to."""
    return max((server.directory / "appendonlydir").glob("*.incr.aof"), key=lambda path: path.name)
