"""The wire of the read side, scripted: what the browser meets is exactly what a test says, faults included.

It is no gateway: it keeps a list of messages and can be told to end connections in any of the ways the contract knows,
which the real one does only at moments a test cannot choose.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

STATIC = Path(__file__).resolve().parents[2] / "gateway" / "static"
POLICY = {"Content-Security-Policy": "default-src 'self'", "Cache-Control": "no-store"}
PAGES = {"/": "index.html", "/overlay/{id}": "overlay.html", "/docs": "docs.html"}
Message = dict[str, Any]


class ScriptedGateway:
    """Serves the static files and a log of `messages`; `fault` names how connections fail at the moment.

    Faults: `end` (the stream ends), `refuse` (503), `mute` (no welcome, nothing), `overload` (opens, `retry:`, ends),
    `bye`, or a WebSocket close code.
    """

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.lists: dict[str, list[dict[str, Any]]] = {"polls": [], "matches": []}
        self.documents: dict[str, Any] = {}
        self.snapshots: dict[str, dict[str, Any]] = {}
        self.fault = ""
        self.url = ""
        self.connections: list[tuple[str, str]] = []
        """(transport, cursor it came with) of each attempt."""
        self._changed = asyncio.Condition()

    async def emit(self, event: str, topic: str, data: dict[str, Any]) -> None:
        """Append one message; its id is its number."""
        self.messages.append({"event": event, "topic": topic, "id": f"n.{len(self.messages) + 1}", "data": data})
        await self._wake()

    async def set_fault(self, fault: str) -> None:
        """From now on, for open connections as for new ones."""
        self.fault = fault
        await self._wake()

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _begin(self, request: web.Request, transport: str) -> tuple[list[Message], int]:
        topics = request.query["topics"].split(",")
        cursor = request.headers.get("Last-Event-ID") or request.query.get("cursor", "")
        self.connections.append((transport, cursor))
        position = int(cursor.removeprefix("n.")) if cursor else len(self.messages)
        verdicts = {topic: {"resume": "complete" if cursor else "snapshot"} for topic in topics}
        first: list[Message] = [{"event": "welcome", "data": {"session": "s", "topics": verdicts}}]
        if not cursor:
            snapshots = self.snapshots.items()
            first += [{"event": "snapshot", "topic": t, "id": f"n.{position}", "data": data} for t, data in snapshots]
        return first, position

    async def _follow(self, position: int) -> AsyncIterator[list[Message]]:
        while not self.fault:
            async with self._changed:
                await self._changed.wait_for(partial(self._has_news, position))
            batch, position = self.messages[position:], len(self.messages)
            if batch and not self.fault:
                yield batch
        if self.fault == "bye":
            yield [{"event": "bye", "data": {"retry_ms": 50}}]

    def _has_news(self, position: int) -> bool:
        return bool(self.fault) or position < len(self.messages)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Server-Sent Events, envelope form."""
        if problem := self._problem(request):
            self.connections.append(("sse", ""))
            return problem
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **POLICY})
        await response.prepare(request)
        await response.write(b"retry: 50\n\n")
        if self.fault in ("mute", "overload"):
            self.connections.append(("sse", ""))
            async with self._changed:
                await self._changed.wait_for(lambda: self.fault != "mute")
            return response
        first, position = self._begin(request, "sse")
        await response.write(_frames(first))
        with contextlib.suppress(ConnectionError):
            async for batch in self._follow(position):
                await response.write(_frames(batch))
        return response

    async def websocket(self, request: web.Request) -> web.WebSocketResponse:
        """WebSocket; several messages to a frame."""
        socket = web.WebSocketResponse(protocols=["arenacast.v1"])
        await socket.prepare(request)
        reading = asyncio.create_task(_read(socket))
        try:
            if not self.fault:
                first, position = self._begin(request, "ws")
                await socket.send_str(_lines(first))
                async for batch in self._follow(position):
                    await socket.send_str(_lines(batch))
            await socket.close(code=int(self.fault) if self.fault.isdigit() else 1001)
        except ConnectionError:
            pass  # the browser left first
        finally:
            reading.cancel()
        return socket

    async def updates(self, request: web.Request) -> web.Response:
        """Long-poll, which the client asks only to learn why a stream was refused."""
        return self._problem(request) or web.json_response({"cursor": "n.0", "resume": {}, "messages": []})

    def _problem(self, request: web.Request) -> web.Response | None:
        if self.fault == "refuse":
            return web.json_response({"title": "unavailable", "status": 503}, status=503)
        if " " in request.query["topics"]:
            return web.json_response({"title": "bad request", "detail": "malformed topic", "status": 400}, status=400)
        return None

    async def items(self, request: web.Request) -> web.Response:
        """`GET /api/v1/polls` and `/matches`."""
        kind = request.match_info["kind"]
        return web.json_response({kind: self.lists[kind], "next": None})

    async def document(self, request: web.Request) -> web.Response:
        """`/openapi.json` and what it refers to."""
        found = self.documents.get(request.path)
        return web.json_response(found) if found else web.Response(status=404)

    async def page(self, request: web.Request) -> web.FileResponse:
        """One of the pages, under the strict policy that the gateway sends."""
        resource = request.match_info.route.resource
        assert resource is not None
        return web.FileResponse(STATIC / PAGES[resource.canonical], headers=POLICY)


async def _read(socket: web.WebSocketResponse) -> None:
    async for _ in socket:
        pass


def _frames(messages: list[Message]) -> bytes:
    lines = ((f"id: {m['id']}\n" if "id" in m else "") + f"data: {json.dumps(m)}\n\n" for m in messages)
    return "".join(lines).encode()


def _lines(messages: list[Message]) -> str:
    return "\n".join(json.dumps(message) for message in messages)


@contextlib.asynccontextmanager
async def scripted_gateway() -> AsyncIterator[ScriptedGateway]:
    """A scripted gateway on a free port."""
    gateway = ScriptedGateway()
    app = web.Application()
    app.add_routes(
        [
            web.get("/api/v1/stream", gateway.stream),
            web.get("/api/v1/ws", gateway.websocket),
            web.get("/api/v1/updates", gateway.updates),
            web.get("/api/v1/{kind:polls|matches}", gateway.items),
            web.get("/{name:.*}.json", gateway.document),
            *(web.get(path, gateway.page) for path in PAGES),
            web.static("/static", STATIC),
        ]
    )
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    address = runner.addresses[0]
    gateway.url = f"http://{address[0]}:{address[1]}"
    try:
        yield gateway
    finally:
        await gateway.set_fault("end")
        await runner.cleanup()
