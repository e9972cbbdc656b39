"""How fast is the past? `python -m loadtests.bench_history [--rows N] [--requests N] [--replay-events N] [--rate N]
[--data-dir DIR [--fill-only]]`

Everything real and embedded: Valkey, ClickHouse with N stored events, the archive writing `--rate` events/s all the
while, and the gateway, each a process of its own. Prints

    pages      time of `GET /api/v1/events/…` of 100 events from anywhere in the past: p50 and p99 against 50 ms
    newest     the same for the end of the match being played: ClickHouse and Redis joined
    queryable  from an event's XADD until a SELECT counts it, p50 and p99 against 3 s
    replay     events/s of `GET /api/v1/replay/…` as the client sees them, and what the gateway's memory grew by

Filling takes a minute or more: with `--data-dir` the data stay there, and the next run finds them.
"""

import argparse
import asyncio
import http.client
import itertools
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import redis

from clickhouse import embedded
from clickhouse.client import ClickHouse
from clickhouse.migrate import migrate
from consumers import archive
from core import keys
from core.events import header
from core.names import match_topic, shard_of
from core.redis_client import connect, identify
from core.settings import Settings
from gateway import app as gateway
from loadtests.bench_archive import PASSWORD, free_port, running
from loadtests.servers import embedded_redis

EVENTS_A_MATCH = 500
CHUNK_ROWS = 1_000_000
PAGES_LIMIT_MS = 50.0
QUERYABLE_LIMIT_MS = 3000.0
REPLAY_LIMIT = 100_000
STARTS_WITHIN_S = 60.0
SETTLES_S = 3.0
"""What waited while the services started is no delay of theirs."""

SHARDS = 4
LONG = "long"
"""The match that is replayed."""

_NAMES = (f"live{time.time_ns()}-{n}" for n in itertools.count())
LIVE = next(
    name for name in _NAMES if shard_of(match_topic(name, "1"), SHARDS) == shard_of(match_topic(LONG, "1"), SHARDS)
)
"""The match being played, in the log of the one that is replayed: nothing is archived of a log without entries. A run
on data that are kept plays another one."""

_FILL = """
INSERT INTO match_events (shard, stream_epoch, stream_ms, stream_seq, event_id, match_id, map_id, round_no, type,
    source, ts, received_at, payload)
SELECT 255, 1, {base:UInt64} + number * 10, 0, hex(sipHash64(number)), MATCH, toString(number % 3), number % 24 + 1,
    'kill', 'matchzy', fromUnixTimestamp64Milli(toInt64({base:UInt64} + number * 10)),
    fromUnixTimestamp64Milli(toInt64({base:UInt64} + number * 10)),
    concat('{"event_id":"', hex(sipHash64(number)), '","match_id":"', MATCH, '","map_id":"', toString(number % 3),
        '","type":"kill","round_no":', toString(number % 24 + 1), ',"ts":null,"source":"matchzy","data":{"attacker":"',
        toString(sipHash64(number % 10)), '","victim":"', toString(sipHash64(number % 7)), '","weapon":"ak47","x":',
        toString(number * 7919 % 4096), ',"y":', toString(number * 104729 % 4096), '}}')
FROM numbers({first:UInt64}, {count:UInt64})
"""


async def fill(settings: Settings, rows: int, replay_events: int) -> int:
    """Stored events of many matches and of one long one, in a shard that no writer has; gives the number of matches."""
    await migrate(settings)
    clickhouse = ClickHouse(settings.clickhouse_target, timeout_s=280.0)
    found = await clickhouse.query(f"SELECT count() FROM match_events WHERE match_id = '{LONG}'")  # noqa: S608
    if found[0][0] == replay_events:  # it is written last
        await clickhouse.close()
        return rows // EVENTS_A_MATCH
    await clickhouse.command("TRUNCATE TABLE match_events")
    base = (int(time.time()) - 20 * 24 * 3600) * 1000
    many = _FILL.replace("MATCH", f"concat('m', toString(intDiv(number, {EVENTS_A_MATCH})))")
    for first in range(0, rows, CHUNK_ROWS):
        await clickhouse.command(many, {"base": base, "first": first, "count": min(CHUNK_ROWS, rows - first)})
    await clickhouse.command(_FILL.replace("MATCH", f"'{LONG}'"), {"base": base, "first": 0, "count": replay_events})
    await clickhouse.close()
    return rows // EVENTS_A_MATCH


async def begin_log(settings: Settings) -> None:
    """A log of `SHARDS` shards, the default."""
    client = connect(settings)
    await identify(client, settings, proposal="bench", now_ms=0)
    await client.aclose()


class Load:
    """Appends events of the match being played at a steady rate, in a thread, and remembers when."""

    def __init__(self, settings: Settings, rate: float) -> None:
        self.sent_s: list[float] = []
        self._client = redis.Redis.from_url(settings.redis_target)
        self._shard = shard_of(match_topic(LIVE, "1"), SHARDS)
        self._rate = rate
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        topic, started = match_topic(LIVE, "1"), time.perf_counter()
        while not self._stop.wait(0.01):
            due = int((time.perf_counter() - started) * self._rate)
            pipe = self._client.pipeline(transaction=False)
            for number in range(len(self.sent_s), due):
                body = f'{{"event_id":"{number}","match_id":"{LIVE}","map_id":"1","type":"kill","source":"load"}}'
                head = f"{header('match', topic, time.time_ns() // 1000, 'bench')} {number + 1}"
                pipe.xadd(keys.events(self._shard), {"h": head, "d": body})
            pipe.hset(keys.counters(self._shard), "events", str(due))
            now = time.perf_counter()
            pipe.execute()
            self.sent_s.extend([now] * (due - len(self.sent_s)))


async def queryable_ms(settings: Settings, load: Load, seconds: float) -> list[float]:
    """Delay of every event of the load until it was counted, asked for every 20 ms, once the archive is under way."""
    clickhouse = ClickHouse(settings.clickhouse_target)

    async def count() -> int:
        rows = await clickhouse.query("SELECT count() FROM match_events WHERE match_id = {id:String}", {"id": LIVE})
        return int(rows[0][0])

    deadline = time.perf_counter() + STARTS_WITHIN_S
    while not await count():
        if time.perf_counter() > deadline:
            raise RuntimeError("the archive does not archive")
        await asyncio.sleep(0.1)
    await asyncio.sleep(SETTLES_S)
    delays: list[float] = []
    seen, deadline = await count(), time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        found, now = await count(), time.perf_counter()
        delays.extend((now - moment) * 1000 for moment in load.sent_s[seen:found])
        seen = found
        await asyncio.sleep(0.02)
    await clickhouse.close()
    return delays


def pages_ms(base_url: str, matches: int, requests: int) -> tuple[list[float], list[float]]:
    """Times of pages from anywhere, every second one from the middle of a match, and of the newest events."""
    anywhere, newest = [], []
    drawn = random.Random(7)
    with httpx.Client(base_url=base_url, timeout=30) as client:
        match_id, after = "", ""
        for number in range(requests):
            if number % 2 == 0:
                match_id, after = f"m{drawn.randrange(matches)}", ""
            started = time.perf_counter()
            answer = client.get(f"/api/v1/events/{match_id}?limit=100&after={after}")
            anywhere.append((time.perf_counter() - started) * 1000)
            body = answer.raise_for_status().json()
            assert len(body["events"]) == 100
            after = body["next"]
        after = ""
        while True:
            body = client.get(f"/api/v1/events/{LIVE}?limit=1000&after={after}").raise_for_status().json()
            if body["next"] is None:
                break
            after = body["next"]
        for _ in range(requests // 10):
            started = time.perf_counter()
            client.get(f"/api/v1/events/{LIVE}?limit=1000&after={after}").raise_for_status()
            newest.append((time.perf_counter() - started) * 1000)
    return anywhere, newest


def replay(port: int, pid: int) -> tuple[int, float, float]:
    """(events, seconds, MiB that the gateway's memory grew by at most)."""
    process = psutil.Process(pid)
    before = peak = process.memory_info().rss
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    started = time.perf_counter()
    connection.request("GET", f"/api/v1/replay/{LONG}")
    answer = connection.getresponse()
    count = 0
    while part := answer.read1(1 << 20):
        count += part.count(b"\n")
        peak = max(peak, process.memory_info().rss)
    connection.close()
    return count, time.perf_counter() - started, (peak - before) / 2**20


def main() -> None:
    """Fill, load, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--replay-events", type=int, default=1_000_000)
    parser.add_argument("--rate", type=float, default=1000)
    parser.add_argument("--seconds", type=float, default=15.0, help="how long `queryable` is measured")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--fill-only", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the services end with us
    with tempfile.TemporaryDirectory(prefix="ac-bench-") as directory, ExitStack() as stack:
        settings = Settings(
            data_dir=options.data_dir or Path(directory),
            clickhouse_password=PASSWORD,
            clickhouse_port=free_port(),
            gateway_port=free_port(),
            archive_metrics_port=0,
            log_level="warning",
        )
        stack.enter_context(embedded_redis(settings))
        stack.enter_context(running(embedded.run, settings))
        started = time.perf_counter()
        matches = asyncio.run(fill(settings, options.rows, options.replay_events))
        print(f"stored     {options.rows:,} events of {matches:,} matches in {time.perf_counter() - started:.0f} s")
        if options.fill_only:
            return
        asyncio.run(begin_log(settings))
        stack.enter_context(running(archive.run, settings))
        pid = stack.enter_context(running(gateway.run, settings))
        load = stack.enter_context(Load(settings, options.rate))
        base_url = f"http://127.0.0.1:{settings.gateway_port}"
        _wait(base_url, f"/api/v1/events/{LIVE}")
        _print("queryable", asyncio.run(queryable_ms(settings, load, options.seconds)), QUERYABLE_LIMIT_MS)
        anywhere, newest = pages_ms(base_url, matches, options.requests)
        _print("pages", anywhere, PAGES_LIMIT_MS)
        _print("newest", newest, PAGES_LIMIT_MS)
        for _ in range(3):
            count, took_s, grown_mib = replay(settings.gateway_port, pid)
            print(
                f"replay     {count / took_s:,.0f} events/s ({count:,} in {took_s:.2f} s, at least {REPLAY_LIMIT:,}), "
                f"the gateway grew by {grown_mib:.0f} MiB",
                flush=True,
            )


def _wait(base_url: str, path: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            if httpx.get(base_url + path, timeout=5).json()["events"]:
                return
        except (httpx.HTTPError, KeyError):
            pass
        if time.monotonic() > deadline:
            raise RuntimeError("the gateway does not answer")
        time.sleep(0.1)


def _print(name: str, times_ms: list[float], limit_ms: float) -> None:
    quantiles = statistics.quantiles(times_ms, n=100)
    print(
        f"{name:10} p50 {quantiles[49]:8.1f} ms   p99 {quantiles[98]:8.1f} ms   (limit {limit_ms:,.0f}; "
        f"{len(times_ms):,} measured)",
        flush=True,
    )


if __name__ == "__main__":
    main()
