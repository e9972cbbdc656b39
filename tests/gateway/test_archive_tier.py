"""Resuming from behind the output log: events from ClickHouse, then from Redis, then live, within one connection."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest

from clickhouse.client import ClickHouse
from core import keys
from core.cursor import decode, encode, fingerprint
from core.names import shard_of
from core.position import EntryId, Position
from core.settings import Settings
from gateway.source import RedisSource
from tests.clickhouse.conftest import clickhouse, database_url
from tests.gateway.output_log import SHARDS, OutputLog
from tests.gateway.past_log import PastLog, events_of
from tests.gateway.readers import Message, Transport, read, reading, verdicts
from tests.gateway.server import Gateway, running_gateway
from tests.gateway.test_slow_readers import Slow
from tests.support.waiting import wait_until

__all__ = ["clickhouse", "database_url"]

pytestmark = [pytest.mark.redis, pytest.mark.clickhouse]

TOPIC = "match.m1.1"
SHARD = shard_of(TOPIC, SHARDS)


@pytest.fixture
def past(log: OutputLog, clickhouse: ClickHouse, database_url: str) -> PastLog:
    return PastLog(log, database_url)


@pytest.fixture(autouse=True)
def short_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few hundred events are several."""
    monkeypatch.setattr("gateway.past.ROWS_MAX", 100)


@pytest.fixture
def own(settings: Settings, database_url: str) -> Settings:
    return msgspec.structs.replace(settings, clickhouse_url=database_url)


@pytest.fixture
def gateway(own: Settings, past: PastLog) -> Iterator[Gateway]:
    with running_gateway(own, clickhouse_url=own.clickhouse_url) as running:
        yield running


def cursor_at(entry: EntryId, topic: str = TOPIC, epoch: int = 1, k: int = 65_535) -> str:
    return encode(fingerprint("testlog", [topic]), {SHARD: Position(epoch, entry.ms, entry.seq, k)})


def numbers(messages: list[Message], kind: str = "round_end") -> list[int]:
    return [message["data"]["n"] for message in messages if message["event"] == kind]


async def read_to_snapshot(reader: Any) -> list[Message]:
    found: list[Message] = []
    while not found or found[-1]["event"] != "snapshot":
        found += await read(reader, 1)
    return found


def two_hours_ago(log: OutputLog, past: PastLog) -> tuple[EntryId, list[Message]]:
    """330 events, of which Redis has the last thirty and ClickHouse the first 320. Returns where it began."""
    begin = log.event("m1", "1", 0)
    events = events_of(log, TOPIC, 1, 330)
    past.store(TOPIC, events[:320])
    past.commit(SHARD, events[319][0])
    log.trim(TOPIC, events[300][0])
    return begin, []


@pytest.mark.parametrize("transport", ["sse", "ws", "envelope", "poll"])
async def test_old_cursor_gets_every_event_in_order_then_the_newest_state_then_live(
    gateway: Gateway, log: OutputLog, past: PastLog, transport: Transport
) -> None:
    begin, _ = two_hours_ago(log, past)
    async with reading(gateway, transport, TOPIC, cursor=cursor_at(begin)) as reader:
        welcome, *messages = await read_to_snapshot(reader)
        assert verdicts(welcome) == {TOPIC: "conflated"}
        assert numbers(messages) == list(range(1, 331))
        assert {message["event"] for message in messages} == {"round_end", "snapshot"}
        assert messages[-1]["data"] == {"round_no": 330, "status": "live"}
        log.event("m1", "1", 331)
        live = await read(reader, 3)
        assert [message["event"] for message in live] == ["round_end", "state", "prediction"]


async def test_reader_that_is_cut_off_on_the_way_goes_on_where_it_was_and_still_gets_the_states(
    gateway: Gateway, log: OutputLog, past: PastLog
) -> None:
    begin, _ = two_hours_ago(log, past)
    cursor, seen = cursor_at(begin), list[int]()
    for stop in (3, 150, 310, 325, 330):  # in the archive, and where Redis takes over
        async with reading(gateway, "sse", TOPIC, cursor=cursor) as reader:
            assert verdicts((await read(reader, 1))[0]) == {TOPIC: "conflated"}
            while not seen or seen[-1] < stop:
                (message,) = await read(reader, 1)
                assert message["event"] == "round_end"
                seen.append(message["data"]["n"])
                cursor = message["id"]
    async with reading(gateway, "sse", TOPIC, cursor=cursor) as reader:
        _, snapshot = await read(reader, 2)
        assert snapshot["event"] == "snapshot"
        assert snapshot["data"]["round_no"] == 330
    assert seen == list(range(1, 331))
    async with reading(gateway, "sse", TOPIC, cursor=snapshot["id"]) as reader:
        assert verdicts((await read(reader, 1))[0]) == {TOPIC: "complete"}, "nothing is owed any more"


async def test_pattern_and_filter_hold_in_the_archive_and_a_newer_map_starts_at_its_first_event(
    gateway: Gateway, log: OutputLog, past: PastLog
) -> None:
    begin = log.event("m1", "1", 0)
    first = events_of(log, TOPIC, 1, 5)
    kills = log.apply((TOPIC, [("player_death", False, {"n": 6})], {"round_no": 5}))[0]
    second = events_of(log, "match.m1.2", 7, 9)
    past.store(TOPIC, [*first, (kills, "player_death", {"n": 6})])
    past.store("match.m1.2", second)
    past.commit(SHARD, second[-1][0])
    log.trim(TOPIC, second[-1][0].next)
    pattern = "match.m1.*"
    async with reading(gateway, "sse", [pattern], cursor=cursor_at(begin, pattern), types=["round_end"]) as reader:
        welcome, *messages = await read(reader, 11)
        assert verdicts(welcome) == {pattern: "conflated"}
        assert numbers(messages) == [1, 2, 3, 4, 5, 7, 8, 9]
        assert [m["topic"] for m in messages if m["event"] == "snapshot"] == [TOPIC, "match.m1.2"]
        shard_position = decode(messages[-2]["id"], fingerprint("testlog", [pattern]), [SHARD])
        assert shard_position is not None
        assert shard_position[SHARD].is_owing, "a cursor covers only topics whose snapshot was sent"


@pytest.mark.parametrize("reason", ["away", "behind", "ttl"])
async def test_archive_that_cannot_vouch_is_a_reset_that_names_the_gap(
    gateway: Gateway, log: OutputLog, past: PastLog, reason: str
) -> None:
    begin, _ = two_hours_ago(log, past)
    if reason == "behind":
        past.commit(SHARD, EntryId(begin.ms, begin.seq + 1))
    elif reason == "ttl":
        past.query("ALTER TABLE match_events MODIFY TTL toDateTime(received_at) + toIntervalSecond(1)")
    settings = (
        msgspec.structs.replace(gateway._settings, clickhouse_url="http://default:x@127.0.0.1:1/arenacast")
        if reason == "away"
        else gateway._settings
    )
    gateway.stop()
    with running_gateway(settings, clickhouse_url=settings.clickhouse_url) as fresh:
        async with reading(fresh, "sse", TOPIC, cursor=cursor_at(begin)) as reader:
            welcome, snapshot = await read(reader, 2)
            verdict = welcome["data"]["topics"][TOPIC]
            assert verdict["resume"] == "reset"
            assert verdict["lost_from"] <= verdict["lost_to"]
            assert snapshot["data"]["round_no"] == 330
            log.event("m1", "1", 331)
            assert (await read(reader, 1))[0]["data"]["n"] == 331


async def test_rows_of_a_rolled_back_part_are_not_told(gateway: Gateway, log: OutputLog, past: PastLog) -> None:
    begin = log.event("m1", "1", 0)
    kept = events_of(log, TOPIC, 1, 3)
    log.new_epoch(SHARD, 2, kept[-1][0].next)
    past.store(TOPIC, kept)
    lost = [(log.next_id(SHARD), "round_end", {"n": 900 + n}) for n in range(3)]
    past.store(TOPIC, lost)  # archived, and then lost by Redis
    after = [
        (log.apply((TOPIC, [("round_end", False, {"n": n})], {"round_no": n}), epoch=2)[0], "round_end", {"n": n})
        for n in (4, 5)
    ]
    past.store(TOPIC, after, epoch=2)
    past.commit(SHARD, after[-1][0])
    log.trim(TOPIC, after[-1][0].next)
    async with reading(gateway, "sse", TOPIC, cursor=cursor_at(begin)) as reader:
        welcome, *messages = await read_to_snapshot(reader)
        assert verdicts(welcome) == {TOPIC: "conflated"}
        assert numbers(messages) == [1, 2, 3, 4, 5]


async def test_crowd_with_like_cursors_asks_each_server_once_per_range(
    gateway: Gateway, log: OutputLog, past: PastLog
) -> None:
    begin, _ = two_hours_ago(log, past)
    selects = past.selects()
    log.client.config_resetstat()

    async def come_back() -> None:
        async with reading(gateway, "sse", TOPIC, cursor=cursor_at(begin)) as reader:
            assert numbers(await read_to_snapshot(reader)) == list(range(1, 331))

    await asyncio.gather(*(come_back() for _ in range(40)))
    calls = {name.removeprefix("cmdstat_"): told["calls"] for name, told in log.client.info("commandstats").items()}
    assert calls["xrange"] <= 12, "not once for each of forty"
    assert calls["eval_ro"] <= 20
    assert past.selects() - selects <= 16, "opening the connection, four pages, the last one again as it grows old"


async def test_slow_reader_of_the_archive_holds_nothing_and_leaves_nothing(
    gateway: Gateway, log: OutputLog, past: PastLog
) -> None:
    begin = log.event("m1", "1", 0)
    events = events_of(log, TOPIC, 1, 400, pad=20_000)  # 8 MB
    past.store(TOPIC, events)
    past.commit(SHARD, events[-1][0])
    log.trim(TOPIC, events[-1][0].next)
    slow = Slow(gateway, cursor=cursor_at(begin))
    await wait_until(lambda: bool(gateway.inside._feeder._tasks))

    def unsent() -> int:
        return sum(connection.transport.get_write_buffer_size() for connection in gateway.inside.wheel)  # type: ignore[attr-defined]

    await wait_until(lambda: gateway.call(unsent) > 64 * 1024)
    assert gateway.call(unsent) < 200_000
    async with httpx.AsyncClient(base_url=gateway.url, timeout=10) as client:
        assert (await client.get("/api/v1/updates", params={"topics": TOPIC})).status_code == 200, "others are served"
    assert slow.read_some()
    slow.socket.close()
    await wait_until(lambda: not gateway.inside._feeder._tasks and not len(gateway.inside.wheel))


async def test_archive_is_believed_no_further_than_the_state_consumer(
    log: OutputLog, past: PastLog, settings: Settings
) -> None:
    """Or a cursor would be ahead of the log it is given back to."""
    from core.redis_client import connect

    applied = log.event("m1", "1", 1)
    past.commit(SHARD, applied.next)
    client = connect(settings)
    try:
        assert await RedisSource(client).archived(SHARD) == applied
        past.commit(SHARD, EntryId(1, 0))
        assert await RedisSource(client).archived(SHARD) == EntryId(1, 0)
        log.client.delete(keys.archive(SHARD, "events"))
        assert await RedisSource(client).archived(SHARD) == EntryId(0, 0)
    finally:
        await client.aclose()
