"""Event streams over HTTP/2 without a proxy: the plain ASGI application on uvicorn's own HTTP/2."""

import asyncio
from contextlib import AsyncExitStack

import h2.connection
import h2.errors
import h2.events
import httpx
import httpx_sse
import pytest

from core.settings import Settings
from tests.gateway.output_log import OutputLog
from tests.gateway.readers import _Sse, read, verdicts
from tests.gateway.server import running_gateway
from tests.support.waiting import wait_until

pytestmark = pytest.mark.redis

HEAD = [
    (":method", "GET"), (":path", "/api/v1/stream?topics=poll.p1"), (":scheme", "http"), (":authority", "localhost"),
]  # fmt: skip


@pytest.mark.parametrize("compression", ["off", "on"])
async def test_dozens_of_streams_share_one_connection(settings: Settings, log: OutputLog, compression: str) -> None:
    log.tally("p1", 1)
    with running_gateway(settings, "http2", compression=compression) as gateway:
        async with (
            httpx.AsyncClient(base_url=gateway.url, http1=False, http2=True, timeout=10) as client,
            AsyncExitStack() as stack,
        ):

            async def follow(**headers: str) -> _Sse:
                source = await stack.enter_async_context(
                    httpx_sse.aconnect_sse(client, "GET", "/api/v1/stream?topics=poll.p1", headers=headers)
                )
                assert source.response.http_version == "HTTP/2"
                assert source.response.headers.get("content-encoding") == ("gzip" if compression == "on" else None)
                return _Sse(source.aiter_sse())

            readers = [await follow() for _ in range(20)]
            for reader in readers:
                assert (await read(reader, 2))[1]["data"]["total"] == 1
            for n in range(2, 6):
                log.tally("p1", n, note="x" * 300)
            messages = [await read(reader, 4) for reader in readers]
            assert [[m["data"]["total"] for m in each] for each in messages] == [[2, 3, 4, 5]] * 20
            resumed = await follow(**{"Last-Event-ID": messages[0][1]["id"]})
            welcome, *missed = await read(resumed, 3)
            assert verdicts(welcome) == {"poll.p1": "complete"}
            assert [m["data"]["total"] for m in missed] == [4, 5]
            transport: object = client._transport
            assert len(transport._pool.connections) == 1  # type: ignore[attr-defined]


async def test_a_stream_that_its_reader_resets_is_forgotten(settings: Settings, log: OutputLog) -> None:
    """The connection lives on with its other streams, as when one of a browser's tabs is closed."""
    log.tally("p1", 1)
    with running_gateway(settings, "http2") as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        client = h2.connection.H2Connection()
        client.initiate_connection()
        for stream in (1, 3):
            client.send_headers(stream, HEAD, end_stream=True)
        writer.write(client.data_to_send())
        heard = {1: b"", 3: b""}
        async with asyncio.timeout(10):
            while not all(b"event: snapshot" in text for text in heard.values()):
                for event in client.receive_data(await reader.read(65_536)):
                    if isinstance(event, h2.events.DataReceived):
                        heard[event.stream_id] += event.data
        assert len(gateway.inside.wheel) == 2
        client.reset_stream(3, h2.errors.ErrorCodes.CANCEL)
        writer.write(client.data_to_send())
        await wait_until(lambda: len(gateway.inside.wheel) == 1)
        writer.close()
        await wait_until(lambda: len(gateway.inside.wheel) == 0)
