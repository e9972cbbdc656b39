"""One measurement: so many subscribers, so many messages per second, for a few seconds."""

import time
from pathlib import Path
from typing import Any

import redis

from loadtests.fanout import usage
from loadtests.fanout.client import Client
from loadtests.fanout.peers import Peer
from loadtests.fanout.plan import Point, Transport
from loadtests.fanout.publish import Publisher
from loadtests.fanout.summary import Measured
from loadtests.fanout.usage import Memory, Placement

WARM_UP_S = 0.7
IDLE_S = 1.0
BUSY_MAX = 0.9
"""Above this share of its core the measuring side may be what limits the result."""

LATE_MAX_MS = 20.0
STALL_MIN_MS = 5
"""A call for the disk of Redis' log that takes longer is remembered."""


class Stand:
    """Where servers are put to the test."""

    def __init__(self, client: Path, redis_pid: int, redis_socket: Path, placement: Placement) -> None:
        self._client = client
        self._redis_pid = redis_pid
        self._redis = redis.Redis(unix_socket_path=str(redis_socket))
        self._redis.config_set("latency-monitor-threshold", STALL_MIN_MS)
        self.placement = placement

    def measure(self, peer: Peer, point: Point, window_s: float) -> Measured:
        """Run one step. Raises Fatal when the connections cannot be opened, OSError when publishing fails."""
        with self.subscribers(peer, point) as client:
            publisher = Publisher(peer.feed(point.transport, point.variant), point.rate)
            publisher.start()
            try:
                time.sleep(WARM_UP_S)
                self._redis.latency_reset()  # waits for a stall that is under way
                client.report()
                before = self._clocks(peer, publisher)
                time.sleep(window_s)
                report = client.report()
                after = self._clocks(peer, publisher)
                stall_ms = self._stall_ms()
            finally:
                publisher.finish()
        wall_s, server_s, redis_s, busy_s, publisher_s, sent = (b - a for a, b in zip(before, after, strict=True))
        measuring_s = report.cpu_s + publisher_s + redis_s
        return Measured(
            peer=peer.name,
            point=point,
            seconds=wall_s,
            published=int(sent),
            delivered=report.messages,
            cpu_s=server_s,
            histogram=report.histogram,
            disordered=report.disordered,
            lost=report.lost,
            reads=report.reads,
            bytes=report.bytes,
            client_busy=report.cpu_s / report.seconds,
            measuring_busy=measuring_s / wall_s,
            redis_busy=redis_s / wall_s,
            stall_ms=stall_ms,
            others_busy=max(0.0, busy_s - server_s - measuring_s) / wall_s,
            is_client_bound=measuring_s / wall_s > BUSY_MAX or publisher.late_ms > LATE_MAX_MS,
        )

    def idle_memory(self, peer: Peer, transport: Transport, count: int) -> Memory:
        """Bytes per idle subscriber."""
        with self.subscribers(peer, Point(transport, 1, 0)):
            time.sleep(IDLE_S)  # what the first one needs is not per subscriber
            before = usage.memory(peer.pid)
        with self.subscribers(peer, Point(transport, count, 0)):
            time.sleep(IDLE_S)
            return usage.memory(peer.pid).per(before, count)

    def subscribers(self, peer: Peer, point: Point) -> Client:
        """The subscribers of a load, without anybody who publishes."""
        path = peer.path(point.transport, point.variant)
        return Client(self._client, peer.port, path, point.transport, point.subscribers, self.placement)

    def _stall_ms(self) -> int:
        """The longest that Redis waited for its log's disk (`appendfsync always`); 0 below `STALL_MIN_MS`."""
        found: Any = self._redis.latency_latest()
        return max((longest for name, _at, _last, longest, *_ in found if name.startswith(b"aof-")), default=0)

    def _clocks(self, peer: Peer, publisher: Publisher) -> tuple[float, float, float, float, float, float]:
        redis_s = usage.cpu_s(self._redis_pid)
        return (
            time.monotonic(), usage.cpu_s(peer.pid), redis_s, usage.machine_busy_s(), publisher.cpu_s, publisher.sent,
        )  # fmt: skip
