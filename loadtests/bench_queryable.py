"""How soon is an event in ClickHouse? `python -m loadtests.bench_queryable [--rate N] [--seconds N]`

A real Valkey gets votes at a steady rate, the real archive consumer writes them into the embedded ClickHouse, and this
process asks ClickHouse again and again how many of each shard are there. The latency of a vote is from just before its
`XADD` to the answer of the first such query that counts it, so half the pause between two queries is in it. A shard's
votes become visible in the order of its log. Everything is counted before a figure is printed.
"""

import argparse
import asyncio
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import redis

from clickhouse import embedded
from clickhouse.client import ClickHouse
from clickhouse.spill import JOB
from consumers import archive
from core import keys
from core.events import header
from core.names import poll_topic, shard_of
from core.settings import Settings
from loadtests.bench_archive import PASSWORD, free_port, prepare, running
from loadtests.servers import embedded_redis

TICK_S = 0.01
PAUSE_S = 0.02
POLLS = 20
LATE_S = 30.0


class Sent:
    """When each vote was sent, by shard and in order; how many of them were seen, and after how long."""

    def __init__(self, shards: int) -> None:
        self.at_s: dict[int, list[float]] = {shard: [] for shard in range(shards)}
        self._seen = dict.fromkeys(range(shards), 0)
        self.latencies_s: list[float] = []

    def see(self, shard: int, count: int, now_s: float) -> None:
        """ClickHouse holds so many votes of a shard."""
        self.latencies_s += [now_s - at_s for at_s in self.at_s[shard][self._seen[shard] : count]]
        self._seen[shard] = max(self._seen[shard], count)

    @property
    def total(self) -> int:
        """Votes sent."""
        return sum(map(len, self.at_s.values()))


async def send(client: redis.Redis, sent: Sent, rate: int, seconds: float, shards: int) -> None:
    """Votes at an even rate, in ticks."""
    began = time.perf_counter()
    number = 0
    while (elapsed_s := time.perf_counter() - began) < seconds:
        pipe = client.pipeline(transaction=False)
        while number < rate * elapsed_s:
            topic = poll_topic(f"p{number % POLLS}")
            shard = shard_of(topic, shards)
            body = (
                f'{{"event_id":"e{number:020d}","poll_id":"p{number % POLLS}","option":"a",'
                f'"voter":"{number:016x}","ts":null,"source":"load"}}'
            )
            sent.at_s[shard].append(time.perf_counter())
            head = f"{header('vote', topic, time.time_ns() // 1000, 'bench')} {len(sent.at_s[shard])}"
            pipe.xadd(keys.events(shard), {"h": head, "d": body})
            number += 1
        await asyncio.to_thread(pipe.execute)
        await asyncio.sleep(TICK_S)


async def watch(settings: Settings, sent: Sent, sending: asyncio.Task[None]) -> None:
    """Ask until everything is seen."""
    clickhouse = ClickHouse(settings.clickhouse_target)
    deadline = None
    while len(sent.latencies_s) < sent.total or not sending.done():
        counts = await clickhouse.query("SELECT shard, count() FROM votes GROUP BY shard")
        now_s = time.perf_counter()
        for shard, count in counts:
            sent.see(shard, count, now_s)
        if sending.done():
            deadline = deadline or now_s + LATE_S
            if now_s > deadline:
                raise RuntimeError(f"{sent.total} votes sent, {len(sent.latencies_s)} seen")
        await asyncio.sleep(PAUSE_S)
    await clickhouse.close()


async def measure(settings: Settings, rate: int, seconds: float, shards: int) -> Sent:
    """Send and watch at once."""
    client = redis.Redis.from_url(settings.redis_target)
    deadline = time.monotonic() + LATE_S
    while not all(client.exists(keys.lease(shard, JOB)) for shard in range(shards)):
        if time.monotonic() > deadline:
            raise RuntimeError("the archive did not start in time")
        await asyncio.sleep(0.1)
    sent = Sent(shards)
    sending = asyncio.create_task(send(client, sent, rate, seconds, shards))
    await watch(settings, sent, sending)
    await sending
    client.close()
    return sent


def main() -> None:
    """Start everything, send, watch, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=30.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ac-bench-") as directory, ExitStack() as stack:
        settings = Settings(
            data_dir=Path(directory),
            clickhouse_password=PASSWORD,
            clickhouse_port=free_port(),
            archive_metrics_port=0,
            log_level="warning",
        )
        stack.enter_context(embedded_redis(settings))
        stack.enter_context(running(embedded.run, settings))
        shards = asyncio.run(prepare(settings))
        stack.enter_context(running(archive.run, settings))
        sent = asyncio.run(measure(settings, arguments.rate, arguments.seconds, shards))
        late = sorted(sent.latencies_s)
        figures = ", ".join(f"p{share:g} {late[int((len(late) - 1) * share / 100)]:.2f} s" for share in (50, 95, 99))
        print(f"queryable       {figures}, longest {late[-1]:.2f} s, {sent.total:,} votes at {arguments.rate:,}/s")


if __name__ == "__main__":
    main()
