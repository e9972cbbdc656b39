"""Two gateways replaced one after the other under load: nobody misses an event, nobody gets one twice."""

import asyncio
import contextlib
import json
import signal

import httpx
import httpx_sse
import msgspec
import pytest
import websockets.asyncio.client
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from core.errors import Retry
from core.settings import Settings
from gateway.service import RETRY_MS
from gateway.subscription import subscription
from tests.gateway.output_log import OutputLog
from tests.gateway.readers import WAIT_S
from tests.gateway.server import running_gateway
from tests.gateway.test_process import Process, running
from tests.support.ports import free_port
from tests.support.waiting import wait_until, wait_until_sync

pytestmark = pytest.mark.redis

TOPIC = "match.m1.1"
READERS = 6
EVENTS_PER_STEP = 40


class Follower:
    """Follows a map for ever: reconnects with its last id, to whichever gateway is there."""

    def __init__(self, ports: list[int], start: int) -> None:
        self._ports = ports
        self._turn = start
        self.cursor = ""
        self.events: list[int] = []
        self.verdicts: list[str] = []
        self.retries_ms: list[int] = []
        self.codes: list[int] = []

    async def run(self) -> None:
        while True:
            port = self._ports[self._turn % 2]
            self._turn += 1
            with contextlib.suppress(httpx.TransportError, OSError, ConnectionClosed, InvalidHandshake):
                await self.read(port)
            await asyncio.sleep(0.05)

    async def read(self, port: int) -> None:
        """One connection."""
        raise NotImplementedError

    def take(self, event: str, cursor: str, data: dict[str, object]) -> None:
        """One message."""
        self.cursor = cursor or self.cursor
        if event == "welcome":
            topics = data["topics"]
            assert isinstance(topics, dict)
            self.verdicts.append(topics[TOPIC]["resume"])
        elif event == "bye":
            self.retries_ms.append(int(str(data["retry_ms"])))
        elif event == "round_end":
            self.events.append(int(str(data["n"])))


class SseFollower(Follower):
    async def read(self, port: int) -> None:
        headers = {"Last-Event-ID": self.cursor} if self.cursor else {}
        url = f"http://127.0.0.1:{port}/api/v1/stream?topics={TOPIC}"
        async with (
            httpx.AsyncClient(timeout=WAIT_S) as client,
            httpx_sse.aconnect_sse(client, "GET", url, headers=headers) as source,
        ):
            async for event in source.aiter_sse():
                self.take(event.event, event.id, event.json())


class WsFollower(Follower):
    async def read(self, port: int) -> None:
        cursor = f"&cursor={self.cursor}" if self.cursor else ""
        url = f"ws://127.0.0.1:{port}/api/v1/ws?topics={TOPIC}{cursor}"
        async with websockets.asyncio.client.connect(url) as socket:
            try:
                async for text in socket:
                    for line in str(text).split("\n"):
                        message = json.loads(line)
                        self.take(message["event"], message.get("id", ""), message["data"])
            finally:
                if socket.close_code is not None:
                    self.codes.append(socket.close_code)


async def test_rolling_restart_under_load_costs_no_reader_an_event(settings: Settings, log: OutputLog) -> None:
    ports = [settings.gateway_port, free_port()]
    with running(settings) as first, running(msgspec.structs.replace(settings, gateway_port=ports[1])) as second:
        log.event("m1", "1", 0)
        kinds = (SseFollower, WsFollower)
        followers: list[Follower] = [kinds[number // 2 % 2](ports, number) for number in range(READERS)]
        tasks = [asyncio.create_task(follower.run()) for follower in followers]
        await wait_until(lambda: all(follower.verdicts for follower in followers))
        published = 0

        async def publish() -> None:
            nonlocal published
            for _ in range(EVENTS_PER_STEP):
                published += 1
                log.event("m1", "1", published)
                await asyncio.sleep(0.01)

        gateways: list[Process] = [first, second]
        for place, port in enumerate(ports):
            old = gateways[place]
            old.process.send_signal(signal.SIGTERM)
            await publish()
            assert await asyncio.to_thread(old.process.wait, 15) == 0
            new = Process(msgspec.structs.replace(settings, gateway_port=port), 1)
            gateways[place] = new
            await asyncio.to_thread(wait_until_sync, new.is_ready, 30)
            await publish()
        try:
            await wait_until(lambda: all(follower.events[-1:] == [published] for follower in followers), 20)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for gateway in gateways:
                gateway.process.terminate()
                await asyncio.to_thread(gateway.process.wait, 15)
        for follower in followers:
            assert follower.events == list(range(1, published + 1))
            assert follower.verdicts[0] == "snapshot"
            assert set(follower.verdicts[1:]) == {"complete"}
        told = [retry for follower in followers for retry in follower.retries_ms]
        assert len(told) >= READERS, "everybody was asked to reconnect, most of them twice"
        assert all(RETRY_MS[0] <= retry <= RETRY_MS[1] for retry in told)
        assert len(set(told)) > 1, "not all at the same moment"
        assert {code for follower in followers for code in follower.codes} == {1012}


async def test_whoever_is_still_joining_when_a_drain_begins_is_asked_to_come_back(
    settings: Settings, log: OutputLog
) -> None:
    """The drain says `bye` to those it finds: a newcomer would be cut off without a word."""
    with running_gateway(settings) as gateway:
        service = gateway.inside

        async def join_and_drain() -> None:
            joining = asyncio.create_task(service.prepare(subscription([TOPIC]), "sse", None))
            await asyncio.sleep(0)
            service.is_draining = True
            await joining

        with pytest.raises(Retry, match="shutting down"):
            await asyncio.to_thread(gateway.submit(join_and_drain()).result, 10)
        assert not service.hub._interned
