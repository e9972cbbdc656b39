"""`GET /api/v1/ws` on servers whose connections cannot be taken over; `gateway.websocket` is the usual way."""

import asyncio

from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from gateway import session
from gateway.frames import WS_MESSAGE_MAX
from gateway.plain import Outbox
from gateway.service import Service
from gateway.session import Session


def routes(service: Service) -> list[WebSocketRoute]:
    """The endpoint."""

    async def ws(websocket: WebSocket) -> None:
        offered = websocket.scope.get("subprotocols") or ()
        await websocket.accept(session.SUBPROTOCOL if session.SUBPROTOCOL in offered else None)
        outbox = Outbox(service, "text")
        outbox.open()
        sending = asyncio.create_task(_send(websocket, outbox))
        sending.add_done_callback(lambda _: receiving.cancel())
        receiving = asyncio.create_task(_receive(websocket, outbox, service))
        try:
            await asyncio.gather(sending, receiving, return_exceptions=True)
        finally:
            outbox.lost()
            sending.cancel()
            receiving.cancel()

    return [WebSocketRoute("/api/v1/ws", ws)]


async def _receive(websocket: WebSocket, outbox: Outbox, service: Service) -> None:
    talk = Session(service, outbox, "text")
    query = websocket.query_params
    await talk.open(query.getlist, websocket.headers.get("origin"))
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return
        text = message.get("text")
        if text is None:
            talk.refuse_binary()
        elif len(text) > session.MESSAGE_BYTES_MAX:
            outbox.close(1009, "message too big")
        else:
            await talk.handle(text.encode())


async def _send(websocket: WebSocket, outbox: Outbox) -> None:
    try:
        async for parts in outbox.parts():
            for part in parts:
                for text in _messages(part):
                    await websocket.send_text(text)
        if outbox.end is not None and websocket.client_state is WebSocketState.CONNECTED:
            await websocket.close(*outbox.end)
    except (WebSocketDisconnect, RuntimeError, OSError):
        return  # the client is gone: the receiving half hears of it, too


def _messages(part: bytes) -> list[str]:
    """Joined objects, split where one WebSocket message would grow too large for clients."""
    if len(part) <= WS_MESSAGE_MAX:
        return [part.decode()]
    found: list[str] = []
    group: list[bytes] = []
    size = 0
    for line in part.split(b"\n"):
        if group and size + len(line) > WS_MESSAGE_MAX:
            found.append(b"\n".join(group).decode())
            group, size = [], 0
        group.append(line)
        size += len(line) + 1
    found.append(b"\n".join(group).decode())
    return found
