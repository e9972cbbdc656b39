"""The gateway as a plain ASGI application, for servers other than ours: TLS, HTTP/2, hypercorn, …

    uvicorn --factory gateway.asgi:app --no-server-header --ssl-keyfile … --ssl-certfile …
    uvicorn --factory gateway.asgi:app --http zttp --http2 …                       (pip install zttp)

Everything works as with `arenacast gateway`, at the price of that server's connections: about 12 KB more per reader
and four times the CPU per delivery, and its own way of stopping (streams end without a `bye`). Compression of
WebSockets is then the server's own, per connection (uvicorn: `--ws-per-message-deflate false` turns it off).
"""

import asyncio
import contextlib
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from core import logs
from core.errors import Fatal
from core.redis_client import find_log
from core.settings import Settings, load
from gateway.app import clients, make_app
from gateway.service import Service
from gateway.source import RedisSource


class App:
    """An ASGI application that opens its clients at the server's lifespan startup and closes them at shutdown."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._app: ASGIApp | None = None
        self.service: Service | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif self._app is None:
            raise Fatal("this application needs a server that supports lifespan")
        else:
            await self._app(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()  # startup
        async with contextlib.AsyncExitStack() as stack:
            try:
                client, clickhouse = await stack.enter_async_context(clients(self._settings))
                identity = await find_log(client, self._settings, asyncio.Event())
                assert identity is not None, "nobody asked to stop"
            except Exception as error:
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                return
            service = self.service = Service(self._settings, RedisSource(client, clickhouse), *identity)
            self._app = make_app(service, client, clickhouse)
            clock = asyncio.create_task(service.run())
            await send({"type": "lifespan.startup.complete"})
            await receive()  # shutdown: the server has ended all requests
            clock.cancel()
            await service.stop()
        await send({"type": "lifespan.shutdown.complete"})


def app() -> Any:
    """Factory for a server's command line: settings come from the environment."""
    settings = load()
    logs.configure("gateway", settings)
    return App(settings)
