"""Aggregates are computed anew all the time while a crowd votes and archives are paused or killed in the middle of it:
`make soak`. Without the fence of `clickhouse.rebuilding` the same minute loses and doubles."""

import asyncio
import random
import time
from pathlib import Path
from typing import Any

import pytest

from clickhouse import comparison, mending
from clickhouse.client import ClickHouse
from core import keys
from core.names import poll_topic, shard_of
from core.redis_client import connect
from tests.support.crowd import Crowd
from tests.support.pipeline import Pipeline, running_pipeline
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.soak, pytest.mark.redis, pytest.mark.clickhouse, pytest.mark.timeout(600)]

SHARDS = 2
SECONDS = 60.0
POLLS = [f"p{number}" for number in range(6)]


def is_rebuilding(pipeline: Pipeline) -> bool:
    """An attempt is under way in some shard."""
    client: Any = pipeline.redis
    return any(client.hexists(keys.archive(shard, "events"), "rebuild") for shard in range(SHARDS))


async def trouble(pipeline: Pipeline, chance: random.Random) -> tuple[int, int]:
    """Kill or pause one of two archives again and again, mostly within a rebuild; (how often at all, within one)."""
    troubles = hits = 0
    end_s = time.monotonic() + SECONDS
    while time.monotonic() < end_s:
        victim = pipeline[chance.choice(["archive", "archive2"])]
        await asyncio.sleep(chance.uniform(0.05, 0.3))
        troubles += 1
        if chance.random() < 0.3:
            victim.kill9()
            hits += is_rebuilding(pipeline)
            await asyncio.sleep(chance.uniform(0.2, 2.0))
            await asyncio.to_thread(victim.start)
            continue
        for _ in range(60):
            victim.pause()
            if is_rebuilding(pipeline):
                hits += 1
                break
            victim.resume()
            await asyncio.sleep(chance.uniform(0.001, 0.02))
        victim.pause()
        await asyncio.sleep(chance.uniform(1.2, 2.5))  # longer than a lease: the other one takes over
        victim.resume()
    return troubles, hits


async def test_aggregates_computed_anew_in_the_middle_of_everything_are_exact(tmp_path: Path) -> None:
    with running_pipeline(tmp_path / "d", shards=SHARDS) as pipeline:
        await asyncio.to_thread(pipeline.add_archive)
        client = connect(pipeline.settings)
        clickhouse = ClickHouse(pipeline.settings.clickhouse_target)
        crowd = Crowd(pipeline.ingest_url, pipeline.settings.ingest_key, POLLS, "m")
        await crowd.define_polls()
        crowd.start()
        stop = asyncio.Event()

        async def ask() -> None:
            aggregates = [one for one in await comparison.discover(clickhouse) if one.raw == "votes"]
            while not stop.is_set():
                for aggregate in aggregates:
                    for poll_id in POLLS:
                        await mending.ask(client, shard_of(poll_topic(poll_id), SHARDS), aggregate, [poll_id])
                await asyncio.sleep(0.02)

        asking = asyncio.create_task(ask())
        troubles, hits = await trouble(pipeline, random.Random(1))
        stop.set()
        await asking
        assert await mending.wait_done(client, range(SHARDS), 60.0) == {}
        await crowd.stop()

        async def is_clean() -> bool:
            books = await asyncio.to_thread(pipeline.run, "reconcile")
            assert books.returncode == 0, books.stdout + books.stderr
            return True

        await wait_until(is_clean, 60, "the books agree")
        counts = "SELECT poll_id, {} FROM {} GROUP BY poll_id ORDER BY poll_id"
        raw = pipeline.query(counts.format("count(), sum(vote_hash)", "votes"))
        assert [(poll, int(count)) for poll, count, _ in raw] == sorted(crowd.votes.items())
        assert pipeline.query(counts.format("sum(votes), sum(digest)", "votes_per_minute")) == raw
        attempts: Any = [pipeline.redis.hget(keys.archive(shard, "events"), "rebuilds") for shard in range(SHARDS)]
        print(f"{sum(crowd.votes.values())} votes, {attempts} attempts, {troubles} troubles, {hits} within an attempt")
        assert hits > 5
        await clickhouse.close()
        await client.aclose()
