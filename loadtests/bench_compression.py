"""What compression saves and costs: bytes and gateway CPU per delivered message, off and on, SSE and WebSocket.

    python -m loadtests.bench_compression [--readers 100] [--seconds 4]

A gateway process of its own on its real path (output log -> socket), readers that count bytes, and messages as they
are: tallies with changing numbers and digests, a map's state with its rounds. One that repeats itself would flatter.
"""

import argparse
import os
import random
import selectors
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from core.errors import Fatal
from core.settings import Settings
from loadtests.fanout import message, peers, usage
from loadtests.fanout.peers import Ground, Peer
from loadtests.fanout.plan import Transport
from loadtests.fanout.publish import LogFeed, Publisher
from loadtests.servers import embedded_redis

SETTLE_S = 0.7
QUIET_BYTES = 50
"""A reader in that time: below any message, and well above what its heartbeats come to."""

OFFERS = {"sse": "Accept-Encoding: gzip", "ws": "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"}
REASONS = ("elimination", "bomb_exploded", "bomb_defused", "time_ran_out")


class Load(Struct):
    """A kind of message and how often it comes."""

    name: str
    rate: int


LOADS = (Load("tally", 100), Load("tally", 1000), Load("state", 100))


class RealisticFeed(LogFeed):
    """Messages as our consumers make them."""

    def __init__(self, path: str, name: str) -> None:
        super().__init__(path, "event", peers.SHARDS)  # as events, or a reader who lags would get less
        self._name = name
        self._random = random.Random(1)

    def _data(self, number: int, sent_us: int) -> bytes:
        return msgspec.json.encode(self._tally(number) if self._name == "tally" else self._state(number))

    def _tally(self, number: int) -> dict[str, object]:
        votes = {name: self._random.randrange(5000) for name in ("ana", "ben", "cid")}
        return {
            "poll_id": "bench", "status": "open", "options": votes, "total": sum(votes.values()),
            "voters": sum(votes.values()), "applied": sum(votes.values()) + number,
            "rejected": {"already_voted": number}, "digest": f"{self._random.getrandbits(64):016x}",
        }  # fmt: skip

    def _state(self, number: int) -> dict[str, object]:
        rounds = [
            {"round_no": n, "winner": self._random.choice(("team1", "team2")), "reason": self._random.choice(REASONS)}
            for n in range(1, 2 + number % 24)
        ]
        return {
            "match_id": "bench", "map_id": "1", "map_name": "de_mirage", "status": "live", "round_no": len(rounds),
            "team1": {"name": "Alpha", "score": number % 13}, "team2": {"name": "Bravo", "score": 5},
            "winner": None, "rounds": rounds,
        }  # fmt: skip


class Readers(threading.Thread):
    """So many readers of one topic, which count what comes."""

    def __init__(self, peer: Peer, transport: Transport, count: int, *, is_offering: bool) -> None:
        super().__init__(daemon=True)
        self._selector = selectors.DefaultSelector()
        self._ending = threading.Event()
        self.bytes = 0
        self._count = count
        upgrade = (
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        )
        head = f"GET {peer.path(transport, 'event')} HTTP/1.1\r\nHost: localhost\r\n"
        head += (upgrade if transport == "ws" else "") + (f"{OFFERS[transport]}\r\n" if is_offering else "") + "\r\n"
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", peer.port), timeout=5)
            connection.sendall(head.encode())
            self._selector.register(connection, selectors.EVENT_READ)

    def run(self) -> None:
        """Thread body."""
        while not self._ending.is_set():
            for key, _ in self._selector.select(0.1):
                piece = key.fileobj.recv(65_536)  # type: ignore[union-attr]
                if not piece:
                    raise Fatal("a reader was closed: too many for this machine")
                self.bytes += len(piece)

    def settle(self) -> None:
        """Wait until everything that was sent has come. Raises Fatal when nothing ever comes."""
        seen = -QUIET_BYTES * self._count
        while self.bytes - seen >= QUIET_BYTES * self._count:
            seen = self.bytes
            time.sleep(SETTLE_S)
        if not seen:
            raise Fatal("the readers got nothing")

    def finish(self) -> None:
        """Close them all."""
        self._ending.set()
        self.join(5)
        for key in tuple(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()


def measure(
    peer: Peer, where: str, transport: Transport, load: Load, count: int, seconds: float
) -> tuple[float, float]:
    """(bytes, gateway CPU in µs) per delivered message, for readers that offer to decompress."""
    readers = Readers(peer, transport, count, is_offering=True)
    readers.start()
    publisher = Publisher(RealisticFeed(where, load.name), load.rate)
    try:
        readers.settle()
        size, cpu_s = readers.bytes, usage.cpu_s(peer.pid)
        publisher.start()
        time.sleep(seconds)
        publisher.finish()
        readers.settle()
        size, cpu_s = readers.bytes - size, usage.cpu_s(peer.pid) - cpu_s
    finally:
        readers.finish()
    return size / (publisher.sent * count), cpu_s * 1e6 / (publisher.sent * count)


@contextmanager
def gateway(ground: Ground, compression: str) -> Iterator[Peer]:
    """A gateway with this setting."""
    os.environ["ARENACAST_COMPRESSION"] = compression
    try:
        with peers.running("arenacast", ground) as peer:
            yield peer
    finally:
        del os.environ["ARENACAST_COMPRESSION"]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.bench_compression", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--readers", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    where = usage.placement()
    with tempfile.TemporaryDirectory(prefix="arenacast-compression-") as directory:
        settings = Settings(data_dir=Path(directory) / "log", shards=peers.SHARDS)
        os.sched_setaffinity(0, {where.client_core})
        with embedded_redis(settings):
            ground = Ground(Path(directory), Path(), settings.redis_socket, where, 4096)
            found: dict[tuple[str, str, int, str], tuple[float, float]] = {}
            for compression in ("off", "on"):
                with gateway(ground, compression) as peer:
                    for transport in ("sse", "ws"):
                        for load in LOADS:
                            found[transport, load.name, load.rate, compression] = measure(
                                peer, str(settings.redis_socket), transport, load, options.readers, options.seconds
                            )
    print(f"{options.readers} readers of {message.EVENT_TOPIC}; per delivered message: off -> on")
    for transport in ("sse", "ws"):
        for load in LOADS:
            off, on = (found[transport, load.name, load.rate, compression] for compression in ("off", "on"))
            bytes_ratio, cpu_ratio = on[0] / off[0], on[1] / off[1]
            print(
                f"{transport:4} {load.name:6} {load.rate:5}/s   {off[0]:6.0f} -> {on[0]:5.0f} bytes ({bytes_ratio:.2f})"
                f"   {off[1]:5.2f} -> {on[1]:5.2f} us CPU ({cpu_ratio:.2f})"
            )


if __name__ == "__main__":
    main()
