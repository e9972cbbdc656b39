"""Kill -9 of every process in the middle of a load: nothing lost, nothing counted twice, nobody misses an event.

Each kill is aimed at a window in which a crash would do harm if the protocol were wrong, and the test proves that it
hit: the victim is paused (SIGSTOP), what it was doing is looked at from outside, and only when it was caught in the
window is it killed.
"""

import asyncio
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgspec
import pytest

from core import keys
from core.digest import format_digest
from core.names import poll_topic, shard_of
from core.position import parse_entry_id
from tests.support.crowd import Crowd
from tests.support.pipeline import Pipeline, running_pipeline
from tests.support.spectator import Spectator
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.crash, pytest.mark.redis, pytest.mark.clickhouse, pytest.mark.timeout(240)]

KILLS = 4
SHARDS = 4


def has_unapplied(pipeline: Pipeline) -> bool:
    """The log holds entries that the state consumer has not committed."""
    client: Any = pipeline.redis
    for shard in range(SHARDS):
        newest = client.xrevrange(keys.events(shard), count=1)
        applied = client.hget(keys.progress(shard), "last_id") or b"0-0"
        if newest and parse_entry_id(newest[0][0]) > parse_entry_id(applied):
            return True
    return False


def has_plan(pipeline: Pipeline) -> bool:
    """The archive has planned a block and not committed it: an insert may be under way."""
    client: Any = pipeline.redis
    return any(
        client.hget(keys.archive(shard, log), "inflight") for shard in range(SHARDS) for log in ("events", "updates")
    )


async def caught(pipeline: Pipeline, victim: str, is_in_window: Callable[[], bool], seed: int) -> int:
    """Pause the victim at random moments until it is in the window; leaves it paused. Returns the attempts."""
    chance = random.Random(seed)
    for attempt in range(1, 2000):
        await asyncio.sleep(chance.uniform(0.001, 0.03))
        pipeline[victim].pause()
        if is_in_window():
            return attempt
        pipeline[victim].resume()
    raise AssertionError(f"{victim} was never caught in its window")


async def settle(pipeline: Pipeline, crowd: Crowd, spectators: list[Spectator]) -> None:
    """Wait until everybody has seen everything that was acknowledged; fails with the first difference."""

    polls = crowd.polls
    in_polls = "WHERE poll_id IN ('" + "','".join(polls) + "')"

    def state_digests() -> dict[str, str]:
        return {p: str(_poll(pipeline, p).get("digest")) for p in polls}

    expected = {p: format_digest(crowd.digests[p]) for p in polls}
    await wait_until(lambda: state_digests() == expected, 30, "hot state has the sender's digest")
    for poll in polls:
        data = _poll(pipeline, poll)
        assert data["applied"] == crowd.votes[poll]
        assert data["options"] == {option: crowd.options[poll, option] for option in "ab"}

    def archived() -> bool:
        rows = pipeline.query(f"SELECT poll_id, count(), sum(vote_hash) FROM votes {in_polls} GROUP BY poll_id")
        got = {poll: (int(count), format_digest(int(total))) for poll, count, total in rows}
        return got == {p: (crowd.votes[p], expected[p]) for p in polls}

    await wait_until(archived, 60, "ClickHouse raw has the sender's digest")
    per_option = f"SELECT poll_id, option_id, sum(votes) FROM votes_per_minute {in_polls} GROUP BY ALL"

    def aggregated() -> bool:
        return {(poll, option): int(votes) for poll, option, votes in pipeline.query(per_option)} == dict(crowd.options)

    # A view's target is written just after the raw block that it follows.
    await wait_until(aggregated, 10, "the aggregate has every vote once")
    events = f"SELECT event_id FROM match_events WHERE match_id = '{crowd.match_id}' ORDER BY stream_ms, stream_seq"

    def events_archived() -> bool:
        return [row[0] for row in pipeline.query(events)] == crowd.events

    await wait_until(events_archived, 60, "ClickHouse has every match event once and in order")
    books = await asyncio.to_thread(pipeline.run, "reconcile")
    assert books.returncode == 0, books.stdout + books.stderr
    for spectator in spectators:
        await wait_until(
            lambda s=spectator: s.events == crowd.events,  # type: ignore[misc]
            30,
            f"{spectator.name} saw every event once and in order",
        )
        await wait_until(
            lambda s=spectator: {p: s.tallies[f"poll.{p}"]["digest"] for p in polls} == expected,  # type: ignore[misc]
            30,
            f"{spectator.name} saw the final digests",
        )


def _poll(pipeline: Pipeline, poll_id: str) -> dict[str, Any]:
    topic = poll_topic(poll_id)
    raw: Any = pipeline.redis.hget(keys.state(shard_of(topic, SHARDS), topic), "data")
    data: dict[str, Any] = msgspec.json.decode(raw) if raw else {}
    return data


async def run_with_kills(
    pipeline: Pipeline, victims: tuple[str, ...], is_in_window: Callable[[str, Crowd, list[Spectator]], bool]
) -> None:
    """Kill the victims in turn, `KILLS` times, each in its window under load, then compare everybody's books."""
    name = victims[0]
    polls = [f"{name}-{number}" for number in range(3)]
    crowd = Crowd(pipeline.ingest_url, pipeline.settings.ingest_key, polls, name, seed=len(name))
    await crowd.define_polls()
    topics = [*(f"poll.{p}" for p in polls), f"match.{name}.*"]
    urls = [pipeline.gateway_url, pipeline.second_gateway_url]
    spectators = [Spectator(urls, topics, "first"), Spectator(urls[::-1], topics, "second")]
    for spectator in spectators:
        spectator.start()
    await wait_until(lambda: all(s.verdicts for s in spectators), 10, "spectators are connected")
    crowd.start()
    try:
        await wait_until(lambda: len(crowd.events) > 10, 20, "the load runs")
        for number in range(KILLS):
            victim = victims[number % len(victims)]
            await caught(pipeline, victim, partial(is_in_window, victim, crowd, spectators), seed=number)
            before = len(crowd.events)
            pipeline[victim].kill9()
            pipeline[victim].start(wait=False)
            await asyncio.to_thread(pipeline[victim].wait_ready)
            await wait_until(lambda b=before: len(crowd.events) > b + 10, 30, "the load goes on")  # type: ignore[misc]
        await crowd.stop()
        await settle(pipeline, crowd, spectators)
    except AssertionError:
        print(pipeline.logs())
        raise
    finally:
        for spectator in spectators:
            await spectator.stop()
    resumed = {verdict for s in spectators for topics in s.verdicts[1:] for verdict in topics.values()}
    assert resumed <= {"complete", "conflated"}, "nobody is told to start over"


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with running_pipeline(tmp_path_factory.mktemp("p") / "d") as running:
        yield running


@pytest.fixture
def pipeline(installation: Pipeline) -> Pipeline:
    """One installation for all victims; whoever a failed test left dead or paused is running again."""
    installation.revive()
    return installation


async def test_state_consumer_killed_between_reading_and_applying(pipeline: Pipeline) -> None:
    await run_with_kills(pipeline, ("state",), lambda _victim, _crowd, _spectators: has_unapplied(pipeline))


async def test_archive_consumer_killed_between_plan_and_commit(pipeline: Pipeline) -> None:
    await run_with_kills(pipeline, ("archive",), lambda _victim, _crowd, _spectators: has_plan(pipeline))


async def test_clickhouse_killed_during_an_insert(pipeline: Pipeline) -> None:
    await run_with_kills(pipeline, ("clickhouse",), lambda _victim, _crowd, _spectators: has_plan(pipeline))


async def test_ingest_killed_with_unanswered_requests(pipeline: Pipeline) -> None:
    await run_with_kills(pipeline, ("ingest",), lambda _victim, crowd, _spectators: crowd.in_flight > 0)


async def test_redis_killed_with_unanswered_appends(pipeline: Pipeline) -> None:
    await run_with_kills(pipeline, ("redis",), lambda _victim, crowd, _spectators: crowd.in_flight > 0)


async def test_gateway_killed_while_readers_stream_from_it(pipeline: Pipeline) -> None:
    urls = {"gateway": pipeline.gateway_url, "gateway2": pipeline.second_gateway_url}

    def serves(victim: str, _crowd: Crowd, spectators: list[Spectator]) -> bool:
        return any(s.streams_from == urls[victim] for s in spectators)

    await run_with_kills(pipeline, ("gateway", "gateway2"), serves)
