"""One scenario: a seed decides the world, the clients, what happens and when."""

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from core.errors import Retry
from core.settings import Settings
from gateway import backlog, past, resume, service, wheel
from gateway.ring import Ring
from gateway.service import Service
from gateway.subscription import Subscription, subscription
from tests.gateway.simulation.client import Broken, Client
from tests.gateway.simulation.virtual_time import run
from tests.gateway.simulation.world import LOG_ID, Shard, World

TOPICS = ("poll.a", "poll.b", "poll.c", "match.m1.1", "match.m1.2", "match.m1.series", "match.m2.1")
WANTED = (*TOPICS, "match.m1.*", "match.m2.*", "poll.never")
POLLS = tuple(topic for topic in TOPICS if topic.startswith("poll."))
STEPS = 20
CROWDS = 0.15
"""Part of the scenarios in which all clients follow the same, so that they come back with the same cursor after a cut,
and the ring has what they missed."""

ACTIONS = (
    "apply", "burst", "votes", "sleep", "cut", "trim", "archive", "forget", "archive outage", "outage", "restart",
)  # fmt: skip
WEIGHTS = (50, 10, 3, 20, 4, 9, 5, 6, 2, 3, 3)
CROWD_WEIGHTS = (40, 5, 5, 10, 40, 1, 2, 1, 1, 1, 1)
PACES = ((0.02, 50), (0.1, 5), (0.5, 1), (4.0, 1))
CROWD_PACES = PACES[:2]
"""(seconds between two reads, writes taken at each)."""

RETURNS_S = (0.0, 0.01, 1.0, 1.0, 12.0)
CROWD_RETURNS_S = (0.0, 0.1, 0.2, 0.3)
"""How long a client stays away."""

SETTLE_S = 60.0


def play(seed: int) -> set[str]:
    """Play one scenario; returns the verdicts that were given. Raises Broken when a promise was not kept."""
    rng = random.Random(seed)
    is_crowd = rng.random() < CROWDS
    with _small(rng, is_crowd):
        return run(_Scenario(rng, is_crowd).play())


@contextmanager
def _small(rng: random.Random, is_crowd: bool) -> Iterator[None]:
    """Limits so small that a scenario meets every one of them."""
    complete = rng.choice((300,) if is_crowd else (300, 2000, 20_000))
    with (
        patch.object(backlog, "COUNT_MAX", rng.choice((2, 3, 7, 50))),
        patch.object(past, "ROWS_MAX", rng.choice((2, 3, 7, 50))),
        patch.object(past, "KEPT_FRESH_S", 1.0),
        patch.object(wheel, "SLOTS", 8),  # most of the time of a scenario would be the wheel's
        patch.object(resume, "COMPLETE_BYTES", complete),
        patch.object(service, "COMPLETE_BYTES", complete),
        patch.object(service, "perf_counter", lambda: 0.0),  # no time passes while it works
    ):
        yield


class _Scenario:
    def __init__(self, rng: random.Random, is_crowd: bool) -> None:
        self._rng = rng
        self._is_crowd = is_crowd
        self._world = World(rng, rng.choice((2, 3) if is_crowd else (1, 2, 3)))
        self._is_settling = False
        self._settings = Settings(
            flush_interval_ms=rng.choice((0, 5, 200)),
            subscriber_high_water_kb=1,
            lag_max_s=rng.choice((1.0, 5.0, 30.0)),
            heartbeat_s=rng.choice((3.0, 10.0)),
        )
        self._clients: list[Client] = []
        self._services: list[Service] = []
        self._clocks: list[asyncio.Task[None]] = []

    async def play(self) -> set[str]:
        rng, world = self._rng, self._world
        self._start_service()
        common = self._subscription()
        for name in range(rng.randint(4 if self._is_crowd else 2, 6)):
            wanted = common if self._is_crowd else self._subscription()
            self._clients.append(Client(name, world, rng, wanted))
        clients = self._clients
        tasks = [asyncio.create_task(self._live(client)) for client in clients]
        for step in range(STEPS):
            if step == STEPS // 2:
                self._start_service()
            await self._act()
            for task in tasks:
                if task.done():
                    task.result()
        self._is_settling, world.is_down, world.is_archive_down = True, False, False
        for client in clients:
            if client.connection is not None:
                client.connection.news.set()
        await self._settle(clients, tasks)
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        for clock in self._clocks:
            clock.cancel()
        for one in self._services:
            await one.stop()
        for end in ends:
            if isinstance(end, Exception):  # not the cancellation: broken a moment before it
                raise end
        return {verdict for client in clients for verdict in client.verdicts_seen}

    async def _settle(self, clients: list[Client], tasks: list[asyncio.Task[None]]) -> None:
        """Nothing happens any more: everybody must have everything soon."""
        deadline = asyncio.get_running_loop().time() + SETTLE_S
        while True:
            await asyncio.wait(tasks, timeout=1.0, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                if task.done():
                    task.result()
            try:
                for client in clients:
                    client.check_caught_up()
            except Broken:
                if asyncio.get_running_loop().time() > deadline:
                    raise
            else:
                return

    def _start_service(self) -> None:
        started = Service(self._settings, self._world, LOG_ID, len(self._world.shards))
        sizes = (100_000,) if self._is_crowd else (1500, 6000, 100_000)
        started.hub.rings = [Ring(self._rng.choice(sizes)) for _ in self._world.shards]
        self._services.append(started)
        self._clocks.append(asyncio.create_task(started.run()))

    def _subscription(self) -> Subscription:
        rng = self._rng
        topics = rng.sample(TOPICS, rng.choice((5, 6))) if self._is_crowd else rng.sample(WANTED, rng.randint(1, 4))
        return subscription(topics, rng.choice(((), (), ("round_end",))))

    async def _act(self) -> None:
        rng, world = self._rng, self._world
        shard = rng.choice(world.shards)
        match rng.choices(ACTIONS, CROWD_WEIGHTS if self._is_crowd else WEIGHTS)[0]:
            case "apply":
                self._apply()
            case "burst":
                for _ in range(rng.randint(5, 40)):
                    self._apply()
            case "votes":
                await self._votes()
            case "sleep":
                await asyncio.sleep(rng.choice((0.001, 0.1, 1, 8)))
            case "cut":
                await self._cut()
            case "trim":
                self._trim(shard)
            case "archive":
                world.archive(shard, shard.last_id)
            case "forget":
                world.forget()
            case "archive outage":
                world.is_archive_down = not world.is_archive_down
                world.disturb()
            case "outage":
                await self._outage()
            case "restart":
                await self._outage(lose=rng.randint(0, 4))
        await asyncio.sleep(rng.choice((0, 0, 0.002, 0.05)))

    def _apply(self) -> None:
        rng, world = self._rng, self._world
        first = rng.choice(TOPICS)
        others = [topic for topic in TOPICS if world.shard_of(topic) == world.shard_of(first)]
        world.apply([first, *rng.choices(others, k=rng.choice((0, 0, 1, 3)))])

    async def _votes(self) -> None:
        """On one poll, while nothing else happens."""
        poll = self._rng.choice(POLLS)
        for _ in range(self._rng.randint(5, 20)):
            self._world.apply([poll])
            await asyncio.sleep(0.05)

    async def _cut(self) -> None:
        """A network in between fails: those who follow the same come back with the same cursor, one after the other."""
        for client in self._clients:
            if client.connection is not None:
                client.connection.cut()
        for _ in range(self._rng.randint(1, 6)):
            self._apply()
        await self._votes()
        if self._is_crowd:  # or the next cut finds them dispersed
            await asyncio.sleep(2.0)
            self._apply()

    def _trim(self, shard: Shard) -> None:
        """Behind the archive, as the consumers do it, or for once ahead of it."""
        keep = self._rng.randint(0, 8)
        if self._rng.random() < 0.8 and len(shard.entries) > keep:
            self._world.archive(shard, shard.entries[len(shard.entries) - keep - 1][0])
        self._world.trim(shard, keep)

    async def _outage(self, lose: int | None = None) -> None:
        world = self._world
        world.is_down = True
        for shard in world.shards:
            shard.news.set()
        await asyncio.sleep(self._rng.choice((0.3, 2.0)))  # longer than any pause between two reads: it is noticed
        if lose is not None:
            for shard in world.shards:  # one server, one restart
                world.restart(shard, lose)
        world.is_down = False

    async def _live(self, client: Client) -> None:
        """A client's life: connect, read at its own speed, drop out now and then, come back."""
        rng = self._rng
        pace = rng.choice(CROWD_PACES if self._is_crowd else PACES)
        while True:
            if self._is_settling:
                pace = (0.05, 50)
            elif client.cursor and rng.random() < 0.05:
                client.cursor = rng.choice(("garbage", client.cursor.replace("~", "~0", 1), "1~0~0.1.1.1.1"))
            try:
                await client.connect(rng.choice(self._services))
            except Retry:
                await asyncio.sleep(0.2)
                continue
            connection = client.connection
            assert connection is not None
            while True:
                await connection.readable()
                if connection.is_over:
                    break
                await asyncio.sleep(pace[0])
                connection.drain(pace[1])
                if not self._is_settling and rng.random() < 0.02:
                    break
                if self._is_settling:
                    pace = (0.05, 50)
            client.leave()
            await asyncio.sleep(rng.choice(CROWD_RETURNS_S if self._is_crowd else RETURNS_S))
