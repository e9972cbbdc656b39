"""The clients that users have, each behind one method: the next message."""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal, Protocol

import aiohttp
import httpx
import httpx_sse
import pytest
import websockets.asyncio.client
from websockets.typing import Subprotocol

from tests.clients.node import node_command
from tests.support.browser import Page, find_browser

Client = Literal[
    "curl", "httpx-sse", "aiohttp", "node eventsource", "chromium EventSource",
    "websockets", "aiohttp ws", "node ws", "chromium WebSocket",
]  # fmt: skip
EVENT_SOURCES: tuple[Client, ...] = ("curl", "httpx-sse", "aiohttp", "node eventsource", "chromium EventSource")
WEBSOCKETS: tuple[Client, ...] = ("websockets", "aiohttp ws", "node ws", "chromium WebSocket")
Message = dict[str, Any]
WAIT_S = 20.0

_IN_BROWSER = """((url) => {
  const seen = (window.seen = []);
  const say = (line) => seen.push(line);
  if (url.startsWith("ws")) {
    const socket = (window.live = new WebSocket(url, "arenacast.v1"));
    socket.onopen = () => say({ event: "open", protocol: socket.protocol, extensions: socket.extensions });
    socket.onmessage = ({ data }) => {
      const lines = data.split("\\n");
      for (const line of lines) say({ ...JSON.parse(line), together: lines.length });
    };
    socket.onclose = ({ code, reason }) => say({ event: "closed", code, reason });
    return;
  }
  const source = (window.live = new EventSource(url));
  const hear = (message) => say({ event: message.type, id: message.lastEventId, data: JSON.parse(message.data) });
  for (const name of ["welcome", "snapshot", "tally", "state", "prediction", "round_end", "going_live", "heartbeat",
                      "bye", "message"]) source.addEventListener(name, hear);
  source.onerror = () => say({ event: "lost", state: source.readyState });
})"""


class Listener(Protocol):
    """A connected client."""

    async def next(self) -> Message:
        """The next message, or what happened to the connection (`open`, `lost`, `closed`)."""


class _Lines:
    """A program that says what it hears in JSON lines."""

    def __init__(self, output: asyncio.StreamReader) -> None:
        self._output = output

    async def next(self) -> Message:
        line = await asyncio.wait_for(self._output.readline(), WAIT_S)
        assert line, "the client ended"
        message: Message = json.loads(line)
        return message


class _EventStream:
    """An event stream as text in pieces, parsed here."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self._text = b""
        self._id = ""

    async def next(self) -> Message:
        while b"\n\n" not in self._text:
            self._text += await asyncio.wait_for(anext(self._pieces), WAIT_S)
        block, _, self._text = self._text.partition(b"\n\n")
        fields = dict(line.split(": ", 1) for line in block.decode().split("\n"))
        self._id = fields.get("id", self._id)
        return {"event": fields.get("event", "message"), "id": self._id, "data": json.loads(fields["data"])}


class _HttpxSse:
    def __init__(self, source: httpx_sse.EventSource) -> None:
        self._events = source.aiter_sse()

    async def next(self) -> Message:
        event = await asyncio.wait_for(anext(self._events), WAIT_S)
        return {"event": event.event, "id": event.id, "data": json.loads(event.data)}


class _Texts:
    """WebSocket messages, taken apart."""

    def __init__(self, texts: AsyncIterator[str]) -> None:
        self._texts = texts
        self._waiting: list[Message] = []

    async def next(self) -> Message:
        while not self._waiting:
            lines = (await asyncio.wait_for(anext(self._texts), WAIT_S)).split("\n")
            self._waiting = [{**json.loads(line), "together": len(lines)} for line in lines]
        return self._waiting.pop(0)


class _InBrowser:
    def __init__(self, page: Page) -> None:
        self._page = page
        self._waiting: list[Message] = []

    async def next(self) -> Message:
        async with asyncio.timeout(WAIT_S):
            while not self._waiting:
                self._waiting = await self._page.run("seen.splice(0)")
                await asyncio.sleep(0.02)
        return self._waiting.pop(0)


@asynccontextmanager
async def listening(
    client: Client, url: str, page: Page | None = None, *, compressed: bool = False
) -> AsyncIterator[Listener]:
    """Connect a client; `url` is http:// for event streams and ws:// for WebSockets. Browsers need a `page`."""
    if client == "httpx-sse":
        async with httpx.AsyncClient(timeout=WAIT_S) as http, httpx_sse.aconnect_sse(http, "GET", url) as source:
            assert source.response.headers.get("content-encoding") == ("gzip" if compressed else None)
            yield _HttpxSse(source)
    elif client == "aiohttp":
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            assert answer.headers.get("content-encoding") == ("gzip" if compressed else None)
            yield _EventStream(answer.content.iter_any())
    elif client == "aiohttp ws":
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(url, protocols=["arenacast.v1"], compress=15 if compressed else 0) as socket,
        ):
            assert bool(socket.compress) == compressed
            yield _Texts(message.data async for message in socket)
    elif client == "websockets":
        async with websockets.asyncio.client.connect(url, subprotocols=[Subprotocol("arenacast.v1")]) as connection:
            assert bool(connection.protocol.extensions) == compressed
            yield _Texts(str(message) async for message in connection)
    elif client.startswith("chromium"):
        assert page is not None
        await page.run(f"{_IN_BROWSER}({json.dumps(url)})")
        yield _InBrowser(page)
        await page.run("live.close()")
    else:
        if client == "curl":
            curl = shutil.which("curl")
            assert curl is not None
            command = [curl, "--silent", "--no-buffer", "--compressed", url]
        else:
            command = [*node_command("listen.mjs"), client.removeprefix("node "), url]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, limit=2**22, stdin=asyncio.subprocess.DEVNULL
        )
        assert process.stdout is not None
        try:
            yield _EventStream(_pieces(process.stdout)) if client == "curl" else _Lines(process.stdout)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _pieces(output: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while piece := await output.read(2**16):
        yield piece


def require(client: Client) -> None:
    """Skip the test with a clear word, or fail it in CI, where the machine has no such client."""
    program = client.partition(" ")[0]
    is_missing = (
        find_browser() is None if program == "chromium" else program == "curl" and shutil.which(program) is None
    )
    if is_missing and os.environ.get("CI") == "true":
        pytest.fail(f"no {program} on this machine, and CI must have it")
    if is_missing:
        pytest.skip(f"no {program} on this machine")
