"""The append script on a real server: once, in order, numbered, remembered for as long as promised."""

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Literal

import pytest
import redis.asyncio as redis
from redis import Redis as SyncRedis

from core import keys
from core.errors import Retry
from core.redis_client import Scripts, connect
from core.settings import Settings
from ingest.append import Appender, Group, sources
from tests.ingest.conftest import Log
from tests.support.redis_server import RedisServer, redis_binary, running_redis

SHARD = 0
WINDOW_S = 3600


@pytest.fixture(scope="module", params=["valkey", "redis"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The embedded Valkey, and the system's Redis where there is one."""
    if request.param == "redis" and redis_binary() is None:
        pytest.skip("no redis-server on this machine")
    with running_redis(tmp_path_factory.mktemp(request.param), request.param) as running:
        yield running


@pytest.fixture
def settings(server: RedisServer) -> Settings:
    with SyncRedis.from_url(server.url) as connection:
        connection.flushall()
    return Settings(redis_url=server.url)


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[redis.Redis]:
    async with connect(settings) as connection:
        await connection.hset(keys.definition(SHARD, "poll.p1"), mapping={"def": "{}", "rev": "1"})
        yield connection


@pytest.fixture
def appender(client: redis.Redis) -> Appender:
    return Appender(Scripts(client, 1, sources()), 1, WINDOW_S)


def group(ids: Sequence[str], topic: str = "poll.p1", suppression: str = "") -> Group:
    kind: Literal["vote", "match"] = "vote" if topic.startswith("poll.") else "match"
    items: list[str | bytes] = [part for id_ in ids for part in (id_, f'"{id_}"'.encode())]
    return Group(kind, topic, f"{kind} {topic} 1700000000000000 corr", items, ["api"] * len(ids), suppression)


async def counters(client: redis.Redis) -> dict[str, int]:
    fields: Any = await client.hgetall(keys.counters(SHARD))
    return {name.decode(): int(value) for name, value in fields.items()}


async def window(client: redis.Redis) -> int:
    return int((await client.time())[0]) // WINDOW_S


async def test_new_items_are_in_the_log_in_order_and_numbered_by_class(
    appender: Appender, client: redis.Redis, log: Log
) -> None:
    await appender.append(SHARD, [group("ab"), group("x", "match.m.1"), group("c")])
    await appender.append(SHARD, [group("y", "match.m.1"), group("d")])
    assert [(e.kind, e.topic, e.ordinal, e.body) for e in await log.entries()] == [
        ("vote", "poll.p1", 1, b'"a"'),
        ("vote", "poll.p1", 2, b'"b"'),
        ("match", "match.m.1", 1, b'"x"'),
        ("vote", "poll.p1", 3, b'"c"'),
        ("match", "match.m.1", 2, b'"y"'),
        ("vote", "poll.p1", 4, b'"d"'),
    ]
    assert await counters(client) == {"votes": 4, "events": 2, "duplicates": 0}


async def test_an_id_counts_once_within_its_topic_and_only_there(
    appender: Appender, client: redis.Redis, log: Log
) -> None:
    assert await appender.append(SHARD, [group("aba"), group("ca"), group("aa", "match.m.1")]) == ["110", "10", "10"]
    assert await appender.append(SHARD, [group("abd"), group("ab", "match.m.2")]) == ["001", "11"]
    assert len(await log.entries()) == 7
    assert await counters(client) == {"votes": 4, "events": 3, "duplicates": 5}


async def test_a_call_of_nothing_but_duplicates_still_writes(appender: Appender, client: redis.Redis) -> None:
    """WAIT and WAITAOF speak for the last write of their connection: there must be one."""
    await appender.append(SHARD, [group("a")])
    before = (await client.info("persistence"))["rdb_changes_since_last_save"]
    assert await appender.append(SHARD, [group("a")]) == ["0"]
    assert (await client.info("persistence"))["rdb_changes_since_last_save"] > before


async def test_votes_for_a_poll_that_does_not_exist_are_told_and_not_stored(
    appender: Appender, client: redis.Redis, log: Log
) -> None:
    assert await appender.append(SHARD, [group("ab", "poll.p2"), group("a")]) == ["??", "1"]
    assert [e.topic for e in await log.entries()] == ["poll.p1"]
    assert not [key async for key in client.scan_iter("*poll.p2*")]


async def test_the_first_new_vote_marks_its_poll(appender: Appender, client: redis.Redis) -> None:
    definition = keys.definition(SHARD, "poll.p1")
    assert await client.hget(definition, "voted") is None
    await appender.append(SHARD, [group("a")])
    assert await client.hget(definition, "voted") == b"1"


@pytest.mark.parametrize("offset", [-1, 0, 1])
async def test_ids_of_the_window_before_and_after_are_remembered(
    appender: Appender, client: redis.Redis, offset: int
) -> None:
    """Before: a repeat just after the change of windows. After: the server's clock was set back."""
    await client.sadd(f"{keys.seen(SHARD, 'poll.p1')}:{await window(client) + offset}", "old")
    assert await appender.append(SHARD, [group(["old", "new"])]) == ["01"]


async def test_older_ids_are_forgotten(appender: Appender, client: redis.Redis) -> None:
    await client.sadd(f"{keys.seen(SHARD, 'poll.p1')}:{await window(client) - 2}", "old")
    assert await appender.append(SHARD, [group(["old"])]) == ["1"]


async def test_a_window_of_ids_outlives_the_window_after_it_and_then_goes(
    appender: Appender, client: redis.Redis
) -> None:
    await appender.append(SHARD, [group("a")])
    now = int((await client.time())[0])
    seen = f"{keys.seen(SHARD, 'poll.p1')}:{now // WINDOW_S}"
    needed_until = (now // WINDOW_S + 2) * WINDOW_S
    assert needed_until <= now + await client.ttl(seen) + 1 <= now + 2 * WINDOW_S + 61
    await appender.append(SHARD, [group("b")])
    assert await client.ttl(seen) > WINDOW_S


async def test_an_id_is_remembered_over_real_changes_of_windows(client: redis.Redis) -> None:
    """With windows of a second: for at least one of them, and not for ever."""
    appender = Appender(Scripts(client, 1, sources()), 1, 1)

    async def now() -> float:
        seconds, micros = await client.time()
        return int(seconds) + int(micros) / 1e6

    first = await now()
    assert await appender.append(SHARD, [group("a")]) == ["1"]
    sent_as_new_after: float | None = None
    while sent_as_new_after is None:
        before = await now()
        if await appender.append(SHARD, [group("a")]) == ["1"]:
            sent_as_new_after = await now() - first
        assert before - first < 5
    assert 1.0 <= sent_as_new_after <= 4


async def test_ids_of_a_match_are_kept_until_its_owner_lets_them_go(appender: Appender, client: redis.Redis) -> None:
    await appender.append(SHARD, [group("a", "match.m.1")])
    assert await client.ttl(keys.seen(SHARD, "match.m.1")) == -1


async def test_an_equal_hook_body_is_suppressed_for_30_seconds_and_then_new(
    appender: Appender, client: redis.Redis, log: Log
) -> None:
    assert await appender.append(SHARD, [group(["h-1"], "match.m.1", suppression="h")]) == ["1"]
    assert await appender.append(SHARD, [group(["h-2"], "match.m.1", suppression="h")]) == ["0"]
    assert await appender.append(SHARD, [group(["i-2"], "match.m.1", suppression="i")]) == ["1"]
    suppressed = f"{keys.hook(SHARD, 'match.m.1')}:h"
    assert 28 <= await client.ttl(suppressed) <= 30
    await client.pexpire(suppressed, 0)
    assert await appender.append(SHARD, [group(["h-3"], "match.m.1", suppression="h")]) == ["1"]
    assert [e.body for e in await log.entries()] == [b'"h-1"', b'"i-2"', b'"h-3"']


async def test_a_stored_hook_event_sent_again_by_its_id_is_a_duplicate(appender: Appender) -> None:
    await appender.append(SHARD, [group(["h-1"], "match.m.1", suppression="h")])
    assert await appender.append(SHARD, [group(["h-1"], "match.m.1")]) == ["0"]


async def test_the_largest_batch_fits_into_one_call(appender: Appender, log: Log) -> None:
    """1000 items in one group, and 1000 groups of one: Lua's stack and the number of keys."""
    ids = [f"{number:0128d}" for number in range(1000)]
    assert await appender.append(SHARD, [group(ids)]) == ["1" * 1000]
    assert await appender.append(SHARD, [group([id_], f"match.m.{n}") for n, id_ in enumerate(ids)]) == ["1"] * 1000
    assert [e.ordinal for e in await log.entries("vote")] == list(range(1, 1001))


async def test_ordinals_stay_exact_far_beyond_what_lua_prints_by_itself(
    appender: Appender, client: redis.Redis, log: Log
) -> None:
    await client.hset(keys.counters(SHARD), "votes", 10**15 + 1)
    await appender.append(SHARD, [group("ab")])
    assert [e.ordinal for e in await log.entries()] == [10**15 + 2, 10**15 + 3]
    assert (await counters(client))["votes"] == 10**15 + 3


async def test_a_server_without_memory_stores_nothing_of_a_batch(
    appender: Appender, client: redis.Redis, log: Log
) -> None:
    """The server refuses the first write or none: no id is remembered without its entry."""
    await appender.append(SHARD, [group("a")])
    await client.config_set("maxmemory", 1)
    try:
        with pytest.raises(Retry):
            await appender.append(SHARD, [group("bc"), group("x", "match.m.1", suppression="h")])
    finally:
        await client.config_set("maxmemory", 256 << 20)
    assert await counters(client) == {"votes": 1, "duplicates": 0}
    assert await appender.append(SHARD, [group("bc"), group("x", "match.m.1", suppression="h")]) == ["11", "1"]
    assert [e.ordinal for e in await log.entries("vote")] == [1, 2, 3]


def test_a_long_group_is_split_in_order() -> None:
    parts = group([f"{n}" for n in range(7)]).split(3)
    assert [part.items[::2] for part in parts] == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
    assert [len(part.sources) for part in parts] == [3, 3, 1]
    assert {(part.kind, part.topic, part.header) for part in parts} == {("vote", "poll.p1", parts[0].header)}
    whole = group("abc")
    assert whole.split(3) == [whole]
