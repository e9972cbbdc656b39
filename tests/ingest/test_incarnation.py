"""Redis restarts or is killed under a load: epochs, and no event lost or counted twice."""

import asyncio
import random
from collections import Counter
from functools import partial
from pathlib import Path

import httpx
import msgspec
import pytest
import redis.asyncio as redis

from core import keys
from core.epochs import load
from core.events import decode_vote
from core.names import shard_of
from core.settings import Settings
from tests.ingest.conftest import POLL, Log, event, http_client, vote
from tests.support.redis_server import RedisServer, running_redis
from tests.support.waiting import wait_until

KILLS = 3


async def persistently(client: httpx.AsyncClient, url: str, body: object = None) -> httpx.Response:
    """Post as the contract tells clients to: after a 503 the same again. Anything else is the answer."""
    answers: list[httpx.Response] = []

    async def is_answered() -> bool:
        answers.append(await client.post(url, json=body))
        return answers[-1].status_code != 503

    await wait_until(is_answered, what=url)
    assert answers[-1].is_success, answers[-1].text
    return answers[-1]


async def test_after_a_restart_the_first_append_is_already_in_a_new_epoch(settings: Settings, tmp_path: Path) -> None:
    shard = shard_of("match.m1.1", 4)
    with running_redis(tmp_path / "redis") as server:
        own = msgspec.structs.replace(settings, redis_url=server.url)
        async with http_client(own) as client, redis.Redis.from_url(server.url) as looking:
            log = Log(looking)
            begun = []
            for run in (1, 2, 3):
                answer = await persistently(client, "/api/v1/events", [event(f"e{run}"), event("first")])
                assert answer.json() == {"accepted": 2 if run == 1 else 1, "duplicates": 0 if run == 1 else 1}
                begun.append((await load(looking, shard)).current)
                await asyncio.to_thread(server.restart)
            entries = await log.entries()
            epochs = await load(looking, shard)
            assert begun == sorted(set(begun))
            assert [epochs.of(entry.id) for entry in entries] == [begun[0], *begun]
            assert [entry.ordinal for entry in entries] == [1, 2, 3, 4]


async def test_polls_are_changed_in_the_new_epoch_too(settings: Settings, tmp_path: Path) -> None:
    with running_redis(tmp_path / "redis") as server:
        own = msgspec.structs.replace(settings, redis_url=server.url)
        async with http_client(own) as client, redis.Redis.from_url(server.url) as looking:
            await client.put("/api/v1/polls/p1", json=POLL)
            started = (await load(looking, shard_of("poll.p1", 4))).current
            await asyncio.to_thread(server.restart)
            await persistently(client, "/api/v1/polls/p1/close")
            [poll, close] = await Log(looking).entries()
            epochs = await load(looking, shard_of("poll.p1", 4))
            assert (epochs.of(poll.id), epochs.of(close.id)) == (started, epochs.current)
            assert epochs.current > started


class Sender:
    """Posts bodies of votes until each is accepted, repeating the same body after a failure."""

    def __init__(self, client: httpx.AsyncClient, number: int) -> None:
        self._client = client
        self._number = number
        self.sent: list[str] = []
        self.told: Counter[str] = Counter()
        self.repeats = 0

    async def run(self, done: asyncio.Event) -> None:
        while not done.is_set():
            ids = [f"{self._number}-{len(self.sent) + n}" for n in range(20)]
            while not await self._post([vote(id_) for id_ in ids]):
                self.repeats += 1
                await asyncio.sleep(0.01)  # a client's own pause before it repeats
            self.sent += ids

    async def _post(self, body: list[dict[str, object]]) -> bool:
        answer = await self._client.post("/api/v1/votes", json=body)
        if answer.status_code == 202:
            self.told.update(answer.json())
        else:
            assert answer.status_code == 503
        return answer.status_code == 202


async def kill_under_load(server: RedisServer, senders: list[Sender]) -> None:
    """Kill at a random moment of the load, once every sender has had an answer since the last kill."""
    for _ in range(KILLS):
        sent = {sender: len(sender.sent) for sender in senders}
        repeats = sum(sender.repeats for sender in senders)
        await wait_until(partial(_all_went_on, sent), what="every sender goes on")
        await asyncio.sleep(random.uniform(0, 0.05))
        await asyncio.to_thread(server.kill9)
        await wait_until(lambda: sum(s.repeats for s in senders) > repeats, what="requests were hit")  # noqa: B023
        await asyncio.to_thread(server.start)


def _all_went_on(sent: dict[Sender, int]) -> bool:
    return all(len(sender.sent) > before for sender, before in sent.items())


@pytest.mark.crash
async def test_redis_killed_under_a_load_loses_and_repeats_nothing(settings: Settings, tmp_path: Path) -> None:
    with running_redis(tmp_path / "redis") as server:
        own = msgspec.structs.replace(settings, redis_url=server.url)
        async with http_client(own) as client, redis.Redis.from_url(server.url) as looking:
            await client.put("/api/v1/polls/p1", json=POLL)
            done = asyncio.Event()
            senders = [Sender(client, number) for number in range(6)]
            load_ = [asyncio.create_task(sender.run(done)) for sender in senders]
            await kill_under_load(server, senders)
            done.set()
            await asyncio.gather(*load_)
            entries = await Log(looking).entries("vote")
            recorded = await looking.hgetall(keys.epochs(shard_of("poll.p1", 4)))
    sent = [id_ for sender in senders for id_ in sender.sent]
    assert Counter(decode_vote(entry.body).event_id for entry in entries) == Counter(sent)
    assert [entry.ordinal for entry in entries] == list(range(1, len(sent) + 1))
    told = sum((sender.told for sender in senders), Counter())
    assert told.total() == len(sent)
    assert told["accepted"] <= len(sent)  # what was stored although its answer was lost counts as duplicates
    assert sum(name.isdigit() for name in recorded) == KILLS + 1
