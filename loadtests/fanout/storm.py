"""A crowd that comes back at once: `python -m loadtests.fanout.storm`.

    warm    its connections were cut, the gateway lives: what it missed is in the ring
    cold    the gateway is a new process: what it missed is in Redis

Five thousand readers connect within a second, each with a cursor ten seconds old, while others stay live. Shown: how
long until each had everything up to the moment it connected, what the live ones noticed, and how often Redis was asked.
Every reader of the crowd checks that it got every message once and in order. The gateway has one core, all else the
other; the live readers are the benchmark's own client, a process that the crowd's work does not hold up. Not under
`chrt -r`: there the two would take turns of 100 ms.
"""

import argparse
import asyncio
import re
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, cast

import redis
import uvloop
from msgspec import Struct

from core.errors import ArenacastError
from core.settings import Settings
from loadtests.fanout import message, peers
from loadtests.fanout.client import Client, Report, raise_descriptor_limit
from loadtests.fanout.histogram import percentile_ms
from loadtests.fanout.native import compiled
from loadtests.fanout.peers import Ground, Peer
from loadtests.fanout.publish import LogFeed, Publisher
from loadtests.fanout.usage import cpu_s, placement
from loadtests.servers import embedded_redis

Kind = Literal["warm", "cold"]
AWAY_S = 10.0
STORM_S = 1.0
AGAIN_S = 0.2
GIVE_UP_S = 60.0
DESCRIPTORS = 20_000
READS = ("xrange", "eval_ro", "evalsha_ro", "hget")

_NEWS = re.compile(rb'"number":(\d+)')
_ID = re.compile(rb"^id: (\S+)\n", re.MULTILINE)
_RETRY = re.compile(rb"^retry: (\d+)\n: ", re.MULTILINE)
_VERDICT = re.compile(rb'"resume":"(\w+)"')


class Options(Struct, frozen=True):
    """How big the storm is."""

    readers: int
    live: int
    rate: float


class Reader(asyncio.Protocol):
    """One subscriber; it connects until it is served."""

    def __init__(self, storm: "Storm", cursor: str, first: int) -> None:
        """`first`: number of the first message it must get."""
        self._storm = storm
        self._cursor = cursor
        self._rest = b""
        self._transport: asyncio.Transport | None = None
        self.wanted = 0  # caught up when it has this number
        self.next = first
        self.began = 0.0
        self.caught_up_s = -1.0
        self.verdict = ""
        self.turned_away = 0
        self.lost = 0  # connections refused, or ended before it was caught up
        self._retry_s = 0.0

    async def connect(self) -> None:
        """Ask once; `wanted` is what has been published by now."""
        loop = asyncio.get_running_loop()
        self.began = self.began or loop.time()
        self.wanted = self.wanted or self._storm.publisher.sent
        try:
            await loop.create_connection(lambda: self, "127.0.0.1", self._storm.port)
        except OSError:
            self.lost += 1
            self._come_back(AGAIN_S)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        cursor = f"&cursor={self._cursor}" if self._cursor else ""
        path = f"/api/v1/stream?topics={message.EVENT_TOPIC}{cursor}"
        self._transport.write(f"GET {path} HTTP/1.1\r\nHost: storm\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        end = data.rfind(b"\n\n") + 2 if b"\n\n" in data else 0
        data, self._rest = data[:end], data[end:]
        if not self.verdict:
            self._greeted(data)
        for text in _NEWS.findall(data):
            number = int(text) - message._NUMBER_BASE
            if self.next < 0:
                self.next = number
            if number != self.next:
                self._storm.broken.append(f"message {number} came where {self.next} was due")
            self.next = number + 1
        if self.caught_up_s < 0 and self.verdict and self.next >= self.wanted:
            self.caught_up_s = asyncio.get_running_loop().time() - self.began
        if ids := _ID.findall(data):
            self._cursor = ids[-1].decode()

    def _greeted(self, data: bytes) -> None:
        if found := _VERDICT.search(data):
            self.verdict = found[1].decode()
        elif found := _RETRY.search(data):
            self.turned_away += 1
            self._retry_s = int(found[1]) / 1000

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest = b""
        if self.caught_up_s < 0:  # turned away, or cut off on the way: it comes back with what it has
            self.lost += not self._retry_s
            self._come_back(self._retry_s or AGAIN_S)
            self._retry_s, self.verdict = 0.0, ""

    def _come_back(self, after_s: float) -> None:
        again = asyncio.get_running_loop().call_later
        again(after_s, lambda: self._storm.keep(asyncio.create_task(self.connect())))

    @property
    def cursor(self) -> str:
        """The newest id."""
        return self._cursor

    def leave(self) -> None:
        """Vanish."""
        if self._transport is not None:
            self._transport.abort()


class Storm:
    """One run against one gateway."""

    def __init__(self, port: int, publisher: Publisher) -> None:
        self.port = port
        self.publisher = publisher
        self.broken: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def keep(self, task: asyncio.Task[None]) -> None:
        """Hold on to a task until it is done."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def gather(self, readers: list[Reader], within_s: float) -> None:
        """Connect all, spread evenly."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        for done, reader in enumerate(readers):
            ahead_s = started + within_s * done / len(readers) - loop.time()
            if ahead_s > 0.002:
                await asyncio.sleep(ahead_s)
            self.keep(asyncio.create_task(reader.connect()))

    async def until_caught_up(self, readers: list[Reader]) -> None:
        """Wait for all of them. Raises ArenacastError when some never are."""
        deadline = asyncio.get_running_loop().time() + GIVE_UP_S
        while missing := sum(reader.caught_up_s < 0 for reader in readers):
            if asyncio.get_running_loop().time() > deadline:
                raise ArenacastError(f"{missing} of {len(readers)} readers were not caught up in {GIVE_UP_S:g} s")
            await asyncio.sleep(0.02)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtests.fanout.storm", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--readers", type=int, default=5000)
    parser.add_argument("--live", type=int, default=200)
    parser.add_argument("--rate", type=float, default=10.0, help="messages per second")
    parser.add_argument("--kinds", default="warm,cold")
    given = parser.parse_args()
    options = Options(given.readers, given.live, given.rate)
    try:
        for kind in given.kinds.split(","):
            _run(kind, options)
    except ArenacastError as error:
        sys.exit(f"storm: {error}")


def _run(kind: Kind, options: Options) -> None:
    raise_descriptor_limit(DESCRIPTORS)
    where = placement()
    where.client()
    with tempfile.TemporaryDirectory(prefix="ac-storm-") as directory, ExitStack() as stack:
        settings = Settings(data_dir=Path(directory))
        stack.enter_context(embedded_redis(settings))
        ground = Ground(Path(directory), Path(), settings.redis_socket, where, DESCRIPTORS)
        program = compiled("client", Path(directory))
        first = ExitStack()
        peer = first.enter_context(peers.running("arenacast", ground))
        publisher = Publisher(LogFeed(str(settings.redis_socket), "event", peers.SHARDS), options.rate)
        publisher.start()
        try:
            crowd = uvloop.run(_leave(peer.port, publisher, options))
            if kind == "cold":
                first.close()
                time.sleep(AWAY_S)
                first = ExitStack()
                peer = first.enter_context(peers.running("arenacast", ground))
            else:
                time.sleep(AWAY_S)
            live = Client(program, peer.port, peer.path("sse", "event"), "sse", options.live, where)
            with redis.Redis(unix_socket_path=str(settings.redis_socket)) as client, live:
                uvloop.run(_storm(kind, peer, publisher, options, crowd, client, live))
        finally:
            publisher.finish()
            first.close()


async def _leave(port: int, publisher: Publisher, options: Options) -> list[tuple[str, int]]:
    """Some readers who read for a while and vanish: (cursor, next number) of each, to be taken up by the crowd."""
    storm = Storm(port, publisher)
    readers = [Reader(storm, "", -1) for _ in range(20)]
    for reader in readers:
        reader.wanted = publisher.sent + 5
    await storm.gather(readers, 0.5)
    left: list[tuple[str, int]] = []
    for reader in readers:  # one after the other, a few messages apart
        while reader.next < 5:  # noqa: ASYNC110 - a message or two
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.5 / options.rate)
        reader.leave()
        left.append((reader.cursor, reader.next))
    return left


async def _storm(
    kind: Kind,
    peer: Peer,
    publisher: Publisher,
    options: Options,
    left: list[tuple[str, int]],
    client: redis.Redis,
    live: Client,
) -> None:
    storm = Storm(peer.port, publisher)
    live.report()
    await asyncio.sleep(3.0)
    calm = live.report()
    client.config_resetstat()
    busy_s, own_s, started = cpu_s(peer.pid), time.process_time(), time.monotonic()
    crowd = [Reader(storm, *left[number % len(left)]) for number in range(options.readers)]
    await storm.gather(crowd, STORM_S)
    await storm.until_caught_up(crowd)
    took_s = time.monotonic() - started
    gateway_busy, client_busy = (cpu_s(peer.pid) - busy_s) / took_s, (time.process_time() - own_s) / took_s
    stats: dict[str, dict[str, int]] = client.info("commandstats")
    during = await asyncio.to_thread(live.report)
    await asyncio.sleep(2.0)
    if storm.broken:
        raise ArenacastError(f"{len(storm.broken)} breaks in the order, the first: {storm.broken[0]}")
    waits = sorted(reader.caught_up_s for reader in crowd)
    verdicts = {name: sum(reader.verdict == name for reader in crowd) for name in {one.verdict for one in crowd}}
    calls = {name: stats[f"cmdstat_{name}"]["calls"] for name in READS if f"cmdstat_{name}" in stats}
    print(
        f"{kind}: {options.readers} readers in {STORM_S:g} s, {options.live} live, {options.rate:g} messages/s\n"
        f"  all caught up after       {took_s:.2f} s\n"
        f"  each of them              p50 {percentile(waits, 50):.2f} s, p99 {percentile(waits, 99):.2f} s\n"
        f"  live latency before       {_latency(calm)}\n"
        f"  live latency meanwhile    {_latency(during)}\n"
        f"  verdicts                  {verdicts}; turned away {sum(reader.turned_away for reader in crowd)}, "
        f"connections lost {sum(reader.lost for reader in crowd)}\n"
        f"  reads of Redis meanwhile  {calls}\n"
        f"  busy                      gateway {gateway_busy:.0%}, crowd {client_busy:.0%}",
        flush=True,
    )
    for reader in crowd:
        reader.leave()


def _latency(report: Report) -> str:
    found = {q: percentile_ms(report.histogram, q) for q in (50, 99, 100)}
    return f"p50 {found[50]:.1f} ms, p99 {found[99]:.1f} ms, longest {found[100]:.1f} ms"


def percentile(ascending: list[float], q: float) -> float:
    """The value that `q` percent do not exceed; 0 when there is none."""
    return ascending[min(len(ascending) - 1, int(len(ascending) * q / 100))] if ascending else 0.0


if __name__ == "__main__":
    main()
