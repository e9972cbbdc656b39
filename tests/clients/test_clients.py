"""What the clients that users have make of our streams, compressed and not; and how they come back."""

from collections.abc import AsyncIterator, Iterator
from itertools import product
from typing import Any

import pytest

from core.settings import Settings
from tests.clients.listeners import EVENT_SOURCES, WEBSOCKETS, Client, Listener, Message, listening, require
from tests.gateway.output_log import OutputLog
from tests.gateway.server import Gateway, running_gateway
from tests.support.browser import Browser, Page, find_browser, running_browser

pytestmark = pytest.mark.redis

TEXT = "Zoë 🏆 中文 \u2028 \\n"
CASES = [
    pytest.param(client, compression, id=f"{client}-{compression}",
                 marks=[pytest.mark.browser] if client.startswith("chromium") else [])
    for client, compression in product((*EVENT_SOURCES, *WEBSOCKETS), ("off", "on"))
]  # fmt: skip


@pytest.fixture
def log(redis_url: str) -> Iterator[OutputLog]:
    """What the state consumer would write."""
    writer = OutputLog(redis_url)
    yield writer
    writer.close()


@pytest.fixture
async def page(request: pytest.FixtureRequest) -> AsyncIterator[Page | None]:
    """A browser's page, for the clients that need one."""
    client = getattr(request.node, "callspec").params.get("client", "chromium")  # noqa: B009
    path = find_browser()
    if not client.startswith("chromium") or path is None:
        yield None
        return
    async with running_browser(path) as browser:
        assert isinstance(browser, Browser)
        yield await browser.new_page()


def url_of(gateway: Gateway, client: Client, query: str) -> str:
    if client in WEBSOCKETS:
        return f"{gateway.ws_url}?{query}"
    return f"{gateway.url}/api/v1/stream?{query}"


async def heard(listener: Listener, *kinds: str, count: int = 1) -> list[Message]:
    """So many messages of these kinds; others are skipped."""
    found: list[Message] = []
    while len(found) < count:
        message = await listener.next()
        if message["event"] in kinds:
            found.append(message)
    return found


def data_of(message: Message) -> dict[str, Any]:
    data: dict[str, Any] = message["data"]
    return data


@pytest.mark.parametrize(("client", "compression"), CASES)
async def test_snapshot_live_heartbeat_and_resume(
    settings: Settings, log: OutputLog, page: Page | None, client: Client, compression: str
) -> None:
    require(client)
    log.tally("p1", 1, note=TEXT)
    is_on = compression == "on"
    with running_gateway(settings, heartbeat_s=0.6, compression=compression) as gateway:
        async with listening(client, url_of(gateway, client, "topics=poll.p1"), page, compressed=is_on) as listener:
            welcome = (await heard(listener, "welcome"))[0]
            assert data_of(welcome)["topics"] == {"poll.p1": {"resume": "snapshot"}}
            (snapshot,) = await heard(listener, "snapshot")
            assert data_of(snapshot)["note"] == TEXT
            for n in range(2, 8):
                log.tally("p1", n, note=TEXT * n)
            tallies = await heard(listener, "tally", count=6)
            assert [data_of(message)["total"] for message in tallies] == list(range(2, 8))
            assert [data_of(message)["note"] for message in tallies] == [TEXT * n for n in range(2, 8)]
            for _ in range(3):
                log.silent("poll.p1")
            log.tally("p1", 8)
            (last,) = await heard(listener, "tally")
            while (heartbeat := (await heard(listener, "heartbeat"))[0])["id"] == last["id"]:
                log.silent("poll.p1")  # a heartbeat moves the cursor over what was not for us
        log.tally("p1", 9, note=TEXT)
        query = f"topics=poll.p1&cursor={heartbeat['id']}"
        async with listening(client, url_of(gateway, client, query), page, compressed=is_on) as listener:
            (welcome,) = await heard(listener, "welcome")
            assert data_of(welcome)["topics"] == {"poll.p1": {"resume": "complete"}}
            (tally,) = await heard(listener, "tally")
            assert (data_of(tally)["total"], data_of(tally)["note"]) == (9, TEXT)


@pytest.mark.parametrize("compression", ["off", "on"])
@pytest.mark.parametrize(
    "client", ["node eventsource", pytest.param("chromium EventSource", marks=pytest.mark.browser)]
)
async def test_event_source_comes_back_by_itself_after_a_restart_without_loss(
    settings: Settings, log: OutputLog, page: Page | None, client: Client, compression: str
) -> None:
    require(client)
    log.tally("p1", 1)
    log.event("m1", "1", 1)
    query = "topics=poll.p1,match.m1.1&types=round_end"
    with running_gateway(settings, compression=compression) as gateway:
        port = gateway.port
        url = url_of(gateway, client, query)
        listening_there = listening(client, url, page)
        listener = await listening_there.__aenter__()
        await heard(listener, "snapshot", count=2)
        log.event("m1", "1", 2)
        assert [data_of(m)["n"] for m in await heard(listener, "round_end")] == [2]
        gateway.ask_to_stop()
        (bye,) = await heard(listener, "bye")
        assert 500 <= data_of(bye)["retry_ms"] <= 10_000
    try:
        for n in (3, 4):
            log.event("m1", "1", n)
            log.event("m1", "1", n, "going_live")  # filtered
        with running_gateway(settings, compression=compression, port=port):
            (lost, welcome) = await heard(listener, "lost", "welcome", count=2)
            assert (lost["event"], lost["state"]) == ("lost", 0), "it is connecting, not closed for good"
            while welcome["event"] == "lost":  # it may have knocked before anybody was there
                (welcome,) = await heard(listener, "lost", "welcome")
            verdicts = data_of(welcome)["topics"]
            assert {verdict["resume"] for verdict in verdicts.values()} == {"complete"}
            events = await heard(listener, "round_end", "going_live", count=2)
            assert [(m["event"], data_of(m)["n"]) for m in events] == [("round_end", 3), ("round_end", 4)]
            log.event("m1", "1", 5)
            assert [data_of(m)["n"] for m in await heard(listener, "round_end")] == [5]
    finally:
        await listening_there.__aexit__(None, None, None)


@pytest.mark.parametrize(
    "client", ["node eventsource", "httpx-sse", pytest.param("chromium EventSource", marks=pytest.mark.browser)]
)
async def test_envelope_is_plain_messages(
    settings: Settings, log: OutputLog, page: Page | None, client: Client
) -> None:
    require(client)
    log.tally("p1", 1)
    with running_gateway(settings, compression="on") as gateway:
        url = url_of(gateway, client, "topics=poll.p1&envelope=1")
        async with listening(client, url, page, compressed=True) as listener:
            welcome, snapshot = await heard(listener, "message", count=2)
            assert data_of(welcome)["event"] == "welcome"
            assert data_of(snapshot)["topic"] == "poll.p1"
            assert data_of(snapshot)["id"] == snapshot["id"]


@pytest.mark.parametrize("compression", ["off", "on"])
@pytest.mark.parametrize("client", ["node ws", pytest.param("chromium WebSocket", marks=pytest.mark.browser)])
async def test_websocket_clients_see_extension_batches_and_close_codes(
    settings: Settings, log: OutputLog, page: Page | None, client: Client, compression: str
) -> None:
    require(client)
    log.tally("p1", 1)
    with running_gateway(settings, compression=compression, flush_interval_ms=200) as gateway:
        async with listening(client, url_of(gateway, client, "topics=poll.p1"), page) as listener:
            (opened,) = await heard(listener, "open")
            assert opened["protocol"] == "arenacast.v1"
            assert ("permessage-deflate" in str(opened["extensions"])) == (compression == "on")
            await heard(listener, "snapshot")
            for n in range(2, 40):
                log.tally("p1", n)
            tallies = await heard(listener, "tally", count=38)
            assert [data_of(m)["total"] for m in tallies] == list(range(2, 40))
            assert max(m["together"] for m in tallies) > 1, "several messages in one frame"
        async with listening(client, url_of(gateway, client, "topics=nonsense"), page) as listener:
            (closed,) = await heard(listener, "closed")
            assert closed["code"] == 4000
        async with listening(client, url_of(gateway, client, "topics=poll.p1"), page) as listener:
            await heard(listener, "snapshot")
            gateway.ask_to_stop()
            bye, closed = await heard(listener, "bye", "closed", count=2)
            assert (bye["event"], closed["code"]) == ("bye", 1012)


async def test_slow_websocket_of_node_hears_that_it_was_too_slow(settings: Settings, log: OutputLog) -> None:
    changes: dict[str, Any] = {"lag_max_s": 0.5, "subscriber_high_water_kb": 16}
    with running_gateway(settings, **changes) as gateway:
        async with listening("slow-ws", url_of(gateway, "node ws", "topics=match.m1.1"), None) as listener:  # type: ignore[arg-type]
            await heard(listener, "open")
            for n in range(400):  # events are never left out, so they pile up
                log.apply(("match.m1.1", [("round_end", False, {"n": n, "pad": "x" * 50_000})], {"n": n}))
            (closed,) = await heard(listener, "closed")
            assert closed["code"] == 4008
