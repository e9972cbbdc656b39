"""One way to read for every transport, with the independent clients that users have."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, Protocol

import httpx
import httpx_sse
import websockets.asyncio.client
from websockets.typing import Subprotocol

from tests.gateway.server import Gateway

Transport = Literal["sse", "envelope", "ws", "poll"]
TRANSPORTS: tuple[Transport, ...] = ("sse", "envelope", "ws", "poll")
Message = dict[str, Any]

WAIT_S = 10.0
SILENT_S = 30.0


class Reader(Protocol):
    """A connected reader. The first message is the welcome (made up for the long-poll from its verdicts)."""

    async def next(self) -> Message:
        """The next message as the contract's message object."""


class _Sse:
    def __init__(self, events: AsyncIterator[httpx_sse.ServerSentEvent]) -> None:
        self._events = events

    async def next(self) -> Message:
        event = await asyncio.wait_for(anext(self._events), WAIT_S)
        if event.event == "message":  # envelope
            message: Message = json.loads(event.data)
            assert message.get("id", event.id) == event.id
            return message
        data = json.loads(event.data)
        message = {"event": event.event, "id": event.id, "data": data}
        if "topic" in data:
            assert next(iter(data)) == "topic", "topic is the first key"
            message["topic"] = data.pop("topic")
        return message


class _Ws:
    def __init__(self, socket: websockets.asyncio.client.ClientConnection) -> None:
        self.socket = socket
        self._waiting: list[Message] = []

    async def next(self) -> Message:
        while not self._waiting:
            text = await asyncio.wait_for(self.socket.recv(), WAIT_S)
            assert isinstance(text, str)
            self._waiting.extend(json.loads(line) for line in text.split("\n"))
        return self._waiting.pop(0)


class _Poll:
    def __init__(self, client: httpx.AsyncClient, params: dict[str, str], cursor: str | None) -> None:
        self._client = client
        self._params = params
        self._cursor = cursor
        self._waiting: list[Message] = []
        self._is_greeted = False

    async def next(self) -> Message:
        async with asyncio.timeout(WAIT_S):
            while not self._waiting:
                await self._ask()
        return self._waiting.pop(0)

    async def _ask(self) -> None:
        params = {**self._params, "wait": "5"}
        if not self._is_greeted:
            params["wait"] = "0"
        if self._cursor is not None:
            params["cursor"] = self._cursor
        answer = (await self._client.get("/api/v1/updates", params=params)).raise_for_status().json()
        if not self._is_greeted:
            self._is_greeted = True
            self._waiting.append({"event": "welcome", "data": {"topics": answer["resume"]}})
        self._cursor = answer["cursor"]
        self._waiting.extend(answer["messages"])


@asynccontextmanager
async def reading(
    gateway: Gateway,
    transport: Transport,
    topics: Sequence[str] | str,
    cursor: str | None = None,
    types: Sequence[str] = (),
) -> AsyncIterator[Reader]:
    """Connect a reader."""
    params = {"topics": topics if isinstance(topics, str) else ",".join(topics)}
    if types:
        params["types"] = ",".join(types)
    if transport == "ws":
        if cursor is not None:
            params["cursor"] = cursor
        url = f"{gateway.ws_url}?{httpx.QueryParams(params)}"
        async with websockets.asyncio.client.connect(url, subprotocols=[Subprotocol("arenacast.v1")]) as socket:
            assert socket.subprotocol == "arenacast.v1"
            yield _Ws(socket)
        return
    async with httpx.AsyncClient(base_url=gateway.url, timeout=WAIT_S) as client:
        if transport == "poll":
            yield _Poll(client, params, cursor)
            return
        if transport == "envelope":
            params["envelope"] = "1"
        if cursor is not None:
            params["cursor"] = cursor
        async with httpx_sse.aconnect_sse(client, "GET", "/api/v1/stream", params=params) as source:
            assert source.response.status_code == 200
            yield _Sse(source.aiter_sse())


async def read(reader: Reader, count: int) -> list[Message]:
    """So many messages, heartbeats left out. Raises TimeoutError when one does not come, whatever beats meanwhile."""
    found: list[Message] = []
    while len(found) < count:
        async with asyncio.timeout(SILENT_S):
            while (message := await reader.next())["event"] == "heartbeat":
                pass
        found.append(message)
    return found


async def read_until(reader: Reader, n: int) -> list[Message]:
    """Messages up to the one whose data says `total` or `n` is `n`."""
    found: list[Message] = []
    while True:
        message = (await read(reader, 1))[0]
        found.append(message)
        data = message["data"]
        if data.get("total") == n or data.get("n") == n:
            return found


def verdicts(welcome: Message) -> dict[str, str]:
    """Topic -> resume."""
    assert welcome["event"] == "welcome"
    return {topic: verdict["resume"] for topic, verdict in welcome["data"]["topics"].items()}
