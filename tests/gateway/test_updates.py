"""Long-poll: what is particular to it; the rest is in test_contract."""

import asyncio
import time

import httpx
import pytest

from core.settings import Settings
from tests.gateway.output_log import OutputLog
from tests.gateway.server import Gateway, running_gateway
from tests.support.waiting import wait_until

pytestmark = pytest.mark.redis

URL = "/api/v1/updates?topics=poll.p1"


@pytest.fixture
def sink() -> str:
    """An ordinary request on either."""
    return "takeover"


async def test_answers_at_once_without_a_cursor(gateway: Gateway, log: OutputLog) -> None:
    log.tally("p1", 1)
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        answer = await client.get(URL)
    body = answer.json()
    assert body["resume"] == {"poll.p1": {"resume": "snapshot"}}
    assert [message["event"] for message in body["messages"]] == ["snapshot"]
    assert body["cursor"] == body["messages"][-1]["id"]
    assert answer.headers["cache-control"] == "no-store"


async def test_waits_for_news_without_polling(gateway: Gateway, log: OutputLog) -> None:
    log.tally("p1", 1)
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        cursor = (await client.get(URL)).json()["cursor"]
        waiting = asyncio.create_task(client.get(f"{URL}&cursor={cursor}&wait=10"))
        await wait_until(lambda: len(gateway.inside.wheel) == 1)
        assert not waiting.done()
        log.tally("p1", 2)
        body = (await asyncio.wait_for(waiting, 5)).json()
        assert body["resume"] == {"poll.p1": {"resume": "complete"}}
        assert [message["data"]["total"] for message in body["messages"]] == [2]
    await wait_until(lambda: len(gateway.inside.wheel) == 0)


async def test_empty_answer_after_the_wait_moves_the_cursor(gateway: Gateway, log: OutputLog) -> None:
    log.tally("p1", 1)
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        cursor = (await client.get(URL)).json()["cursor"]
        started = time.monotonic()
        body = (await client.get(f"{URL}&cursor={cursor}&wait=0.3")).json()
        assert 0.2 < time.monotonic() - started < 5
        assert body["messages"] == []
        assert body["cursor"]


async def test_wait_out_of_bounds_is_a_400(gateway: Gateway) -> None:
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        for wait in ("x", "-1", "31", "nan", "inf", "1e9"):
            assert (await client.get(f"{URL}&wait={wait}")).status_code == 400, wait


async def test_large_past_comes_in_pieces_each_with_its_cursor(settings: Settings, log: OutputLog) -> None:
    log.event("m1", "1", 0)
    url = "/api/v1/updates?topics=match.m1.1&wait=0"
    with running_gateway(settings) as first:
        async with httpx.AsyncClient(base_url=first.url) as client:
            cursor = (await client.get(url)).json()["cursor"]
    for n in range(1, 200):
        log.event("m1", "1", n, "round_end" if n % 2 else "going_live")
        log.apply(("match.m1.1", [("note", False, {"pad": "x" * 4000, "n": -n})], {"round_no": n}))
    with running_gateway(settings) as fresh:
        async with httpx.AsyncClient(base_url=fresh.url) as client:
            seen: list[int] = []
            for _ in range(100):
                body = (await client.get(f"{url}&cursor={cursor}")).json()
                assert body["resume"]["match.m1.1"]["resume"] in ("complete", "conflated")
                seen += [m["data"]["n"] for m in body["messages"] if m["event"] in ("round_end", "going_live")]
                cursor = body["cursor"]
                if not body["messages"]:
                    break
    assert seen == list(range(1, 200))


async def test_drain_answers_those_who_wait(settings: Settings, log: OutputLog) -> None:
    with running_gateway(settings) as gateway:
        async with httpx.AsyncClient(base_url=gateway.url) as client:
            cursor = (await client.get(URL)).json()["cursor"]
            waiting = asyncio.create_task(client.get(f"{URL}&cursor={cursor}&wait=20"))
            await wait_until(lambda: len(gateway.inside.wheel) == 1)
            gateway.ask_to_stop()
            body = (await asyncio.wait_for(waiting, 5)).json()
            assert body["messages"] == []
            assert body["cursor"]
