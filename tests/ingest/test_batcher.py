"""Micro-batching: shared calls, order, bounds, and what everybody hears when a call fails."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest
import redis.asyncio as redis

from core import keys
from core.errors import Retry
from core.problem import Problem
from core.redis_client import Scripts, connect
from core.settings import Settings
from ingest import batcher as module
from ingest.append import Appender, Group, sources
from ingest.batcher import Batcher, Outcome
from tests.ingest.conftest import Log
from tests.support.waiting import wait_until

TOPIC = "match.m.1"
Pause = Callable[[], Awaitable[None]]


class CountingAppender(Appender):
    """The real one, remembering the sizes of its calls."""

    calls: list[int]

    async def append(self, shard: int, groups: Sequence[Group]) -> list[str]:
        self.calls.append(sum(len(group.sources) for group in groups))
        return await super().append(shard, groups)


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[redis.Redis]:
    async with connect(settings) as connection:
        yield connection
        await connection.client_unpause()


@pytest.fixture
def appender(client: redis.Redis) -> CountingAppender:
    appender = CountingAppender(Scripts(client, 1, sources()), 1, 3600)
    appender.calls = []
    return appender


def batching(appender: Appender, *, batch_max: int = 500, queue_max: int = 50_000) -> Batcher:
    return Batcher(appender, batch_max=batch_max, queue_max=queue_max)


def group(name: str, count: int = 1, topic: str = TOPIC, size: int = 10) -> Group:
    items: list[str | bytes] = [
        part for n in range(count) for part in (f"{name}{n}", f"{name}{n}".ljust(size).encode())
    ]
    return Group("match", topic, f"match {topic} 1 {name}", items, ["api"] * count)


@pytest.fixture
async def pause(client: redis.Redis) -> AsyncIterator[Pause]:
    """Lets the server hold writes back, as a slow disk would."""

    async def hold() -> None:
        await client.client_pause(60_000, all=False)

    yield hold
    await client.client_unpause()


async def test_the_first_item_goes_at_once_and_what_comes_meanwhile_shares_a_call(
    appender: CountingAppender, client: redis.Redis, pause: Pause, log: Log
) -> None:
    async with batching(appender, batch_max=8) as batcher:
        await batcher.submit([group("warm")])
        await pause()
        first = asyncio.create_task(batcher.submit([group("first")]))
        await wait_until(lambda: len(appender.calls) == 2)
        rest = [asyncio.create_task(batcher.submit([group(f"r{n}", 2)])) for n in range(10)]
        await asyncio.sleep(0)
        await client.client_unpause()
        outcomes = await asyncio.gather(first, *rest)
    assert [outcome.accepted for outcome in outcomes] == [1] + [2] * 10
    assert appender.calls == [1, 1, 8, 8, 4]
    stored = [entry.body.decode().strip() for entry in await log.entries()]
    assert stored == ["warm0", "first0", *(f"r{n}{i}" for n in range(10) for i in range(2))]


async def test_a_group_larger_than_a_batch_keeps_its_order(appender: CountingAppender, log: Log) -> None:
    async with batching(appender, batch_max=10) as batcher:
        outcome = await batcher.submit([group("a", 35), group("b", 5, topic="match.m.2")])
    assert (outcome.accepted, outcome.duplicates) == (40, 0)
    assert max(appender.calls) == 10
    stored = [entry.body.decode().strip() for entry in await log.entries() if entry.topic == TOPIC]
    assert stored == [f"a{n}" for n in range(35)]


async def test_a_batch_is_bounded_in_bytes_but_takes_one_large_part_alone(
    appender: CountingAppender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_MAX_BYTES", 1000)
    async with batching(appender) as batcher:
        large = [group("large", 2, size=2000), group("s", 2, size=400), group("t", 1, size=400)]
        assert (await batcher.submit(large)).accepted == 5
    assert appender.calls == [2, 2, 1]


@pytest.mark.parametrize("bound", ["entries", "bytes"])
async def test_a_full_queue_refuses_whole_requests_and_stores_nothing_of_them(
    appender: CountingAppender,
    pause: Pause,
    client: redis.Redis,
    log: Log,
    bound: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if bound == "bytes":
        monkeypatch.setattr(module, "QUEUE_MAX_BYTES", 2000)
    async with batching(appender, queue_max=20 if bound == "entries" else 1000) as batcher:
        await batcher.submit([group("warm")])
        await pause()
        first = asyncio.create_task(batcher.submit([group("first")]))
        await wait_until(lambda: len(appender.calls) == 2)
        waiting = asyncio.create_task(batcher.submit([group("w", 15, size=200)]))
        await asyncio.sleep(0)
        with pytest.raises(Problem) as caught:
            await batcher.submit([group("x", 6, topic="match.m.2")])
        assert (caught.value.status, caught.value.headers["Retry-After"]) == (503, "1")
        await client.client_unpause()
        await asyncio.gather(first, waiting)
        assert (await batcher.submit([group("x", 6, topic="match.m.2")])).accepted == 6
    assert len(await log.entries()) == 1 + 1 + 15 + 6


async def test_an_empty_queue_takes_a_body_larger_than_itself(appender: CountingAppender) -> None:
    async with batching(appender, queue_max=10) as batcher:
        assert (await batcher.submit([group("a", 50)])).accepted == 50


async def test_when_a_call_fails_everybody_who_waits_hears_it_and_the_shard_goes_on(
    appender: CountingAppender, client: redis.Redis, pause: Pause, log: Log
) -> None:
    async with batching(appender, batch_max=5) as batcher:
        await batcher.submit([group("warm")])
        await pause()
        requests = [asyncio.create_task(batcher.submit([group(f"r{n}", 4)])) for n in range(5)]
        await wait_until(lambda: len(appender.calls) == 2)
        await client.client_kill_filter(_type="normal", skipme=True)
        results = await asyncio.gather(*requests, return_exceptions=True)
        assert all(isinstance(result, Retry) for result in results)
        await client.client_unpause()
        assert (await batcher.submit([group("after")])).accepted == 1
        assert len(appender.calls) == 3
    assert [entry.body.strip() for entry in await log.entries()] == [b"warm0", b"after0"]


async def test_an_unexpected_reply_fails_its_requests_and_not_the_shard(
    appender: CountingAppender, client: redis.Redis
) -> None:
    await client.set(keys.seen(0, TOPIC), "not a set")
    async with batching(appender) as batcher:
        with pytest.raises(redis.ResponseError):
            await batcher.submit([group("a")])
        await client.delete(keys.seen(0, TOPIC))
        assert (await batcher.submit([group("a")])).accepted == 1


async def test_a_request_waits_for_a_bounded_time(
    appender: CountingAppender, pause: Pause, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAIT_MAX_S", 0.05)
    async with batching(appender) as batcher:
        await pause()
        with pytest.raises(Problem) as caught:
            await batcher.submit([group("a")])
        assert caught.value.status == 503


async def test_stopping_tells_everybody_who_still_waits(appender: CountingAppender, pause: Pause) -> None:
    async with batching(appender, batch_max=1) as batcher:
        await batcher.submit([group("warm")])
        await pause()
        requests = [asyncio.create_task(batcher.submit([group(f"r{n}")])) for n in range(3)]
        await wait_until(lambda: len(appender.calls) == 2)
    results = await asyncio.gather(*requests, return_exceptions=True)
    assert [type(result) for result in results] == [Retry] * 3


async def test_nothing_to_append_is_done_at_once() -> None:
    assert (await Outcome(0).wait()).accepted == 0
