"""Resuming against a real server: trimmed, rolled back, restarted, forged."""

import asyncio
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from core import keys
from core.cursor import decode, encode, fingerprint
from core.names import shard_of
from core.position import Position
from core.settings import Settings
from tests.gateway.output_log import SHARDS, OutputLog
from tests.gateway.readers import read, read_until, reading, verdicts
from tests.gateway.server import Gateway, running_gateway
from tests.support.redis_server import running_redis
from tests.support.waiting import wait_until

pytestmark = pytest.mark.redis

TOPIC = "match.m1.1"
SHARD = shard_of(TOPIC, SHARDS)


@pytest.fixture
def sink() -> str:
    """Resuming does not depend on the sink: one is enough here."""
    return "takeover"


def poll_beside(topic: str) -> str:
    """Id of a poll that shares a topic's shard."""
    return next(f"p{n}" for n in range(99) if shard_of(f"poll.p{n}", SHARDS) == shard_of(topic, SHARDS))


async def cursor_after_snapshot(gateway: Gateway, topics: list[str]) -> str:
    async with reading(gateway, "sse", topics) as reader:
        cursor: str = (await read(reader, 1 + len(topics)))[-1]["id"]
        return cursor


async def test_fresh_gateway_serves_the_past_from_the_log(settings: Settings, log: OutputLog) -> None:
    with running_gateway(settings) as first:
        cursor = await cursor_after_snapshot(first, [TOPIC])
    for n in range(1, 400):
        log.event("m1", "1", n)
    with running_gateway(settings) as fresh:
        async with reading(fresh, "sse", TOPIC, cursor=cursor) as reader:
            welcome, *messages = await read(reader, 1 + 3 * 399)
            assert verdicts(welcome) == {TOPIC: "complete"}
            assert [m["data"]["n"] for m in messages if m["event"] == "round_end"] == list(range(1, 400))
            log.event("m1", "1", 400)
            assert (await read(reader, 1))[0]["data"]["n"] == 400


async def test_large_past_is_conflated_but_no_event_is_missing(settings: Settings, log: OutputLog) -> None:
    with running_gateway(settings) as first:
        cursor = await cursor_after_snapshot(first, [TOPIC])
    pad = "x" * 2000
    for n in range(1, 300):
        log.apply((TOPIC, [("round_end", False, {"n": n, "pad": pad}), ("state", True, {"round_no": n})], {"n": n}))
    with running_gateway(settings) as fresh:
        async with reading(fresh, "sse", TOPIC, cursor=cursor) as reader:
            messages = await read_until(reader, 299)
            assert verdicts(messages[0]) == {TOPIC: "conflated"}
            assert [m["data"]["n"] for m in messages if m["event"] == "round_end"] == list(range(1, 300))
            assert sum(m["event"] == "state" for m in messages) < 150
            (state,) = await read(reader, 1)
            assert state["data"] == {"round_no": 299}


async def test_crowd_with_like_cursors_reads_the_log_once(settings: Settings, log: OutputLog) -> None:
    with running_gateway(settings) as first:
        cursor = await cursor_after_snapshot(first, [TOPIC])
    for n in range(1, 20):
        log.event("m1", "1", n)
    with running_gateway(settings) as fresh:

        async def come_back() -> None:
            async with reading(fresh, "poll", TOPIC, cursor=cursor) as reader:
                assert verdicts((await read(reader, 1))[0]) == {TOPIC: "complete"}

        await asyncio.gather(*(come_back() for _ in range(40)))
        assert fresh.inside._backlog.chunks.count <= 8, "not once for each of forty"


async def test_trimmed_events_are_a_reset_that_names_the_gap(gateway: Gateway, log: OutputLog) -> None:
    log.event("m1", "1", 1)
    cursor = await cursor_after_snapshot(gateway, [TOPIC])
    gateway.stop()
    log.event("m1", "1", 2)
    last = log.event("m1", "1", 3)
    log.trim(TOPIC, last)
    with running_gateway(gateway._settings) as fresh:
        async with reading(fresh, "sse", TOPIC, cursor=cursor) as reader:
            welcome, snapshot = await read(reader, 2)
            verdict = welcome["data"]["topics"][TOPIC]
            assert verdict["resume"] == "reset"
            assert verdict["lost_from"] <= verdict["lost_to"]
            assert verdict["lost_from"].endswith("Z")
            assert snapshot["data"]["round_no"] == 3


async def test_trimmed_log_costs_a_poll_only_superseded_states(gateway: Gateway, log: OutputLog) -> None:
    poll = poll_beside(TOPIC)
    log.tally(poll, 1)
    cursor = await cursor_after_snapshot(gateway, [f"poll.{poll}"])
    gateway.stop()
    log.tally(poll, 2)
    log.trim(f"poll.{poll}", log.tally(poll, 3))
    with running_gateway(gateway._settings) as fresh:
        async with reading(fresh, "sse", f"poll.{poll}", cursor=cursor) as reader:
            welcome, snapshot = await read(reader, 2)
            assert verdicts(welcome) == {f"poll.{poll}": "conflated"}
            assert snapshot["data"]["total"] == 3


async def test_topic_that_did_not_change_is_complete_behind_a_trimmed_log(gateway: Gateway, log: OutputLog) -> None:
    poll = f"poll.{poll_beside(TOPIC)}"
    log.tally(poll_beside(TOPIC), 1)
    log.event("m1", "1", 1)
    cursor = await cursor_after_snapshot(gateway, [TOPIC, poll])
    gateway.stop()
    log.tally(poll_beside(TOPIC), 2)
    log.trim(TOPIC, log.tally(poll_beside(TOPIC), 3).next)
    with running_gateway(gateway._settings) as fresh:
        async with reading(fresh, "sse", [TOPIC, poll], cursor=cursor) as reader:
            welcome, snapshot = await read(reader, 2)
            assert verdicts(welcome) == {TOPIC: "complete", poll: "conflated"}
            assert snapshot["topic"] == poll
            log.event("m1", "1", 2)
            assert (await read(reader, 1))[0]["data"]["n"] == 2


async def test_reader_of_a_quiet_topic_is_complete_when_the_whole_log_was_trimmed(
    settings: Settings, log: OutputLog
) -> None:
    last = log.event("m1", "1", 1)
    with running_gateway(settings) as first:
        cursor = await cursor_after_snapshot(first, [TOPIC])
    log.trim(TOPIC, last.next)
    with running_gateway(settings) as fresh:
        async with reading(fresh, "sse", TOPIC, cursor=cursor) as reader:
            assert verdicts((await read(reader, 1))[0]) == {TOPIC: "complete"}


def forged(*position: int, topic: str = TOPIC) -> str:
    """A well-made cursor of this log, for any position."""
    return encode(fingerprint("testlog", [topic]), {shard_of(topic, SHARDS): Position(*position)})


async def test_position_of_the_future_is_a_reset(gateway: Gateway, log: OutputLog) -> None:
    last = log.event("m1", "1", 1)
    for position in ((1, last.ms + 60_000, 0, 1), (1, last.ms, last.seq + 1, 1), (2, last.ms, last.seq, 1)):
        async with reading(gateway, "sse", TOPIC, cursor=forged(*position)) as reader:
            assert verdicts((await read(reader, 1))[0]) == {TOPIC: "reset"}, position


async def test_cursor_ahead_of_this_gateway_is_not_of_the_future(settings: Settings, log: OutputLog) -> None:
    """Another gateway may have been faster: what counts is what the log has."""
    log.event("m1", "1", 1)
    with running_gateway(settings) as gateway:
        async with reading(gateway, "sse", TOPIC) as reader:
            await read(reader, 2)
            shard = gateway.inside.tails[SHARD]
            gateway.call(lambda: setattr(shard, "_take", _refuse_to_read))
            ahead = log.event("m1", "1", 2)
            async with reading(gateway, "sse", TOPIC, cursor=forged(1, *ahead, 65_535)) as other:
                assert verdicts((await read(other, 1))[0]) == {TOPIC: "complete"}


async def _refuse_to_read(*_: object) -> None:
    raise ConnectionError("this gateway is slow today")


async def test_rolled_back_position_is_a_reset(settings: Settings, log: OutputLog) -> None:
    kept = log.event("m1", "1", 1)
    lost = log.event("m1", "1", 2)
    log.client.xdel(keys.updates(SHARD), str(lost))
    log.client.hset(keys.progress(SHARD), mapping={"last_id": str(kept), "updates_id": str(kept)})
    log.new_epoch(SHARD, 2, kept.next)
    with running_gateway(settings) as gateway:
        for position, verdict in (((1, *lost, 1), "reset"), ((1, *kept, 65_535), "complete"), ((2, *kept, 1), "reset")):
            async with reading(gateway, "sse", TOPIC, cursor=forged(*position)) as reader:
                assert verdicts((await read(reader, 1))[0]) == {TOPIC: verdict}, position


async def test_live_readers_of_a_rolled_back_part_come_back_for_a_reset(gateway: Gateway, log: OutputLog) -> None:
    kept = log.event("m1", "1", 1)
    async with reading(gateway, "sse", TOPIC) as reader:
        await read(reader, 2)
        lost = log.event("m1", "1", 2)
        cursor = (await read(reader, 3))[-1]["id"]
        log.client.xdel(keys.updates(SHARD), str(lost))
        log._previous[SHARD] = kept
        log.new_epoch(SHARD, 2, kept.next)
        log.apply((TOPIC, [("round_end", False, {"n": 3})], {"round_no": 3}), epoch=2)
        (bye,) = await read(reader, 1)
        assert bye["event"] == "bye"
    async with reading(gateway, "sse", TOPIC, cursor=cursor) as reader:
        welcome, snapshot = await read(reader, 2)
        assert verdicts(welcome) == {TOPIC: "reset"}
        assert snapshot["data"]["round_no"] == 3


async def test_restart_of_redis_that_loses_nothing_goes_unnoticed(settings: Settings, tmp_path: Path) -> None:
    with running_redis(tmp_path / "own") as server:
        own = Settings(redis_url=server.url, clickhouse_password="x")
        log = OutputLog(server.url)
        last = log.event("m1", "1", 1)
        with running_gateway(own) as gateway:
            async with reading(gateway, "sse", TOPIC) as reader:
                await read(reader, 2)
                server.kill9()
                server.start()
                log.client.connection_pool.disconnect()
                log.new_epoch(SHARD, 2, last.next)
                log.apply((TOPIC, [("round_end", False, {"n": 2})], {"round_no": 2}), epoch=2)
                (event,) = await read(reader, 1)
                assert event["data"]["n"] == 2
                vector = decode(event["id"], fingerprint("testlog", [TOPIC]), [SHARD])
                assert vector is not None
                assert vector[SHARD].epoch == 2
        log.close()


async def test_without_redis_a_stream_says_when_to_come_back(settings: Settings, tmp_path: Path) -> None:
    """Any status but 200 would end an EventSource for good."""
    with running_redis(tmp_path / "own") as server:
        OutputLog(server.url).close()
        with running_gateway(Settings(redis_url=server.url, clickhouse_password="x")) as gateway:
            server.kill9()
            async with httpx.AsyncClient(base_url=gateway.url, timeout=15) as client:
                answer = await client.get("/api/v1/stream?topics=poll.p1")
                assert answer.status_code == 200
                assert answer.text.startswith("retry: ")
                assert (await client.get("/api/v1/updates?topics=poll.p1")).status_code == 503
                assert (await client.get("/api/v1/polls/p1")).status_code == 503
                assert (await client.get("/readyz")).status_code == 503
                assert (await client.get("/healthz")).status_code == 200
            server.start()

            async def serves() -> bool:
                async with httpx.AsyncClient(base_url=gateway.url) as client:
                    return (await client.get("/api/v1/updates?topics=poll.p1&wait=0")).status_code == 200

            await wait_until(serves, 10)


async def test_shard_without_readers_is_read_no_more_until_one_comes_back(
    settings: Settings, log: OutputLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.ring.LINGER_S", 0.2)
    monkeypatch.setattr("gateway.tail.IDLE_S", 0.2)
    log.event("m1", "1", 1)
    with running_gateway(settings) as gateway:
        assert not gateway.inside.hub.edge, "nothing is read before somebody asks"
        cursor = await cursor_after_snapshot(gateway, [TOPIC])
        assert set(gateway.inside.hub.edge) == {SHARD}, "and only the shards asked for"
        await wait_until(lambda: not gateway.inside.hub.edge and not gateway.inside.tails._running, 15)
        log.event("m1", "1", 2)
        async with reading(gateway, "sse", TOPIC, cursor=cursor) as reader:
            messages = await read_until(reader, 2)
            assert verdicts(messages[0]) == {TOPIC: "complete"}
            await read(reader, 2)
            log.event("m1", "1", 3)
            assert (await read(reader, 1))[0]["data"]["n"] == 3


positions = st.integers(0, 2**63 - 1)


@given(
    st.one_of(
        st.text(max_size=200),
        st.from_regex(r"[A-Za-z0-9_.~:-]{1,200}", fullmatch=True),
        st.tuples(positions, positions, positions, positions).map(lambda place: forged(*place)),
        st.tuples(st.integers(0, 3), st.integers(0, 5000), st.integers(0, 3), st.integers(0, 9)).map(
            lambda place: forged(*place)
        ),
    )
)
@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_cursor_is_an_error_and_none_is_believed_without_reason(
    shared_gateway: Gateway, shared_log: OutputLog, cursor: str
) -> None:
    """Whatever is sent as a cursor: 200, and `complete` only for a position this log has had."""
    params = {"topics": TOPIC, "cursor": cursor, "wait": "0"}
    answer = httpx.get(f"{shared_gateway.url}/api/v1/updates", params=params)
    assert answer.status_code == 200
    verdict = answer.json()["resume"][TOPIC]["resume"]
    if not cursor:
        assert verdict == "snapshot"
        return
    vector = decode(cursor, fingerprint("testlog", [TOPIC]), [SHARD])
    if verdict != "reset":
        assert vector is not None
        assert vector[SHARD].epoch == 1
        assert vector[SHARD].entry <= shared_log._last[SHARD]


@pytest.fixture
def shared_log(log: OutputLog) -> OutputLog:
    log.event("m1", "1", 1)
    log.event("m1", "1", 2)
    return log


@pytest.fixture
def shared_gateway(gateway: Gateway) -> Gateway:
    return gateway
