"""Ownership of shards: one owner at a time, shares move, the dead are replaced."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import redis
from prometheus_client import REGISTRY

from consumers.lease import Homes, Leases, Ownership, Work, lease_sources, preferred_owner
from core import keys, redis_client
from core.redis_client import Scripts
from core.settings import Settings
from tests.support.waiting import wait_until

SHARDS = 8
TTL_S = 0.6


def test_only_the_share_of_a_leaving_owner_moves() -> None:
    owners = [f"owner{n}" for n in range(4)]
    before = {shard: preferred_owner(shard, owners) for shard in range(64)}
    after = {shard: preferred_owner(shard, owners[1:]) for shard in range(64)}
    assert all(after[shard] == owner for shard, owner in before.items() if owner != "owner0")
    assert min(Counter(before.values()).values()) >= 64 // 4 // 2
    assert preferred_owner(0, []) is None


class Node:
    """One process's leases, with a work that records who owns what."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.client = redis_client.connect(settings)
        self.leases = Leases(Scripts(self.client, SHARDS, lease_sources()), "job", SHARDS, name, TTL_S)
        self.tokens: dict[int, int] = {}
        self.stop = asyncio.Event()
        self.task = asyncio.create_task(self.leases.run(self._work, self.stop))

    async def _work(self, ownership: Ownership) -> None:
        self.tokens[ownership.shard] = ownership.token
        try:
            await ownership.stop.wait()
        finally:
            del self.tokens[ownership.shard]

    async def end(self) -> None:
        self.stop.set()
        await asyncio.wait_for(self.task, 10)
        await self.client.aclose()

    async def die(self) -> None:
        """Vanish without giving anything up, as kill -9 does."""
        self.task.cancel()
        self.leases._held.clear()  # its work dies with it, and nothing is released
        await asyncio.wait([self.task])
        await self.client.aclose()


@asynccontextmanager
async def leased(settings: Settings, work: Work, homes: Homes | None = None) -> AsyncIterator[None]:
    """One consumer of one shard; it stops in order at the end."""
    client, stop = redis_client.connect(settings), asyncio.Event()
    leases = Leases(Scripts(client, 1, lease_sources()), "job", 1, "me", TTL_S, homes)
    task = asyncio.create_task(leases.run(work, stop))
    yield
    stop.set()
    await asyncio.wait_for(task, 5)
    await client.aclose()


@pytest.mark.redis
async def test_two_consumers_share_the_shards_and_never_both_own_one(settings: Settings) -> None:
    first = Node(settings, "first")
    await wait_until(lambda: len(first.tokens) == SHARDS, 5, "first owns all")
    second = Node(settings, "second")
    await wait_until(lambda: bool(second.tokens) and len(first.tokens) + len(second.tokens) == SHARDS, 5, "shared")
    assert not set(first.tokens) & set(second.tokens)
    await second.end()
    await wait_until(lambda: len(first.tokens) == SHARDS, 5, "first owns all again")
    await first.end()
    client = redis.Redis.from_url(settings.redis_url)
    assert not [shard for shard in range(SHARDS) if client.exists(keys.lease(shard, "job"))], "leases are given up"


@pytest.mark.redis
async def test_a_dead_owners_shards_are_taken_over_with_a_higher_token(settings: Settings) -> None:
    first = Node(settings, "first")
    await wait_until(lambda: len(first.tokens) == SHARDS, 5, "first owns all")
    tokens = dict(first.tokens)
    await first.die()
    second = Node(settings, "second")
    await wait_until(lambda: len(second.tokens) == SHARDS, 5, "taken over after expiry")
    assert all(second.tokens[shard] > tokens[shard] for shard in range(SHARDS))
    await second.end()


@pytest.mark.redis
async def test_a_lost_lease_is_acquired_anew_with_a_new_token(settings: Settings) -> None:
    node = Node(settings, "node")
    await wait_until(lambda: len(node.tokens) == SHARDS, 5, "owns all")
    before = node.tokens[3]
    redis.Redis.from_url(settings.redis_url).delete(keys.lease(3, "job"))
    await wait_until(lambda: node.tokens.get(3, 0) > before, 5, "acquired anew")
    await node.end()


@pytest.mark.redis
async def test_work_that_fails_is_started_again(settings: Settings) -> None:
    starts: list[int] = []

    async def work(ownership: Ownership) -> None:
        starts.append(ownership.token)
        if len(starts) == 1:
            raise RuntimeError("a bug")
        await ownership.stop.wait()

    async with leased(settings, work):
        await wait_until(lambda: len(starts) == 2, 5, "started again")


@pytest.mark.redis
async def test_work_that_swallows_its_cancellation_holds_nobody_up(settings: Settings) -> None:
    tokens: list[int] = []

    async def work(ownership: Ownership) -> None:
        tokens.append(ownership.token)
        while not ownership.stop.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)

    async with leased(settings, work):
        await wait_until(lambda: len(tokens) == 1, 5, "owned")
        redis.Redis.from_url(settings.redis_url).delete(keys.lease(0, "job"))
        await wait_until(lambda: len(tokens) == 2, 5, "acquired anew")


@pytest.mark.redis
async def test_an_unexpected_failure_is_survived_and_counted(settings: Settings) -> None:
    calls, owned = [], asyncio.Event()

    async def homes() -> dict[int, str]:
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError("no error of ours")
        return {}

    async def work(ownership: Ownership) -> None:
        owned.set()
        await ownership.stop.wait()

    def failures() -> float:
        return REGISTRY.get_sample_value("loop_errors_total", {"loop": "lease"}) or 0.0

    before = failures()
    async with leased(settings, work, homes):
        await asyncio.wait_for(owned.wait(), 10)
        assert failures() == before + 1
