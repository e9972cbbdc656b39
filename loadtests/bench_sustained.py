"""How many votes a second does the whole pipeline take for a while? `python -m loadtests.bench_sustained`

Everything embedded on this machine (`arenacast up`): bodies of 500 votes (NDJSON), built beforehand, at a steady rate.
Prints the rate that was acknowledged, how far behind the schedule the answers were, how long hot state and ClickHouse
took to have the last vote, and whether both have the sender's digest. Exit code 1 when they do not.
"""

import argparse
import asyncio
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import uvloop

from core.digest import MASK, format_digest, vote_hash
from loadtests.observe import ClickHouse, Endpoints, Gateway, create_polls
from loadtests.pipeline import embedded

BODY = 500
POLLS = 4
DRAIN_WITHIN_S = 120.0

_DEFINITION = {"title": "b", "options": [{"id": "a", "label": "A"}, {"id": "b", "label": "B"}], "voting": "first"}


class Prepared:
    """Bodies to send, and the digest that each poll must have when all have arrived."""

    def __init__(self, count: int) -> None:
        self.bodies: list[bytes] = []
        self.digests = [0] * POLLS
        self.votes = [0] * POLLS
        for number in range(count):
            poll = number % POLLS
            lines = []
            for index in range(BODY):
                event_id, option = f"v{number:07d}-{index:03d}", "ab"[index % 2]
                lines.append(
                    f'{{"event_id":"{event_id}","poll_id":"p{poll}","option":"{option}","voter":"u{number}-{index}"}}'
                )
                self.digests[poll] = (self.digests[poll] + vote_hash(event_id, option)) & MASK
            self.votes[poll] += BODY
            self.bodies.append("\n".join(lines).encode())


async def send(endpoints: Endpoints, bodies: list[bytes], rate: float) -> tuple[float, list[float]]:
    """Send each body at its time, whatever happens to the others: (seconds until the last answer, delays in ms)."""
    headers = {"Authorization": f"Bearer {endpoints.key}", "Content-Type": "application/x-ndjson"}
    delays_ms: list[float] = []
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=endpoints.ingest_url, headers=headers, timeout=30, limits=limits) as client:
        started = time.perf_counter()

        async def one(body: bytes, due: float) -> None:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            answer = await client.post("/api/v1/votes", content=body)
            while answer.status_code == 503:  # what did get stored counts as duplicates
                await asyncio.sleep(float(answer.headers["Retry-After"]))
                answer = await client.post("/api/v1/votes", content=body)
            answer.raise_for_status()
            delays_ms.append((time.perf_counter() - due) * 1000)

        await asyncio.gather(*(one(body, started + n * BODY / rate) for n, body in enumerate(bodies)))
        return time.perf_counter() - started, delays_ms


def wait_for(digests: list[str], found: Callable[[], list[str]]) -> float:
    """Seconds until `found()` equals the digests; NaN when it does not within the bound."""
    started = time.perf_counter()
    while time.perf_counter() - started < DRAIN_WITHIN_S:
        if found() == digests:
            return time.perf_counter() - started
        time.sleep(0.02)
    return float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=20_000, help="votes/s")
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    prepared = Prepared(int(options.rate * options.seconds / BODY))
    expected = [format_digest(digest) for digest in prepared.digests]
    with (
        tempfile.TemporaryDirectory(prefix="arenacast-bench-") as directory,
        embedded(Path(directory)) as (there, _pid),
    ):
        create_polls(there, [(f"p{number}", _DEFINITION) for number in range(POLLS)])
        took_s, delays_ms = uvloop.run(send(there, prepared.bodies, options.rate))
        gateway, clickhouse = Gateway(there.gateway_urls[0]), ClickHouse(there.clickhouse_url)
        hot_s = wait_for(expected, lambda: [gateway.poll(f"p{n}").digest for n in range(POLLS)])
        cold_s = hot_s + wait_for(expected, lambda: [clickhouse.poll(f"p{n}").digest for n in range(POLLS)])
    total = len(prepared.bodies) * BODY
    quantiles = statistics.quantiles(delays_ms, n=100)
    print(f"asked for        {options.rate:10,.0f} votes/s for {options.seconds:g} s, bodies of {BODY}")
    print(f"acknowledged     {total / took_s:10,.0f} votes/s")
    print(f"answer after due {quantiles[49]:10.1f} ms p50, {quantiles[98]:.1f} ms p99")
    print(f"hot state        {hot_s:10.2f} s after the last answer, with the sender's digest")
    print(f"ClickHouse       {cold_s:10.2f} s after the last answer, with the sender's digest")
    sys.exit(1 if math.isnan(cold_s) else 0)


if __name__ == "__main__":
    main()
