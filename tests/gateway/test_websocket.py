"""WebSocket: requests, refusals, close codes, floods. Over both sinks where that can be."""

import asyncio
import json
import socket
from typing import Any

import pytest
import websockets.asyncio.client
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.protocol import CLIENT, Protocol
from websockets.typing import Origin

from core.settings import Settings
from gateway.frames import ws_close
from gateway.websocket import WebSocket
from tests.gateway.output_log import OutputLog
from tests.gateway.readers import TRANSPORTS, Message, _Ws, read, reading, verdicts
from tests.gateway.server import Gateway, Kind, running_gateway
from tests.support.waiting import wait_until

pytestmark = pytest.mark.redis

connect = websockets.asyncio.client.connect


class Talk(_Ws):
    """A client that asks."""

    async def ask(self, **request: Any) -> Message:
        """Send a request; returns the answer with its ref, skipping news."""
        await self.socket.send(json.dumps(request))
        while True:
            message = await self.next()
            if message["event"] in ("subscribed", "unsubscribed", "error"):
                return message


async def test_subscribe_later_and_twice(gateway: Gateway, log: OutputLog) -> None:
    log.tally("p1", 1)
    async with connect(gateway.ws_url) as connection:
        talk = Talk(connection)
        welcome = await talk.next()
        assert verdicts(welcome) == {}
        answer = await talk.ask(op="subscribe", topics=["poll.p1"], ref="one")
        assert answer["ref"] == "one"
        assert answer["data"]["topics"] == {"poll.p1": {"resume": "snapshot"}}
        assert (await read(talk, 1))[0]["data"]["total"] == 1
        answer = await talk.ask(op="subscribe", topics=["match.m1.1"], ref=2)
        assert (answer["ref"], set(answer["data"]["topics"])) == (2, {"match.m1.1"})
        await read(talk, 1)
        log.tally("p1", 2)
        log.event("m1", "1", 1)
        messages = await read(talk, 4)
        assert {message["topic"] for message in messages} == {"poll.p1", "match.m1.1"}


async def test_id_of_a_message_is_a_cursor_of_its_own_request(gateway: Gateway, log: OutputLog) -> None:
    log.tally("p1", 1)
    log.tally("p2", 1)
    async with connect(gateway.ws_url) as connection:
        talk = Talk(connection)
        await talk.next()
        await talk.ask(op="subscribe", topics=["poll.p1"])
        (one,) = await read(talk, 1)
        await talk.ask(op="subscribe", topics=["poll.p2"])
        (two,) = await read(talk, 1)
    log.tally("p1", 2)
    log.tally("p2", 3)
    async with connect(gateway.ws_url) as connection:
        talk = Talk(connection)
        await talk.next()
        for snapshot, total in ((one, 2), (two, 3)):
            answer = await talk.ask(op="subscribe", topics=[snapshot["topic"]], cursor=snapshot["id"])
            assert answer["data"]["topics"] == {snapshot["topic"]: {"resume": "complete"}}
            assert (await read(talk, 1))[0]["data"]["total"] == total
        answer = await talk.ask(op="subscribe", topics=["poll.p1"], cursor=two["id"])
        assert answer["data"]["topics"] == {"poll.p1": {"resume": "reset"}}


async def test_unsubscribe_ends_one_topic_and_keeps_the_others_without_gap(gateway: Gateway, log: OutputLog) -> None:
    topics = [f"poll.p{n}" for n in range(6)]
    async with connect(gateway.ws_url) as connection:
        talk = Talk(connection)
        await talk.next()
        await talk.ask(op="subscribe", topics=topics)
        await read(talk, 6)
        for n in range(6):
            log.tally(f"p{n}", 1)
        answer = await talk.ask(op="unsubscribe", topics=["poll.p0", "poll.never"], ref="x")
        assert (answer["event"], answer["ref"], answer["data"]) == ("unsubscribed", "x", {"topics": ["poll.p0"]})
        for n in range(6):
            log.tally(f"p{n}", 2)
        seen: dict[str, list[int]] = {}
        while len(seen) < 5 or any(totals[-1] != 2 for topic, totals in seen.items() if topic != "poll.p0"):
            message = (await read(talk, 1))[0]
            seen.setdefault(message["topic"], []).append(message["data"]["total"])
        # What the first tallies were read by `ask` as news before the answer is fine; nothing comes twice or late.
        assert 2 not in seen.get("poll.p0", [])
        assert all(totals == sorted(set(totals)) for totals in seen.values())
        last = await talk.ask(op="unsubscribe", topics=topics)
        assert set(last["data"]["topics"]) == set(topics) - {"poll.p0"}
    await wait_until(lambda: not gateway.inside.hub._interned)


async def test_subscribing_again_moves_the_topic(gateway: Gateway, log: OutputLog) -> None:
    log.tally("p1", 1)
    async with connect(gateway.ws_url) as connection:
        talk = Talk(connection)
        await talk.next()
        await talk.ask(op="subscribe", topics=["poll.p1"])
        await read(talk, 1)
        await talk.ask(op="subscribe", topics=["poll.p1", "poll.p2"])
        await read(talk, 2)
        log.tally("p1", 2)
        log.tally("p2", 9)
        totals = [message["data"]["total"] for message in await read(talk, 2)]
        assert sorted(totals) == [2, 9], "once each"


async def test_bad_request_is_answered_and_the_connection_stays(gateway: Gateway, log: OutputLog) -> None:
    requests: tuple[str | bytes, ...] = (
        "", "nonsense", "[]", "1", '{"op":"dance"}', '{"op":"subscribe"}', '{"op":"subscribe","topics":"poll.p1"}',
        '{"op":"subscribe","topics":["bad"]}', '{"op":"subscribe","topics":["poll.p1"],"cursor":7}', b"\x00\xff",
    )  # fmt: skip
    async with connect(gateway.ws_url) as connection:
        talk = Talk(connection)
        await talk.next()
        for request in requests:
            await connection.send(request)
            (error,) = await read(talk, 1)
            assert error["event"] == "error", request
            assert error["data"]["status"] == 400
            assert error["data"]["title"]
        assert (await talk.ask(op="subscribe", topics=["poll.p1"]))["event"] == "subscribed"


async def test_error_names_the_request(gateway: Gateway) -> None:
    async with connect(gateway.ws_url) as connection:
        talk = Talk(connection)
        await talk.next()
        assert (await talk.ask(op="subscribe", topics=["x"], ref="r1"))["ref"] == "r1"
        assert (await talk.ask(op=1, ref="r2"))["ref"] == "r2"
        assert "ref" not in await talk.ask(op="subscribe", topics=["x"])


async def test_no_more_than_sixty_four_topics_on_one_connection(gateway: Gateway) -> None:
    async with connect(gateway.ws_url) as connection:
        talk = Talk(connection)
        await talk.next()
        first = [f"poll.a{n}" for n in range(60)]
        assert (await talk.ask(op="subscribe", topics=first))["event"] == "subscribed"
        assert (await talk.ask(op="subscribe", topics=[f"poll.b{n}" for n in range(5)]))["event"] == "error"
        assert (await talk.ask(op="unsubscribe", topics=first[:5]))["event"] == "unsubscribed"
        assert (await talk.ask(op="subscribe", topics=[f"poll.b{n}" for n in range(5)]))["event"] == "subscribed"


async def closed(connection: websockets.asyncio.client.ClientConnection) -> tuple[int, str]:
    """Code and reason, after reading all there is."""
    try:
        async with asyncio.timeout(10):
            while True:
                await connection.recv()
    except ConnectionClosed as end:
        return (end.rcvd.code, end.rcvd.reason) if end.rcvd else (1006, "")


async def test_malformed_topics_in_the_url_close_with_4000_after_the_handshake(gateway: Gateway) -> None:
    async with connect(f"{gateway.ws_url}?topics=nonsense") as connection:
        error = json.loads(await connection.recv())
        assert error["event"] == "error"
        assert (await closed(connection))[0] == 4000


async def test_foreign_origin_is_closed_with_4003_where_origins_are_limited(
    settings: Settings, log: OutputLog, sink: Kind
) -> None:
    with running_gateway(settings, sink, cors_origins="https://a.example, https://b.example") as gateway:
        async with connect(gateway.ws_url, origin=Origin("https://evil.example")) as connection:
            assert (await closed(connection))[0] == 4003
        async with connect(gateway.ws_url, origin=Origin("https://b.example")) as connection:
            assert json.loads(await connection.recv())["event"] == "welcome"
        async with connect(gateway.ws_url) as connection:  # no browser, no origin
            assert json.loads(await connection.recv())["event"] == "welcome"


async def test_drain_says_bye_and_closes_with_1012(settings: Settings, log: OutputLog, sink: Kind) -> None:
    with running_gateway(settings, sink) as gateway:
        async with connect(f"{gateway.ws_url}?topics=poll.p1") as connection:
            await connection.recv()
            gateway.ask_to_stop()
            assert (await closed(connection))[0] == 1012


async def test_message_over_the_limit_closes_with_1009(gateway: Gateway) -> None:
    async with connect(gateway.ws_url) as connection:
        await connection.recv()
        await connection.send("x" * 70_000)
        assert (await closed(connection))[0] == 1009


async def test_fragments_and_pings_of_the_client_are_understood(gateway: Gateway) -> None:
    async with connect(gateway.ws_url) as connection:
        talk = Talk(connection)
        await talk.next()
        text = json.dumps({"op": "subscribe", "topics": ["poll.p1"], "ref": "long"})
        await connection.send(iter([text[:10], text[10:20], text[20:]]))
        await (await connection.ping())
        assert (await read(talk, 1))[0]["ref"] == "long"


async def test_without_the_subprotocol_it_works_as_well(gateway: Gateway) -> None:
    async with connect(gateway.ws_url) as connection:
        assert connection.subprotocol is None
        await connection.recv()


async def test_server_pings(gateway: Gateway, log: OutputLog, sink: Kind) -> None:
    if sink == "plain":
        return  # the server's own business there
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(_handshake("/api/v1/ws"))
    await reader.readuntil(b"\r\n\r\n")
    async with asyncio.timeout(10):
        seen = b""
        while b"\x89\x00" not in seen:
            seen += await reader.read(4096)
    writer.close()
    await writer.wait_closed()


def _handshake(path: str) -> bytes:
    return (
        f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


async def test_elsewhere_there_is_no_websocket(settings: Settings, log: OutputLog) -> None:
    with running_gateway(settings) as gateway:
        with pytest.raises(InvalidStatus) as refused:
            async with connect(gateway.ws_url.replace("/ws", "/other")):
                pass
        assert refused.value.response.status_code == 404


async def test_malformed_handshake_is_refused(settings: Settings, log: OutputLog) -> None:
    with running_gateway(settings) as gateway:
        for broken in (
            _handshake("/api/v1/ws").replace(b"Version: 13", b"Version: 8"),
            _handshake("/api/v1/ws").replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"short"),
            _handshake("/api/v1/ws").replace(b"GET", b"POST"),
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            writer.write(broken)
            answer = await asyncio.wait_for(reader.read(), 10)
            assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5"))
            writer.close()
            await writer.wait_closed()
        assert len(gateway.inside.wheel) == 0


async def test_flood_of_requests_is_cut_off(settings: Settings, log: OutputLog) -> None:
    """A client that asks without reading neither grows memory nor keeps the gateway busy."""
    with running_gateway(settings) as gateway:
        raw = socket.create_connection(("127.0.0.1", gateway.port))
        raw.sendall(_handshake("/api/v1/ws"))
        raw.settimeout(10)
        raw.recv(4096)
        mask = b"\x00\x00\x00\x00"
        flood = b"".join(b"\x81\x82" + mask + b"{}" for _ in range(20_000))
        try:
            raw.sendall(flood)
            seen = b""
            while b"\x0f\xa0" not in seen:  # close code 4000
                seen = seen[-10:] + raw.recv(65_536)
        except OSError:
            pass  # cut off in the middle of it
        raw.close()
        await wait_until(lambda: len(gateway.inside.wheel) == 0)
        async with reading(gateway, "ws", "poll.p1") as reader:
            await read(reader, 2)


async def test_sixty_four_topics_with_the_longest_names_fit_into_the_url(settings: Settings, log: OutputLog) -> None:
    topics = [f"match.{'m' * 60}{n:04d}.{'x' * 64}" for n in range(64)]
    with running_gateway(settings) as gateway:
        for transport in TRANSPORTS:
            async with reading(gateway, transport, topics) as reader:
                assert len(verdicts(await reader.next())) == 64
                snapshots = await read(reader, 64)
            async with reading(gateway, transport, topics, cursor=snapshots[-1]["id"]) as reader:
                assert set(verdicts(await reader.next()).values()) == {"complete"}


@pytest.mark.parametrize("piece", [1, 2, 5, 7, 1000])
async def test_requests_cut_anywhere_are_understood_and_leave_no_parser_behind(
    settings: Settings, log: OutputLog, piece: int
) -> None:
    """A parser exists only while there is something to parse; it must not go in the middle of a frame."""
    client = Protocol(CLIENT)
    for ref in range(3):
        text = json.dumps({"op": "subscribe", "topics": ["poll.p1"], "ref": ref}).encode()
        client.send_text(text[:9], fin=False)
        client.send_ping(b"between")
        client.send_continuation(text[9:], fin=True)
    data = b"".join(client.data_to_send())
    with running_gateway(settings) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        writer.write(_handshake("/api/v1/ws"))
        await reader.readuntil(b"\r\n\r\n")
        (connection,) = gateway.inside.wheel
        for start in range(0, len(data), piece):
            writer.write(data[start : start + piece])
            await writer.drain()
            if piece < 10:
                await asyncio.sleep(0)
        seen = b""
        async with asyncio.timeout(10):
            while b'"ref":2' not in seen or seen.count(b"between") < 3:
                seen += await reader.read(65_536)
        assert seen.count(b'"event":"subscribed"') == 3
        await wait_until(lambda: gateway.call(lambda: connection._parser is None))  # type: ignore[attr-defined]
        writer.close()
        await writer.wait_closed()


async def test_nothing_follows_a_close_frame_however_much_news_there_is(settings: Settings, log: OutputLog) -> None:
    with running_gateway(settings) as gateway:
        raw = socket.create_connection(("127.0.0.1", gateway.port))
        raw.settimeout(10)
        raw.sendall(
            b"GET /api/v1/ws?topics=match.m1.1 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        received = b""
        while b'"snapshot"' not in received:
            received += raw.recv(4096)
        async with reading(gateway, "sse", "match.m1.1") as other:
            await read(other, 2)
            (socket_here,) = (each for each in gateway.inside.wheel if isinstance(each, WebSocket))
            gateway.call(socket_here.dismiss)
            log.event("m1", "1", 1)
            await read(other, 1)  # it was flushed
        raw.setblocking(False)
        received = raw.recv(65_536)
        assert received.endswith(ws_close(1012, "reconnect now")), received
        raw.close()
