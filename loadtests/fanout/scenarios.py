"""What subscribers cost each other: our gateway beside itself, with and without the difference, in turns."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

from msgspec import Struct

from loadtests.fanout import peers, usage
from loadtests.fanout.histogram import percentile_ms
from loadtests.fanout.peers import Ground, Peer
from loadtests.fanout.plan import Point
from loadtests.fanout.publish import UnreadFeed
from loadtests.fanout.step import Stand
from loadtests.fanout.summary import Measured

ROUNDS = 3
WINDOW_S = 3.0
ACTIVE = Point("sse", 500, 100)
FAST = Point("sse", 500, 1000)
"""So much that a reader of a byte a second is over its high-water mark within the warm-up."""

CROWD = 10_000
BEATS_S = 14.0
"""Two turns of the wheel of heartbeats."""

UNREAD_RATE = 20


class Finding(Struct, frozen=True):
    """One figure, its limit where there is one, and how it came about."""

    scenario: str
    what: str
    value: float
    unit: str
    limit: float | None = None
    detail: str = ""


def idle_crowd(stand: Stand, ground: Ground) -> list[Finding]:
    """10,000 idle subscribers beside 500 active ones."""
    with peers.running("arenacast", ground) as peer:
        alone = [stand.measure(peer, ACTIVE, WINDOW_S) for _ in range(ROUNDS)]
        before = usage.memory(peer.pid)
        with stand.subscribers(peer, Point("sse", CROWD, 0, "idle")):
            time.sleep(1.0)
            memory = usage.memory(peer.pid).per(before, CROWD)
            beating_s = _cpu_s(peer, BEATS_S) / BEATS_S
            beside = [stand.measure(peer, ACTIVE, WINDOW_S) for _ in range(ROUNDS)]
    name = f"{CROWD} idle subscribers, 500 active at 100 msg/s"
    return [
        _p99(name, alone, beside),
        *(
            Finding(name, what, _median(beside, q), "ms", detail=f"without {_median(alone, q):.2f} ms")
            for what, q in (("p99.9 with them", 99.9), ("longest delivery with them", 100))
        ),
        Finding(name, "CPU of their heartbeats", beating_s * 100, "% of a core"),
        Finding(name, "memory each (PSS)", memory.pss, "bytes", 3072, f"kernel slab of both ends {memory.slab}"),
    ]


def slow_reader(stand: Stand, ground: Ground) -> list[Finding]:
    """One that reads a byte a second beside 500 fast ones."""
    alone, beside = [], []
    with peers.running("arenacast", ground) as peer:
        for _ in range(ROUNDS):
            alone.append(stand.measure(peer, FAST, WINDOW_S))
            with _reading_slowly(peer):
                beside.append(stand.measure(peer, FAST, WINDOW_S))
    return [_p99("one reader of 1 byte/s, 500 fast at 1000 msg/s", alone, beside, limit=1.1)]


def many_topics(stand: Stand, ground: Ground) -> list[Finding]:
    """Subscribers of 64 topics in all shards: their cursor is made for them, and longer."""
    one, many = [], []
    with peers.running("arenacast", ground) as peer:
        for _ in range(ROUNDS):
            one.append(stand.measure(peer, ACTIVE, WINDOW_S))
            many.append(stand.measure(peer, Point("sse", 500, 100, "many"), WINDOW_S))
    ratio = median(b.cost_us / a.cost_us for a, b in zip(one, many, strict=True))
    detail = f"{median(each.cost_us for each in many):.2f} us a delivery, {median(each.cost_us for each in one):.2f} us"
    return [Finding("500 subscribers of 64 topics", "cost, over those of one topic", ratio, "x", detail=detail)]


def unread_topics(stand: Stand, ground: Ground) -> list[Finding]:
    """Messages of topics that nobody reads here, in a shard that is read for another topic."""
    costs = []
    with peers.running("arenacast", ground) as peer:
        for _ in range(ROUNDS):
            with stand.subscribers(peer, Point("sse", 1, 0, "unread")):
                still_s = _cpu_s(peer, WINDOW_S) / WINDOW_S
            busy = stand.measure(peer, Point("sse", 1, UNREAD_RATE, "unread"), WINDOW_S)
            extra_s = busy.cpu_s - still_s * busy.seconds
            costs.append(extra_s / (busy.published * UnreadFeed.BATCH) * 1e6)
    name = f"{UNREAD_RATE * UnreadFeed.BATCH} msg/s of topics without subscribers"
    return [Finding(name, "CPU a message", median(costs), "us", 1.0, "reading and decoding included")]


SCENARIOS: dict[str, Callable[[Stand, Ground], list[Finding]]] = {
    "idle": idle_crowd,
    "slow": slow_reader,
    "topics": many_topics,
    "unread": unread_topics,
}


def block(findings: list[Finding]) -> str:
    """As text."""
    lines = []
    for each in findings:
        limit = "" if each.limit is None else f"(limit {each.limit:g})"
        lines.append(
            f"{each.scenario:<50}{each.what:<32}{each.value:>10.2f} {each.unit:<12}{limit:<14}{each.detail}".rstrip()
        )
    return "\n".join(lines)


def _p99(name: str, alone: list[Measured], beside: list[Measured], limit: float | None = None) -> Finding:
    ratio = median(b.p99_ms / a.p99_ms for a, b in zip(alone, beside, strict=True))
    detail = f"{_median(beside, 99):.2f} ms, without {_median(alone, 99):.2f} ms"
    return Finding(name, "p99 of the others, with over without", ratio, "x", limit, detail)


def _cpu_s(peer: Peer, window_s: float) -> float:
    before = usage.cpu_s(peer.pid)
    time.sleep(window_s)
    return usage.cpu_s(peer.pid) - before


def _median(measured: list[Measured], q: float) -> float:
    return median(percentile_ms(each.histogram, q) for each in measured)


@contextmanager
def _reading_slowly(peer: Peer) -> Iterator[None]:
    done = threading.Event()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", peer.port))
    connection.sendall(f"GET {peer.path('sse', 'event')} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    def read() -> None:
        while not done.wait(1.0):
            connection.recv(1)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        done.set()
        reader.join()
        connection.close()
