"""The peer that most people would write: Starlette, sse-starlette, Redis pub/sub, a queue per client.

`python -m loadtests.fanout.app PORT REDIS_SOCKET`, served by uvicorn with uvloop and httptools, without access log.
It promises nothing: no ids, no resuming, and a slow client's queue grows without a bound.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis.asyncio
import uvicorn
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from loadtests.fanout import message
from loadtests.fanout.publish import PubSubFeed


def make_app(redis_socket: str) -> Starlette:
    """The ASGI application."""
    queues: set[asyncio.Queue[str]] = set()

    async def listen() -> None:
        client = redis.asyncio.Redis(unix_socket_path=redis_socket, decode_responses=True)
        async with client.pubsub() as subscription:
            await subscription.subscribe(PubSubFeed.CHANNEL)
            async for received in subscription.listen():
                if received["type"] == "message":
                    for queue in queues:
                        queue.put_nowait(received["data"])

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        listening = asyncio.create_task(listen())
        yield
        listening.cancel()

    @asynccontextmanager
    async def subscribed() -> AsyncIterator[asyncio.Queue[str]]:
        queue: asyncio.Queue[str] = asyncio.Queue()
        queues.add(queue)
        try:
            yield queue
        finally:
            queues.discard(queue)

    async def stream(_request: Request) -> EventSourceResponse:
        async def events() -> AsyncIterator[ServerSentEvent]:
            async with subscribed() as queue:
                while True:
                    yield ServerSentEvent(await queue.get(), event=message.EVENT_KIND)

        return EventSourceResponse(events())

    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        async with subscribed() as queue:
            try:
                while True:
                    await websocket.send_text(await queue.get())
            except WebSocketDisconnect:
                pass

    return Starlette(routes=[Route("/sse", stream), WebSocketRoute("/ws", socket)], lifespan=lifespan)


def main() -> None:
    port, redis_socket = sys.argv[1:]
    uvicorn.run(
        make_app(redis_socket), port=int(port), loop="uvloop", http="httptools", access_log=False,
        log_level="error", backlog=4096,
    )  # fmt: skip


if __name__ == "__main__":
    main()
