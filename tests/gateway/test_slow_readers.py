"""Readers who do not keep up: bounded memory, caught up when they drain, closed when they do not; others unharmed."""

import asyncio
import json
import socket
from collections.abc import Iterator
from functools import partial

import httpx
import pytest

from core.settings import Settings
from gateway.hub import State
from tests.gateway.output_log import OutputLog
from tests.gateway.readers import read, reading
from tests.gateway.server import Gateway, Kind, running_gateway
from tests.support.waiting import wait_until

pytestmark = pytest.mark.redis

TOPIC = "match.m1.1"
HIGH_WATER = 64 * 1024


@pytest.fixture
def gateway(settings: Settings, log: OutputLog, sink: Kind) -> Iterator[Gateway]:
    with running_gateway(settings, sink, lag_max_s=2.0, heartbeat_s=3.0) as running:
        yield running


class Slow:
    """A raw SSE reader with a bounded receive buffer that reads when told to."""

    def __init__(self, gateway: Gateway, cursor: str = "") -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
        self.socket.connect(("127.0.0.1", gateway.port))
        self.socket.settimeout(10)
        path = f"/api/v1/stream?topics={TOPIC}" + (f"&cursor={cursor}" if cursor else "")
        self.socket.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        self.events: list[int] = []
        """Numbers of the events read so far, whole ones only."""
        self.states: list[int] = []
        self.last_id = ""
        self._rest = b""

    def read_some(self, size: int = 65_536) -> bool:
        """False at the end of the stream."""
        try:
            part = self.socket.recv(size)
        except ConnectionError:
            return False
        *blocks, self._rest = (self._rest + part).split(b"\n\n")
        for block in blocks:
            lines = dict(line.split(b": ", 1) for line in block.split(b"\n") if b": " in line)
            self.last_id = lines.get(b"id", self.last_id.encode()).decode()
            if lines.get(b"event") == b"round_end":
                self.events.append(json.loads(lines[b"data"])["n"])
            elif lines.get(b"event") == b"state":
                self.states.append(json.loads(lines[b"data"])["round_no"])
        return bool(part)


def write(log: OutputLog, first: int, last: int, pad: int = 40_000) -> None:
    """40 KB each: the plain sink's server leaves the kernel's buffer to grow to megabytes."""
    for n in range(first, last):
        state = {"round_no": n}
        event = {"n": n, "pad": "x" * pad}
        log.apply((TOPIC, [("round_end", False, event), ("state", True, state)], state))


def states(gateway: Gateway) -> list[State]:
    def look() -> list[State]:
        hub = gateway.inside.hub
        live = [subscriber for channel in hub._interned.values() for subscriber in channel.live]
        return [subscriber.state for subscriber in (*live, *hub._behind, *hub._paused)]

    return gateway.call(look)


async def test_reader_that_stands_still_holds_no_more_than_the_high_water_mark_and_is_closed(
    gateway: Gateway, log: OutputLog
) -> None:
    slow = Slow(gateway)
    await wait_until(lambda: states(gateway) == [State.LIVE])
    fast = Slow(gateway)
    await wait_until(lambda: states(gateway) == [State.LIVE, State.LIVE])

    def read_all() -> None:
        while 299 not in fast.states:
            assert fast.read_some()

    reading_all = asyncio.create_task(asyncio.to_thread(read_all))
    for last in range(23, 300, 23):  # 12 MB, so that the fast one keeps up on the busiest machine
        write(log, last - 22, last + 1)
        await wait_until(partial(fast.states.__contains__, last), 10)
    await asyncio.wait_for(reading_all, 10)
    assert fast.events == list(range(1, 300))
    await wait_until(lambda: len(gateway.inside.wheel) == 1, 15)
    fast.socket.close()
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        assert 'gateway_evictions_total{reason="seconds"}' in (await client.get("/metrics")).text
    while slow.read_some():
        pass
    assert slow.events == list(range(1, len(slow.events) + 1)), "what it got is in order and without a hole"
    again = Slow(gateway, cursor=slow.last_id)
    seen = len(slow.events)
    while len(again.events) < 299 - seen:
        assert again.read_some()
    assert [*slow.events, *again.events] == list(range(1, 300)), "its cursor was good"
    again.socket.close()


async def test_reader_that_drains_is_caught_up_with_events_whole_and_states_conflated(
    gateway: Gateway, log: OutputLog
) -> None:
    slow = Slow(gateway)
    await wait_until(lambda: states(gateway) == [State.LIVE])
    write(log, 1, 200)
    await wait_until(lambda: states(gateway) == [State.PAUSED])
    write(log, 200, 300, pad=100)
    while 299 not in slow.states:
        assert slow.read_some()
        await asyncio.sleep(0)
    assert slow.events == list(range(1, 300))
    assert len(slow.states) < 250
    assert slow.states == sorted(set(slow.states))
    await wait_until(lambda: states(gateway) == [State.LIVE])
    slow.socket.close()
    await wait_until(lambda: not states(gateway))


async def test_ten_readers_at_one_byte_a_second_do_not_grow_memory(settings: Settings, log: OutputLog) -> None:
    with running_gateway(settings, lag_max_s=60.0) as gateway:
        slow = [Slow(gateway) for _ in range(10)]
        await wait_until(lambda: len(states(gateway)) == 10)
        write(log, 1, 100)
        await wait_until(lambda: states(gateway) == [State.PAUSED] * 10)

        def unsent() -> list[int]:
            return [connection.transport.get_write_buffer_size() for connection in gateway.inside.wheel]  # type: ignore[attr-defined]

        before = gateway.call(unsent)
        for _ in range(5):
            for one in slow:
                one.read_some(1)
        write(log, 100, 200)
        async with reading(gateway, "sse", TOPIC) as fast:
            await read(fast, 2)
            log.event("m1", "1", 1)
            await read(fast, 3)
        after = [size for size in gateway.call(unsent) if size]
        assert max(before) <= 2 * HIGH_WATER + 41_000
        assert max(after) <= 2 * HIGH_WATER + 41_000
        for one in slow:
            one.socket.close()


async def test_vanished_peer_is_noticed(gateway: Gateway, log: OutputLog) -> None:
    slow = Slow(gateway)
    await wait_until(lambda: states(gateway) == [State.LIVE])
    slow.socket.close()  # with unread data: a reset
    write(log, 1, 20)
    await wait_until(lambda: len(gateway.inside.wheel) == 0)
    assert states(gateway) == []
    await wait_until(lambda: not gateway.inside.hub._interned)


async def test_all_readers_together_hold_no_more_than_the_budget_and_the_worst_go_first(
    settings: Settings, log: OutputLog
) -> None:
    with running_gateway(settings, lag_max_s=60.0, gateway_max_buffer_mb=8) as gateway:
        slow = [Slow(gateway) for _ in range(120)]
        await wait_until(lambda: len(states(gateway)) == 120)

        def held() -> int:
            return sum(connection.unsent for connection in gateway.inside.wheel)

        write(log, 1, 60)  # 120 readers fill the kernel's buffers and up to 100 KB each of ours
        await wait_until(lambda: len(gateway.inside.wheel) < 120, 10)
        await wait_until(lambda: gateway.call(held) <= 8 * 1024 * 1024)
        assert len(gateway.inside.wheel) > 40, "not more than needed"
        async with httpx.AsyncClient(base_url=gateway.url) as client:
            text = (await client.get("/metrics")).text
        (line,) = [one for one in text.splitlines() if one.startswith('gateway_evictions_total{reason="memory"}')]
        assert float(line.split()[1]) > 0
        async with reading(gateway, "sse", TOPIC) as fast:
            await read(fast, 2)
            log.event("m1", "1", 60)
            assert (await read(fast, 1))[0]["data"]["n"] == 60, "others are served"
        gone = next(one for one in slow if _is_at_its_end(one))
        again = Slow(gateway, cursor=gone.last_id)
        while len(gone.events) + len(again.events) < 60:
            assert again.read_some()
        assert [*gone.events, *again.events] == list(range(1, 61)), "its cursor was good"
        for one in (*slow, again):
            one.socket.close()


async def test_what_is_kept_for_catching_up_drives_nobody_away(settings: Settings, log: OutputLog) -> None:
    write(log, 0, 1)
    with running_gateway(settings) as before:
        first = Slow(before)
        while not first.last_id:
            assert first.read_some()
    write(log, 1, 300)
    with running_gateway(settings, lag_max_s=60.0, gateway_max_buffer_mb=8) as gateway:
        again = Slow(gateway, cursor=first.last_id)
        while 299 not in again.events:
            assert again.read_some()
        slow = Slow(gateway)
        await wait_until(lambda: states(gateway).count(State.LIVE) == 2)
        write(log, 300, 320)
        await wait_until(lambda: State.PAUSED in states(gateway))

        def relieve() -> list[bool]:
            gateway.inside._relieve(asyncio.get_running_loop().time())
            return [connection.is_closing for connection in gateway.inside.wheel]

        assert gateway.inside._backlog.chunks.count > 0
        assert gateway.call(relieve) == [False, False]
        for one in (first, again, slow):
            one.socket.close()


def _is_at_its_end(slow: Slow) -> bool:
    """Read what there is without waiting; whether the stream has ended."""
    slow.socket.settimeout(0.2)
    try:
        while slow.read_some():
            pass
    except TimeoutError:
        return False
    return True
