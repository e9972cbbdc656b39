"""The read side's contract, over both sinks and all transports, with clients that users have."""

import asyncio
from itertools import product

import httpx
import pytest

from core.settings import Settings
from tests.gateway.output_log import OutputLog
from tests.gateway.readers import TRANSPORTS, Message, Transport, read, read_until, reading, verdicts
from tests.gateway.server import Gateway, Kind, running_gateway

pytestmark = pytest.mark.redis

every_transport = pytest.mark.parametrize("transport", TRANSPORTS)


def totals(messages: list[Message]) -> list[int]:
    return [message["data"]["total"] for message in messages if message["event"] == "tally"]


@every_transport
async def test_snapshot_then_live_without_gap_or_repeat(gateway: Gateway, log: OutputLog, transport: Transport) -> None:
    log.tally("p1", 1)
    async with reading(gateway, transport, "poll.p1") as reader:
        welcome, snapshot = await read(reader, 2)
        assert verdicts(welcome) == {"poll.p1": "snapshot"}
        assert (snapshot["event"], snapshot["topic"], snapshot["data"]["total"]) == ("snapshot", "poll.p1", 1)
        for n in range(2, 12):
            log.tally("p1", n)
        assert totals(await read_until(reader, 11)) == list(range(2, 12))


@every_transport
async def test_unknown_topic_has_an_unknown_snapshot_and_lives_once_created(
    gateway: Gateway, log: OutputLog, transport: Transport
) -> None:
    async with reading(gateway, transport, ["match.m7.1", "poll.new"]) as reader:
        messages = await read(reader, 3)
        assert {message["data"]["status"] for message in messages[1:]} == {"unknown"}
        log.tally("new", 5)
        log.event("m7", "1", 1)
        events = {message["event"] for message in await read(reader, 4)}
        assert events == {"tally", "round_end", "state", "prediction"}


@every_transport
async def test_whole_match_includes_maps_that_appear_later(
    gateway: Gateway, log: OutputLog, transport: Transport
) -> None:
    log.event("m1", "1", 1)
    async with reading(gateway, transport, "match.m1.*") as reader:
        _, snapshot = await read(reader, 2)
        assert snapshot["topic"] == "match.m1.1"
        log.event("m1", "2", 1)
        log.event("m2", "1", 1)
        log.event("m1", "series", 2, "series_end")
        messages = await read(reader, 6)
        assert [message["topic"] for message in messages] == ["match.m1.2"] * 3 + ["match.m1.series"] * 3


@every_transport
async def test_map_named_beside_its_pattern_comes_once(gateway: Gateway, log: OutputLog, transport: Transport) -> None:
    async with reading(gateway, transport, ["match.m1.*", "match.m1.1"]) as reader:
        (welcome,) = await read(reader, 1)
        assert set(verdicts(welcome)) == {"match.m1.*", "match.m1.1"}
        log.event("m1", "1", 1)
        log.event("m1", "1", 2)
        events = [m["data"]["n"] for m in await read_until(reader, 2) if m["event"] == "round_end"]
        assert events == [1, 2]


@every_transport
async def test_types_filter_events_but_not_states(gateway: Gateway, log: OutputLog, transport: Transport) -> None:
    async with reading(gateway, transport, "match.m1.1", types=["going_live"]) as reader:
        await read(reader, 2)
        log.event("m1", "1", 1, "round_end")
        log.event("m1", "1", 2, "going_live")
        events = [message["event"] for message in await read_until(reader, 2)]
        assert events == ["state", "prediction", "going_live"]


@every_transport
async def test_cursor_of_any_message_resumes_on_any_transport_and_gateway(
    settings: Settings, log: OutputLog, transport: Transport
) -> None:
    log.tally("p1", 1)
    log.event("m1", "1", 1)
    topics = ["poll.p1", "match.m1.*"]
    with running_gateway(settings) as one, running_gateway(settings) as other:
        async with reading(one, transport, topics) as reader:
            messages = await read(reader, 3)
            for n in range(2, 6):
                log.tally("p1", n)
                log.event("m1", "1", n)
            messages += await read(reader, 16)
        sent = messages[3:]
        for second, index in product(TRANSPORTS, (0, 7, 15)):
            async with reading(other, second, topics, cursor=sent[index]["id"]) as reader:
                (welcome,) = await read(reader, 1)
                assert set(verdicts(welcome).values()) == {"complete"}
                later = await read(reader, 15 - index)
                seen = {(m["topic"], m["event"], str(m["data"])) for m in [*sent[: index + 1], *later]}
                assert seen == {(m["topic"], m["event"], str(m["data"])) for m in sent}
                assert len(later) + index + 1 == len(sent), "none twice"


@every_transport
async def test_what_was_missed_comes_complete_and_then_live(
    gateway: Gateway, log: OutputLog, transport: Transport
) -> None:
    log.tally("p1", 1)
    async with reading(gateway, transport, "poll.p1") as reader:
        cursor = (await read(reader, 2))[1]["id"]
    for n in range(2, 30):
        log.tally("p1", n)
    async with reading(gateway, transport, "poll.p1", cursor=cursor) as reader:
        (welcome,) = await read(reader, 1)
        assert verdicts(welcome) == {"poll.p1": "complete"}
        assert totals(await read_until(reader, 29)) == list(range(2, 30))
        log.tally("p1", 30)
        assert totals(await read(reader, 1)) == [30]


@every_transport
async def test_unusable_cursor_is_a_reset_and_no_error(gateway: Gateway, log: OutputLog, transport: Transport) -> None:
    log.tally("p1", 1)
    for cursor in ("x", "1~0000000000000000~0.1.1.1.1", "~", "1~", "a" * 3000, "a" * 5000, "1~%00", "é"):
        async with reading(gateway, transport, "poll.p1", cursor=cursor) as reader:
            welcome, snapshot = await read(reader, 2)
            assert verdicts(welcome) == {"poll.p1": "reset"}, cursor
            assert snapshot["data"]["total"] == 1


@pytest.mark.parametrize("transport", ["sse", "envelope", "ws"])
async def test_heartbeat_moves_the_cursor_over_what_was_not_for_us(
    gateway: Gateway, log: OutputLog, transport: Transport
) -> None:
    log.tally("p1", 1)
    async with reading(gateway, transport, "poll.p1") as reader:
        snapshot = (await read(reader, 2))[1]
        for n in range(300):  # the same shard, or no heartbeat would have anything to move over
            log.silent("poll.p1") if n % 2 else log.tally("p1", 1)
        await read(reader, 150)
        heartbeats: list[Message] = []
        while len(heartbeats) < 2:
            message = await asyncio.wait_for(reader.next(), 5)
            if message["event"] == "heartbeat":
                heartbeats.append(message)
        assert heartbeats[-1]["id"] != snapshot["id"]
        assert heartbeats[-1]["data"] == {"topics": ["poll.p1"]}
    async with reading(gateway, transport, "poll.p1", cursor=heartbeats[-1]["id"]) as reader:
        (welcome,) = await read(reader, 1)
        assert verdicts(welcome) == {"poll.p1": "complete"}
        log.tally("p1", 7)
        assert totals(await read(reader, 1)) == [7]


@every_transport
async def test_cursor_from_the_middle_of_the_snapshots_brings_the_rest(
    gateway: Gateway, log: OutputLog, transport: Transport
) -> None:
    """A cursor covers only topics whose snapshot was sent, or a reader cut off there would miss one for ever."""
    topics = [f"poll.p{n}" for n in range(12)]
    for n in range(12):
        log.tally(f"p{n}", n)
    async with reading(gateway, transport, topics) as reader:
        messages = (await read(reader, 13))[1:]
    for index, message in enumerate(messages):
        seen = {m["topic"] for m in messages[: index + 1]}
        async with reading(gateway, transport, topics, cursor=message["id"]) as reader:
            (welcome,) = await read(reader, 1)
            again = [topic for topic, verdict in verdicts(welcome).items() if verdict == "reset"]
            assert seen | set(again) == set(topics)
            assert {m["topic"] for m in await read(reader, len(again))} == set(again)


@pytest.mark.parametrize("transport", ["sse", "envelope", "ws"])
async def test_stream_ends_with_bye_when_the_gateway_drains(
    settings: Settings, log: OutputLog, sink: Kind, transport: Transport
) -> None:
    with running_gateway(settings, sink) as gateway:
        async with reading(gateway, transport, "poll.p1") as reader:
            await read(reader, 2)
            gateway.ask_to_stop()
            (bye,) = await read(reader, 1)
            assert bye["event"] == "bye"
            assert 500 <= bye["data"]["retry_ms"] <= 10_000
            assert not bye.get("id") or transport == "sse"  # httpx-sse repeats the last id, as an EventSource does


async def test_malformed_topics_are_a_400_problem(gateway: Gateway) -> None:
    queries = (
        "", "topics=", "topics=poll", "topics=poll.a.b", "topics=match.m1", "topics=poll.p1&types=Upper",
        "topics=" + ",".join(f"poll.p{n}" for n in range(65)), "topics=poll.%0a",
    )  # fmt: skip
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        for path, query in product(("stream", "updates"), queries):
            answer = await client.get(f"/api/v1/{path}?{query}")
            assert answer.status_code == 400, query
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["status"] == 400


async def test_stream_tells_proxies_and_browsers_what_to_do(gateway: Gateway, log: OutputLog) -> None:
    async with (
        httpx.AsyncClient(base_url=gateway.url) as client,
        client.stream("GET", "/api/v1/stream?topics=poll.p1", headers={"Origin": "https://a.example"}) as answer,
    ):
        headers = answer.headers
        assert headers["content-type"].startswith("text/event-stream")
        assert headers["cache-control"] == "no-cache, no-transform"
        assert headers["x-accel-buffering"] == "no"
        assert headers["access-control-allow-origin"] == "*"
        assert headers["x-content-type-options"] == "nosniff"
        text = ""
        async for part in answer.aiter_text():
            text += part
            if text.count("\n\n") >= 2:
                break
    first = text.split("\n\n")[0].split("\n")
    assert first[0].startswith("retry: ")
    assert first[1] == "event: welcome"


async def test_last_event_id_wins_over_the_url(gateway: Gateway, log: OutputLog) -> None:
    log.tally("p1", 1)
    async with reading(gateway, "sse", "poll.p1") as reader:
        old = (await read(reader, 2))[1]["id"]
        log.tally("p1", 2)
        new = (await read(reader, 1))[0]["id"]
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        params = {"topics": "poll.p1", "cursor": old}
        async with client.stream("GET", "/api/v1/stream", params=params, headers={"Last-Event-ID": new}) as answer:
            log.tally("p1", 3)
            async for line in answer.aiter_lines():
                if '"total"' in line:
                    assert '"total":3' in line
                    break
