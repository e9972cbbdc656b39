"""The proxy's own configuration, run by the very Caddy of the image, in front of real services.

Two gateways are 127.0.0.1 and 127.0.0.2 on one port, as replicas are addresses behind one name; needs Linux, whose
whole 127/8 is loopback.
"""

import asyncio
import json
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets

from tests.docker.proxy import NameServer, Proxy, running_proxy
from tests.docker.stack import ENV, running_valkey, service
from tests.support.pipeline import Process
from tests.support.ports import free_port
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.redis,
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, where all of 127/8 is loopback"),
]

FIRST, SECOND = "127.0.0.1", "127.0.0.2"
POLL = {"title": "Who?", "options": [{"id": "a", "label": "A"}, {"id": "b", "label": "B"}], "voting": "first"}


@dataclass
class Site:
    """What a test has in front of it."""

    proxy: Proxy
    names: NameServer
    ingest: Process
    gateways: dict[str, Process]
    gateway_port: int
    dead: list[Process] = field(default_factory=list)

    def kill(self, process: Process) -> None:
        """End a service as a crash does; it is back for the next test."""
        process.kill9()
        self.dead.append(process)

    def client(self, base_url: str, **options: Any) -> httpx.AsyncClient:
        """An HTTP client that trusts the proxy."""
        return httpx.AsyncClient(base_url=base_url, verify=self.proxy.trust(), timeout=15, **options)

    def reader(self) -> httpx.AsyncClient:
        """A client of the reading side."""
        return self.client(self.proxy.site)

    def writer(self) -> httpx.AsyncClient:
        """A client of the writing side that holds the key."""
        headers = {"Authorization": f"Bearer {ENV['ARENACAST_INGEST_KEY']}"}
        return self.client(self.proxy.ingest, headers=headers)

    async def connections(self, address: str) -> float:
        """Open event streams of one gateway, as its own metrics tell."""
        async with httpx.AsyncClient() as client:
            text = (await client.get(f"http://{address}:{self.gateway_port}/metrics")).text
        (line,) = [line for line in text.splitlines() if line.startswith('gateway_connections{transport="sse"}')]
        return float(line.split()[1])

    async def vote(self, poll_id: str, number: int) -> None:
        """Cast one vote through the proxy."""
        vote = {"event_id": f"e{number}", "poll_id": poll_id, "option": "a", "voter": f"v{number}"}
        async with self.writer() as writer:
            assert (await writer.post("/api/v1/votes", json=vote)).status_code == 202

    async def poll(self, poll_id: str) -> None:
        """Create a poll through the proxy."""
        async with self.writer() as writer:
            assert (await writer.put(f"/api/v1/polls/{poll_id}", json=POLL)).status_code == 201


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Everything started once; `site` puts it in order for each test."""
    directory: Path = tmp_path_factory.mktemp("stack")
    gateway_port, ingest_port = free_port(), free_port()
    names = NameServer()
    names.addresses = {"gateway": [FIRST, SECOND], "ingest": [FIRST], "grafana": [FIRST]}
    with running_valkey(directory) as valkey:
        ingest = service("ingest", directory, valkey, FIRST, ingest_port)
        state = service("consume-state", directory, valkey, FIRST, free_port())
        gateways = {at: service("gateway", directory, valkey, at, gateway_port) for at in (FIRST, SECOND)}
        started = [state, ingest, *gateways.values()]
        try:
            for process in started:
                process.start(wait=False)
            for process in started:
                process.wait_ready()
            upstream_ports = {"gateway": gateway_port, "ingest": ingest_port, "grafana": free_port()}
            with running_proxy(directory, names, upstream_ports) as proxy:
                yield Site(proxy, names, ingest, gateways, gateway_port)
        finally:
            for process in started:
                process.end()
            names.close()


@pytest.fixture
def site(parts: Site) -> Iterator[Site]:
    """Both gateways and ingest alive and known."""
    yield parts
    parts.names.addresses["gateway"] = [FIRST, SECOND]
    while parts.dead:
        parts.dead.pop().start()


class Stream:
    """An open event stream."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()
        self.id = ""

    async def next(self, kind: str) -> dict[str, Any]:
        """Data of the next message of this kind."""
        async with asyncio.timeout(10):
            async for line in self._lines:
                if line.startswith("data:"):
                    message = json.loads(line[5:])
                    self.id = message.get("id", self.id)
                    if message["event"] == kind:
                        return dict(message["data"])
        raise AssertionError(f"the stream ended before a {kind}")


@asynccontextmanager
async def stream(site: Site, poll_id: str, last_id: str = "") -> AsyncIterator[Stream]:
    """Follow a poll through the proxy."""
    headers = {"Last-Event-ID": last_id} if last_id else {}
    params = {"topics": f"poll.{poll_id}", "envelope": "1"}
    async with (
        site.reader() as reader,
        reader.stream("GET", "/api/v1/stream", params=params, headers=headers) as response,
    ):
        assert response.status_code == 200
        yield Stream(response)


# -- what is let through


async def test_browsers_are_offered_http_2(site: Site) -> None:
    context = site.proxy.trust()
    context.set_alpn_protocols(["h2", "http/1.1"])
    port = int(site.proxy.site.rpartition(":")[2])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as connection,
        context.wrap_socket(connection, server_hostname="localhost") as secured,
    ):
        assert secured.selected_alpn_protocol() == "h2"
        assert secured.version() == "TLSv1.3"


def status_of(proxy: Proxy, base_url: str, target: str) -> int:
    """Status of a GET whose target goes out as it is: a client library would tidy it up."""
    port = int(base_url.rpartition(":")[2])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as connection,
        proxy.trust().wrap_socket(connection, server_hostname="localhost") as secured,
    ):
        secured.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n".encode())
        return int(secured.makefile("rb").readline().split()[1])


async def test_metrics_are_not_shown(site: Site) -> None:
    targets = ["/metrics", "/metrics/", "/metrics?a=b", "//metrics", "/./metrics", "/x/../metrics", "/METRICS",
               "/%6Detrics", "/%2Fmetrics", "/metrics%2F", "http://localhost/metrics"]  # fmt: skip
    for base_url in (site.proxy.site, site.proxy.ingest, site.proxy.grafana):
        statuses = {target: await asyncio.to_thread(status_of, site.proxy, base_url, target) for target in targets}
        assert statuses == dict.fromkeys(targets, 404), base_url
    assert await asyncio.to_thread(status_of, site.proxy, site.proxy.site, "/healthz") == 200
    async with httpx.AsyncClient() as direct:
        assert (await direct.get(f"http://{FIRST}:{site.gateway_port}/metrics")).status_code == 200


async def test_pages_are_compressed_and_streams_are_not(site: Site) -> None:
    await site.poll("compressed")
    async with site.reader() as reader:
        page = await reader.get("/", headers={"Accept-Encoding": "gzip"})
        assert (page.status_code, page.headers["Content-Encoding"]) == (200, "gzip")
    async with stream(site, "compressed") as open_stream:
        assert "Content-Encoding" not in open_stream.response.headers
        assert open_stream.response.headers["Content-Type"].startswith("text/event-stream")


async def test_every_message_of_a_stream_arrives_before_the_next_is_caused(site: Site) -> None:
    """Lock step: a buffering proxy would never get past the first vote."""
    await site.poll("unbuffered")
    async with stream(site, "unbuffered") as viewer:
        assert (await viewer.next("snapshot"))["total"] == 0
        for number in range(1, 6):
            await site.vote("unbuffered", number)
            assert (await viewer.next("tally"))["total"] == number


async def test_a_websocket_is_let_through_with_its_subprotocol(site: Site) -> None:
    await site.poll("socket")
    url = f"{site.proxy.site.replace('https', 'wss')}/api/v1/ws?topics=poll.socket"
    subprotocols = [websockets.Subprotocol("arenacast.v1")]
    async with websockets.connect(url, ssl=site.proxy.trust(), subprotocols=subprotocols) as connection:
        assert connection.subprotocol == "arenacast.v1"
        await connection.send(json.dumps({"op": "unsubscribe", "topics": ["poll.socket"], "ref": 7}))
        kinds: list[tuple[str, Any]] = []
        async with asyncio.timeout(10):
            while ("unsubscribed", 7) not in kinds:
                parts = str(await connection.recv()).split("\n")
                kinds += [(message["event"], message.get("ref")) for message in map(json.loads, parts)]
    assert kinds[0][0] == "welcome"


async def test_writing_needs_the_key_behind_the_proxy_too(site: Site) -> None:
    async with site.client(site.proxy.ingest) as stranger:
        answer = await stranger.put("/api/v1/polls/nobodys", json=POLL)
    assert answer.status_code == 401
    assert answer.headers["Content-Type"] == "application/problem+json"


async def test_dozens_of_streams_share_one_connection_over_http_2(site: Site) -> None:
    """Over HTTP/1.1 a browser would stop at six."""
    await site.poll("many")
    params = {"topics": "poll.many", "envelope": "1"}
    async with site.client(site.proxy.site, http2=True) as reader, AsyncExitStack() as stack:
        viewers: list[Stream] = []
        for _ in range(24):
            response = await stack.enter_async_context(reader.stream("GET", "/api/v1/stream", params=params))
            assert (response.status_code, response.http_version) == (200, "HTTP/2")
            viewers.append(Stream(response))
            await viewers[-1].next("snapshot")
        await site.vote("many", 1)
        assert [(await viewer.next("tally"))["total"] for viewer in viewers] == [1] * 24
        last_id = {viewer.id for viewer in viewers}.pop()
        await site.vote("many", 2)
        headers = {"Last-Event-ID": last_id}
        response = await stack.enter_async_context(
            reader.stream("GET", "/api/v1/stream", params=params, headers=headers)
        )
        resumed = Stream(response)
        assert (await resumed.next("welcome"))["topics"]["poll.many"]["resume"] == "complete"
        assert (await resumed.next("tally"))["total"] == 2
        transport: Any = reader._transport
        assert len(transport._pool.connections) == 1


async def test_the_writing_side_is_not_on_the_reading_site(site: Site) -> None:
    headers = {"Authorization": f"Bearer {ENV['ARENACAST_INGEST_KEY']}"}
    async with site.client(site.proxy.site, headers=headers) as client:
        assert (await client.post("/api/v1/votes", json=[])).status_code in (404, 405)


async def test_a_viewer_who_leaves_is_gone_behind_the_proxy_too(site: Site) -> None:
    await site.poll("leaving")

    async def open_streams() -> float:
        return await site.connections(FIRST) + await site.connections(SECOND)

    async def nobody() -> bool:
        return await open_streams() == 0

    await wait_until(nobody, 10, "the streams of other tests are gone")
    async with stream(site, "leaving") as viewer:
        await viewer.next("snapshot")
        assert await open_streams() == 1
    await wait_until(nobody, 5, "the gateway knows that the viewer left")


# -- replicas


async def test_streams_are_spread_over_the_gateways(site: Site) -> None:
    await site.poll("spread")
    async with asyncio.TaskGroup() as group:
        leave = asyncio.Event()
        watching: list[str] = []

        async def watch() -> None:
            async with stream(site, "spread") as viewer:
                await viewer.next("snapshot")
                watching.append(viewer.id)
                await leave.wait()

        for number in range(1, 11):
            group.create_task(watch())
            await wait_until(lambda number=number: len(watching) == number, 10, "watching")  # type: ignore[misc]
        try:
            assert [await site.connections(at) for at in (FIRST, SECOND)] == [5, 5]
        finally:
            leave.set()


async def test_a_viewer_goes_on_without_loss_when_its_gateway_dies(site: Site) -> None:
    await site.poll("killed")
    async with stream(site, "killed") as viewer:
        await viewer.next("snapshot")
        await site.vote("killed", 1)
        assert (await viewer.next("tally"))["total"] == 1
        (serving,) = [at for at in (FIRST, SECOND) if await site.connections(at)]
        site.kill(site.gateways[serving])
        with pytest.raises((AssertionError, httpx.HTTPError)):
            await viewer.next("tally")
    await site.vote("killed", 2)
    async with stream(site, "killed", viewer.id) as viewer:  # the name still has the dead one's address
        verdict = (await viewer.next("welcome"))["topics"]["poll.killed"]["resume"]
        assert verdict in ("complete", "conflated")
        assert (await viewer.next("tally"))["total"] == 2


async def test_requests_do_not_fail_while_one_gateway_is_down(site: Site) -> None:
    await site.poll("alive")
    site.kill(site.gateways[SECOND])
    async with site.reader() as reader:
        answers = [await reader.get("/api/v1/polls/alive") for _ in range(20)]
    assert {answer.status_code for answer in answers} == {200}


async def test_a_replica_that_is_added_gets_streams_without_a_reload(site: Site) -> None:
    await site.poll("scaled")

    async def second_has_one_of_two() -> bool:
        """Of two streams open at the same time each known gateway has one."""
        async with stream(site, "scaled") as one, stream(site, "scaled") as other:
            await one.next("snapshot")
            await other.next("snapshot")
            return await site.connections(SECOND) == 1

    async def only_first() -> bool:
        return not await second_has_one_of_two()

    await wait_until(second_has_one_of_two, 15, "the second is trusted again, whatever earlier tests did to it")
    site.names.addresses["gateway"] = [FIRST]
    await wait_until(only_first, 15, "the second is not known any more")
    site.names.addresses["gateway"] = [FIRST, SECOND]
    await wait_until(second_has_one_of_two, 15, "the second is found")


# -- nobody there


async def test_event_sources_are_asked_to_come_back_when_no_gateway_is_there(site: Site) -> None:
    """EventSource gives up for good on any status but 200, and all of them come back: not in the same moment."""
    for gateway in site.gateways.values():
        site.kill(gateway)
    async with site.reader() as reader:
        answers = await asyncio.gather(*(reader.get("/api/v1/stream?topics=poll.gone") for _ in range(8)))
        other = await reader.get("/api/v1/polls")
    waits = set()
    for answer in answers:
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == "text/event-stream"
        name, _, value = answer.text.partition(": ")
        assert name == "retry"
        assert value.endswith("\n\n"), "the field is complete"
        waits.add(int(value))
    assert all(2000 <= wait < 8000 for wait in waits)
    assert len(waits) > 1
    assert other.status_code == 503
    assert other.headers["Content-Type"] == "application/problem+json"


async def test_sources_are_told_to_repeat_when_ingest_is_not_there(site: Site) -> None:
    site.kill(site.ingest)
    async with site.writer() as writer:
        answer = await writer.post("/api/v1/votes", json=[])
    problem = answer.json()
    assert (answer.status_code, problem["status"]) == (503, 503)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert int(answer.headers["Retry-After"]) > 0
    assert problem["title"] == "Service Unavailable"


async def test_proxy_says_that_it_is_alive(site: Site) -> None:
    async with httpx.AsyncClient() as client:
        assert (await client.get(site.proxy.health)).status_code == 200


def test_its_own_authority_is_all_that_is_trusted(parts: Site) -> None:
    """The harness proves something: the certificate is checked, and by this authority only."""
    with (
        pytest.raises(ssl.SSLError),
        socket.create_connection(("127.0.0.1", int(parts.proxy.site.rpartition(":")[2])), timeout=5) as connection,
    ):
        ssl.create_default_context().wrap_socket(connection, server_hostname="localhost")
