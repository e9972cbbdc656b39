"""How fast is ingest? `python -m loadtests.bench_ingest [--requests N] [--polls N] [--connections C]`

A real Valkey (unix socket, AOF always), the real ingest in a process of its own, and this process as the client with
all bodies built beforehand. For bodies of 1, 10 and 500 votes (NDJSON) prints votes/s, p50 and p99 of a request, and
the processor time that ingest took per vote; then the ratio to a pipeline of plain `XADD`s of the same entries, sent
ready-made in the same run, because absolute figures of a shared machine are noise.
"""

import argparse
import asyncio
import multiprocessing
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import httpx
import psutil
import redis
import uvloop
from hiredis import pack_command

from core.events import header
from core.settings import Settings
from ingest import app
from loadtests.servers import embedded_redis

KEY = "bench-ingest-key"
SECRET = "bench-voter-secret"  # noqa: S105 - of a server that lives for a minute
BODIES = (1, 10, 500)
XADD_BATCH = 500
XADD_CONNECTIONS = 4

_numbers = count()


@contextmanager
def running_ingest(settings: Settings) -> Iterator[int]:
    """The real ingest, as `arenacast ingest` runs it; gives its pid."""
    process = multiprocessing.get_context("spawn").Process(target=app.run, args=(settings,))
    process.start()
    try:
        deadline = time.monotonic() + 15
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{settings.ingest_port}/readyz").raise_for_status()
                break
            except httpx.HTTPError:
                if time.monotonic() > deadline or not process.is_alive():
                    raise
                time.sleep(0.05)
        assert process.pid is not None
        yield process.pid
    finally:
        process.terminate()
        process.join(15)


def define_polls(port: int, polls: int) -> None:
    """Polls p0, p1, …, each with options a and b."""
    body = {"title": "t", "options": [{"id": "a", "label": "A"}, {"id": "b", "label": "B"}]}
    for number in range(polls):
        url = f"http://127.0.0.1:{port}/api/v1/polls/p{number}"
        httpx.put(url, json=body, headers={"Authorization": f"Bearer {KEY}"}).raise_for_status()


def build(items: int, polls: int) -> bytes:
    """One ready-made request with `items` new votes, all for one poll."""
    poll_id = f"p{next(_numbers) % polls}"
    body = b"\n".join(
        b'{"event_id":"01JBENCH%018d","poll_id":"%s","option":"%s","voter":"twitch:%d","ts":"2026-01-21T18:00:00.123Z",'
        b'"source":"load"}' % (number, poll_id.encode(), b"ab"[number % 2 : number % 2 + 1], number)
        for number in (next(_numbers) for _ in range(items))
    )
    head = (
        f"POST /api/v1/votes HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/x-ndjson\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def post_all(port: int, requests: list[bytes], latencies_ms: list[float]) -> None:
    """One connection: the next request as soon as the last is answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for request in requests:
        started = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        body = await reader.readexactly(length)
        latencies_ms.append((time.perf_counter() - started) * 1000)
        if not head.startswith(b"HTTP/1.1 202") or b'"duplicates":0' not in body:
            raise RuntimeError(f"unexpected answer: {head[:20]!r} {body!r}")
    writer.close()


async def measure(port: int, requests: list[list[bytes]]) -> tuple[float, list[float]]:
    """Seconds for all connections to finish their requests, and each request's latency in ms, sorted."""
    latencies_ms: list[float] = []
    started = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for queue in requests:
            tasks.create_task(post_all(port, queue, latencies_ms))
    return time.perf_counter() - started, sorted(latencies_ms)


def xadd_limit(socket_path: Path, entries: int) -> float:
    """Entries/s of plain `XADD`s, ready-made, pipelined over a few connections."""
    head = f"{header('vote', 'poll.p1', time.time_ns() // 1000, '0123456789abcdef')} 123456"
    body = (
        '{"event_id":"01JBENCH000000000000000001","poll_id":"p1","option":"a","voter":"0123456789abcdef",'
        '"ts":"2026-01-21T18:00:00.123000Z","source":"load"}'
    )
    batch = pack_command(("XADD", "bench:xadd", "*", "h", head, "d", body)) * XADD_BATCH  # type: ignore[arg-type]
    connections = [socket.socket(socket.AF_UNIX) for _ in range(XADD_CONNECTIONS)]
    for connection in connections:
        connection.connect(str(socket_path))
    rounds = entries // XADD_BATCH // XADD_CONNECTIONS
    started = time.perf_counter()
    for _ in range(rounds):
        for connection in connections:
            connection.sendall(batch)
        for connection in connections:
            lines = 0
            while lines < 2 * XADD_BATCH:  # each reply is a length and an id
                lines += connection.recv(1 << 16).count(b"\r\n")
    took = time.perf_counter() - started
    for connection in connections:
        connection.close()
    return rounds * XADD_CONNECTIONS * XADD_BATCH / took


def server_cpu_s(client: redis.Redis) -> float:
    """Processor time the Redis server has used so far."""
    used = client.info("cpu")
    return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])


def run_bodies(
    items: int, repeats: int, options: argparse.Namespace, settings: Settings, ingest_pid: int
) -> tuple[str, float]:
    """A line and the votes/s: bodies of `items` votes, `repeats` requests on each connection."""
    requests = [[build(items, options.polls) for _ in range(repeats)] for _ in range(options.connections)]
    votes = items * repeats * options.connections
    process = psutil.Process(ingest_pid)
    with redis.Redis.from_url(settings.redis_target) as client:
        server_s, before = server_cpu_s(client), process.cpu_times()
        took, latencies = uvloop.run(measure(settings.ingest_port, requests))
        after, server_s = process.cpu_times(), server_cpu_s(client) - server_s
    ingest_s = after.user + after.system - before.user - before.system
    p50, p99 = latencies[len(latencies) // 2], latencies[int(len(latencies) * 0.99)]
    return (
        f"bodies of {items:3}: {votes / took:9,.0f} votes/s  {len(latencies) / took:7,.0f} requests/s"
        f"  p50 {p50:6.2f} ms  p99 {p99:6.2f} ms  CPU a vote: ingest {ingest_s / votes * 1e6:6.2f} µs,"
        f" Redis {server_s / votes * 1e6:6.2f} µs"
    ), votes / took


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200, help="per connection, for bodies of 500")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--polls", type=int, default=4)
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="arenacast-bench-") as directory:
        settings = Settings(
            data_dir=Path(directory), shards=4, ingest_port=port, ingest_key=KEY, voter_secret=SECRET,
            log_level="warning",
        )  # fmt: skip
        with embedded_redis(settings), running_ingest(settings) as ingest_pid:
            limit = xadd_limit(settings.redis_socket, 200_000)
            print(f"plain XADD, {XADD_BATCH} a transmission: {limit:,.0f} entries/s", flush=True)
            define_polls(port, options.polls)
            for items in BODIES:
                repeats = options.requests * (1 if items == BODIES[-1] else 5)
                line, votes_per_s = run_bodies(items, repeats, options, settings, ingest_pid)
                print(f"{line}  ratio to XADD {votes_per_s / limit:.3f}", flush=True)


if __name__ == "__main__":
    main()
