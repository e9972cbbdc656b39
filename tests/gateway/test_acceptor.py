"""A crowd at the door: let in a few at a time, lost never, and with its share of the time."""

import asyncio
import resource
import socket
import threading
import time
from array import array
from collections.abc import Iterator
from itertools import pairwise

import pytest

from core.settings import Settings
from gateway import acceptor, service
from gateway.acceptor import ACCEPTED_AT_ONCE, LET_IN_AT_ONCE, Acceptor
from gateway.audience import SendAll, Shortfalls, write_all
from tests.gateway import server
from tests.gateway.output_log import OutputLog
from tests.gateway.readers import read, reading
from tests.gateway.server import running_gateway
from tests.support.waiting import wait_until

CROWD = 100


class Guest(asyncio.Protocol):
    """Notes when it is let in."""

    def __init__(self, inside: list["Guest"]) -> None:
        self._inside = inside
        self.transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._inside.append(self)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=CROWD) as one:
        yield one


def crowd(listener: socket.socket, count: int = CROWD) -> list[socket.socket]:
    return [socket.create_connection(listener.getsockname()) for _ in range(count)]


async def turns(count: int) -> None:
    """Of the loop."""
    for _ in range(count):
        await asyncio.sleep(0)


def leave(inside: list[Guest], outside: list[socket.socket]) -> None:
    for guest in inside:
        assert isinstance(guest.transport, asyncio.Transport)
        guest.transport.abort()
    for one in outside:
        one.close()


async def test_a_crowd_is_let_in_a_few_per_turn(listener: socket.socket) -> None:
    outside, inside = crowd(listener), list[Guest]()
    door = Acceptor(listener, lambda: Guest(inside), lambda: False)
    most = 0
    while len(inside) < CROWD:
        before = len(inside)
        await asyncio.sleep(0)
        most = max(most, len(inside) - before)
    assert most <= LET_IN_AT_ONCE
    door.close()
    leave(inside, outside)


async def test_nobody_is_let_in_while_those_inside_are_a_crowd(listener: socket.socket) -> None:
    outside, inside, crowded = crowd(listener), list[Guest](), [False]
    door = Acceptor(listener, lambda: Guest(inside), lambda: crowded[0])
    while not inside:  # noqa: ASYNC110 - turn by turn
        await asyncio.sleep(0)
    crowded[0] = True
    await turns(5)  # for those who were on the doorstep
    before = len(inside)
    await turns(CROWD)
    assert len(inside) == before < CROWD
    crowded[0] = False
    await wait_until(lambda: len(inside) == CROWD)
    door.close()
    leave(inside, outside)


async def test_whoever_was_accepted_is_let_in_when_the_door_is_closed(listener: socket.socket) -> None:
    """They are told that we shut down; those still in the kernel's queue go with the listener."""
    outside, inside = crowd(listener), list[Guest]()
    door = Acceptor(listener, lambda: Guest(inside), lambda: False)
    while not inside:  # noqa: ASYNC110 - turn by turn
        await asyncio.sleep(0)
    door.close()
    await door.wait_closed()
    await wait_until(lambda: len(inside) >= ACCEPTED_AT_ONCE)
    door.close()
    leave(inside, outside)


async def test_running_out_of_descriptors_is_survived(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "PAUSE_S", 0.02)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    outside, inside = crowd(listener, 3), list[Guest]()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(one.fileno() for one in outside) + 1, before[1]))
        door = Acceptor(listener, lambda: Guest(inside), lambda: False)
        await wait_until(lambda: door._pause is not None, what="it fails")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    await wait_until(lambda: len(inside) == 3)
    door.close()
    leave(inside, outside)


@pytest.mark.redis
async def test_after_a_flush_those_who_join_get_as_much_time_as_it_took(
    settings: Settings, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of live readers and a steady stream: as much to send as there is time."""
    flushes: list[tuple[float, float]] = []

    def slow(_settings: Settings) -> SendAll:
        def send_all(descriptors: "array[int]", frame: bytes) -> Shortfalls:
            started = time.perf_counter()
            time.sleep(0.02)
            found = write_all(descriptors, frame)
            flushes.append((started, time.perf_counter()))
            return found

        return send_all

    monkeypatch.setattr(server, "sender", slow)
    monkeypatch.setattr(service, "CROWD_S", 60.0)  # somebody is joining all the while
    log = OutputLog(redis_url)
    stop = threading.Event()

    def publish() -> None:
        while not stop.wait(0.01):
            log.event("m1", "1", 1)

    publishing = threading.Thread(target=publish)
    with running_gateway(settings) as gateway:
        async with reading(gateway, "sse", "match.m1.1") as live:
            await read(live, 2)
            publishing.start()
            try:
                await wait_until(lambda: len(flushes) >= 12, 30, "a stream of flushes")
            finally:
                stop.set()
                publishing.join()
    log.close()
    for (started, ended), (following, _) in pairwise(flushes[:12]):
        assert following - ended >= 0.9 * (ended - started), "without a share of their own it comes at once"
