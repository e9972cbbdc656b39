"""How fast is the archive? `python -m loadtests.bench_archive [--votes N] [--polls N] [--clickhouse-url URL]`

A real Valkey (unix socket, AOF always) gets a backlog of votes, then the real archive consumer, a process of its own as
in production, drains it into the embedded ClickHouse, a third process. Prints rows/s, the ratio to an `INSERT SELECT`
of the same rows into the same tables by the engine alone (view and flushes to disk included) in the same run, because
absolute figures of a shared machine are noise, the archive's processor time per row, and the bytes a row takes on disk
once merged. Everything is counted and its digest compared before a figure is printed.
"""

import argparse
import asyncio
import multiprocessing
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import redis

from clickhouse import embedded, migrate
from clickhouse.client import ClickHouse
from consumers import archive
from core import keys
from core.digest import MASK, format_digest, vote_hash
from core.redis_client import connect, identify
from core.settings import Settings
from loadtests.bench_state import fill
from loadtests.servers import embedded_redis

PASSWORD = "bench-clickhouse-password"  # noqa: S105 - of a server that lives for a minute
DRAIN_TIMEOUT_S = 300.0
DIRECT = "arenacast_direct"


@contextmanager
def running(target: Callable[[Settings], None], settings: Settings) -> Iterator[int]:
    """A service as a process of its own; gives its pid."""
    process = multiprocessing.get_context("spawn").Process(target=target, args=(settings,))
    process.start()
    try:
        assert process.pid is not None
        yield process.pid
    finally:
        process.terminate()
        process.join(20)


def expected_digest(votes: int) -> str:
    """Digest of what `fill` appends."""
    total = 0
    for number in range(votes):
        total = (total + vote_hash(f"01JBENCH{number:018d}", "ab"[number % 2])) & MASK
    return format_digest(total)


def drain(client: Any, shards: int, entries: int) -> tuple[float, float]:
    """Moments at which the first plan was seen and the last entry was committed."""
    pipe = client.pipeline(transaction=False)
    began = 0.0
    deadline = time.monotonic() + DRAIN_TIMEOUT_S
    while time.monotonic() < deadline:
        for shard in range(shards):
            pipe.hmget(keys.archive(shard, "events"), "batches", "entries")
        counts = pipe.execute()
        now = time.perf_counter()
        if not began and any(batches for batches, _ in counts):
            began = now
        if sum(int(done or 0) for _, done in counts) == entries:
            return began, now
        time.sleep(0.005)
    raise RuntimeError("the archive did not drain the log in time")


async def prepare(settings: Settings) -> int:
    """Both databases migrated; the number of shards."""
    await migrate.migrate(settings)
    url = urlsplit(settings.clickhouse_target)._replace(path=f"/{DIRECT}").geturl()
    await migrate.migrate(Settings(data_dir=settings.data_dir, clickhouse_url=url))
    client = connect(settings)
    _, shards = await identify(client, settings, proposal="bench", now_ms=0)
    await client.aclose()
    return shards


async def compare(settings: Settings, votes: int) -> tuple[float, float]:
    """Check that everything arrived; seconds of the engine's own INSERT SELECT, and bytes a row takes when merged."""
    clickhouse = ClickHouse(settings.clickhouse_target, timeout_s=DRAIN_TIMEOUT_S)
    rows = await clickhouse.query(
        "SELECT count(), sum(vote_hash), (SELECT sum(votes) FROM votes_per_minute), "
        "(SELECT sum(digest) FROM votes_per_minute) FROM votes"
    )
    count, digest, in_view, digest_in_view = rows[0]
    wanted = votes, expected_digest(votes)
    if (count, format_digest(digest)) != wanted or (in_view, format_digest(digest_in_view)) != wanted:
        raise RuntimeError(f"archived {rows[0]}, sent {wanted}")
    started = time.perf_counter()
    await clickhouse.command(
        f"INSERT INTO {DIRECT}.votes SELECT * FROM votes",  # noqa: S608 - our own database's name
        settings={"async_insert": 0, "insert_deduplication_token": "bench"},
    )
    direct_s = time.perf_counter() - started
    await clickhouse.command("OPTIMIZE TABLE votes FINAL")
    size = await clickhouse.query(
        "SELECT sum(data_compressed_bytes) FROM system.parts "
        "WHERE active AND database = currentDatabase() AND table = 'votes'"
    )
    await clickhouse.command(f"DROP DATABASE {DIRECT}")
    await clickhouse.close()
    return direct_s, size[0][0] / votes


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Fill, drain, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--votes", type=int, default=300_000)
    parser.add_argument("--polls", type=int, default=20)
    parser.add_argument(
        "--clickhouse-url", default="", help="an empty database of a server instead of the embedded one"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ac-bench-") as directory, ExitStack() as stack:
        settings = Settings(
            data_dir=Path(directory),
            clickhouse_url=arguments.clickhouse_url,
            clickhouse_password=PASSWORD,
            clickhouse_port=free_port(),
            archive_metrics_port=0,
            log_level="warning",
        )
        stack.enter_context(embedded_redis(settings))
        if not arguments.clickhouse_url:
            stack.enter_context(running(embedded.run, settings))
        shards = asyncio.run(prepare(settings))
        client = redis.Redis.from_url(settings.redis_target)
        fill(client, arguments.votes, arguments.polls, shards)
        pid = stack.enter_context(running(archive.run, settings))
        began, ended = drain(client, shards, arguments.votes + arguments.polls)
        times = psutil.Process(pid).cpu_times()
        direct_s, row_bytes = asyncio.run(compare(settings, arguments.votes))
        client.close()
        archived, direct = arguments.votes / (ended - began), arguments.votes / direct_s
        print(f"archive         {archived:10,.0f} rows/s, {arguments.votes:,} votes in {ended - began:.2f} s")
        print(f"INSERT SELECT   {direct:10,.0f} rows/s, ratio {archived / direct:.3f}")
        print(f"processor       {(times.user + times.system) / arguments.votes * 1e6:10.1f} µs a row, start included")
        print(f"on disk         {row_bytes:10.1f} bytes a row, merged")


if __name__ == "__main__":
    main()
