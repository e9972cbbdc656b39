"""The bare connection for calls made over and over, against real servers that hang, die and come back."""

import asyncio
import os
import shutil
import signal
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from redis.exceptions import ResponseError

from core import redis_wire
from core.errors import Fenced, Retry
from core.redis_client import Redis, connect
from core.redis_wire import WireConnection
from core.settings import Settings
from tests.support.redis_server import RedisServer, running_redis
from tests.support.waiting import wait_until

pytestmark = pytest.mark.redis


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own, to be killed."""
    with running_redis(tmp_path / "redis", maxmemory_mb=100) as running:
        yield running


@pytest_asyncio.fixture
async def client(server: RedisServer) -> AsyncIterator[Redis]:
    client = connect(Settings(redis_url=server.url))
    yield client
    await client.aclose()


@pytest_asyncio.fixture
async def wire(client: Redis) -> AsyncIterator[WireConnection]:
    wire = WireConnection(client)
    yield wire
    wire.close()


async def test_answers_of_every_size_come_whole_and_in_order(client: Redis, wire: WireConnection) -> None:
    for size in (0, 1, 100_000, 5_000_000):
        await client.set("k", b"\r\n" * size)
        assert await wire.call("GET", "k") == b"\r\n" * size
    assert await wire.call("GET", "none") is None
    await client.xadd("s", {"u": b"one"}, id="1-1")
    [[_, [[entry, fields]]]] = await wire.call("XREAD", "BLOCK", 10, "STREAMS", "s", "0", takes_s=0.01)
    assert (entry, fields) == (b"1-1", [b"u", b"one"])
    assert await wire.call("XREAD", "BLOCK", 10, "STREAMS", "s", "1-1", takes_s=0.01) is None


async def test_errors_mean_what_they_mean_elsewhere(client: Redis, wire: WireConnection) -> None:
    with pytest.raises(ResponseError, match="wrong number"):
        await wire.call("GET")
    with pytest.raises(Fenced):
        await wire.call("EVAL", "return redis.error_reply('FENCED by 2')", 0)
    await client.config_set("maxmemory", 1)
    with pytest.raises(Retry, match="OutOfMemory"):
        await wire.call("SET", "k", "v")
    await client.config_set("maxmemory", 0)
    assert await wire.call("SET", "k", "v") == b"OK"


async def test_a_server_that_goes_away_is_a_retry_and_the_next_call_finds_it_again(
    server: RedisServer, wire: WireConnection
) -> None:
    reading = asyncio.create_task(wire.call("XREAD", "BLOCK", 60_000, "STREAMS", "s", "0", takes_s=60))
    await asyncio.sleep(0.05)
    server.kill9()
    with pytest.raises(Retry):
        await asyncio.wait_for(reading, 5)
    with pytest.raises(Retry):
        await wire.call("PING")
    server.start()
    assert await wire.call("PING") == b"PONG"


async def test_a_server_that_hangs_is_noticed(
    server: RedisServer, wire: WireConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_wire, "ANSWERS_WITHIN_S", 0.1)
    await wire.call("PING")
    os.kill(server.pid, signal.SIGSTOP)
    try:
        with pytest.raises(Retry, match="no answer"):
            await asyncio.wait_for(wire.call("PING"), 5)
    finally:
        os.kill(server.pid, signal.SIGCONT)


async def test_an_answer_to_a_call_that_was_given_up_is_nobodys(client: Redis, wire: WireConnection) -> None:
    reading = asyncio.create_task(wire.call("XREAD", "BLOCK", 60_000, "STREAMS", "s", "0", takes_s=60))

    async def is_blocked() -> bool:
        return bool(int((await client.info("clients"))["blocked_clients"]))

    async with asyncio.timeout(5):
        while not await is_blocked():  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.01)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await client.xadd("s", {"u": b"one"})
    assert await wire.call("ECHO", "two") == b"two"


async def test_a_closed_connection_is_given_back(client: Redis, wire: WireConnection) -> None:
    await wire.call("CLIENT", "SETNAME", "wire")
    assert [each for each in await client.client_list() if each["name"] == "wire"]
    wire.close()
    async with asyncio.timeout(5):
        while [each for each in await client.client_list() if each["name"] == "wire"]:  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.01)


async def test_user_password_and_database_of_the_url_are_used(server: RedisServer, client: Redis) -> None:
    await client.acl_setuser("ann", enabled=True, passwords=["+open sesame"], categories=["+@all"], keys=["*"])
    ann = connect(Settings(redis_url=f"{server.url.replace('unix://', 'unix://ann:open%20sesame@')}?db=3"))
    wire = WireConnection(ann)
    assert await wire.call("ACL", "WHOAMI") == b"ann"
    await wire.call("SET", "here", "1")
    assert await client.exists("here") == 0, "that is database 0"
    assert "db=3" in (await wire.call("CLIENT", "INFO")).decode()
    wire.close()
    await ann.aclose()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
async def test_tls_is_used_where_the_url_says_so(server: RedisServer, tmp_path: Path) -> None:
    certificate, key = _certificate(tmp_path)
    async with _tls_in_front_of(server, certificate, key) as port:
        client = connect(Settings(redis_url=f"rediss://localhost:{port}/0?ssl_ca_certs={certificate}"))
        wire = WireConnection(client)
        big = b"x" * 300_000
        await wire.call("SET", "k", big)
        assert await wire.call("GET", "k") == big
        wire.close()
        await client.aclose()
        stranger = connect(Settings(redis_url=f"rediss://localhost:{port}/0"))
        with pytest.raises(Retry, match=r"(?i)certificate"):
            await WireConnection(stranger).call("PING")
        await stranger.aclose()


def _certificate(directory: Path) -> tuple[Path, Path]:
    certificate, key = directory / "cert.pem", directory / "key.pem"
    made = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", *made], check=True, capture_output=True)
    return certificate, key


@asynccontextmanager
async def _tls_in_front_of(server: RedisServer, certificate: Path, key: Path) -> AsyncIterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    pumps: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while part := await reader.read(65_536):
            writer.write(part)
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(str(server.socket))
        pumps.update(asyncio.create_task(pump(*ends)) for ends in ((reader, back), (there, writer)))

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with listener:
        yield listener.sockets[0].getsockname()[1]
        await wait_until(lambda: all(task.done() for task in pumps))
    await asyncio.gather(*pumps, return_exceptions=True)
