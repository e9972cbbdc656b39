"""Compression whose bytes are shared: pure parts, negotiation, bombs, and parts of the contract once more over it."""

import asyncio
import gzip
import json
import zlib
from contextlib import AsyncExitStack

import httpx
import msgspec
import pytest
import websockets.asyncio.client
from hypothesis import given
from hypothesis import strategies as st
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.server import ServerProtocol

from core.settings import Settings
from gateway import compression
from gateway.compression import GZIP_HEAD, MIN_BYTES, Inflater, Negotiator, accepts_gzip, block, message
from gateway.frames import GZIPPED, control
from tests.gateway.output_log import OutputLog
from tests.gateway.readers import Transport, _Ws, read, reading
from tests.gateway.server import Gateway, Kind, running_gateway

# Once more, with the settings of this module.
from tests.gateway.test_contract import (  # noqa: F401
    test_heartbeat_moves_the_cursor_over_what_was_not_for_us,
    test_snapshot_then_live_without_gap_or_repeat,
    test_stream_ends_with_bye_when_the_gateway_drains,
    test_types_filter_events_but_not_states,
    test_what_was_missed_comes_complete_and_then_live,
)
from tests.support.waiting import wait_until_sync

connect = websockets.asyncio.client.connect
repeated = st.builds(lambda part, times: part * times, st.binary(min_size=1, max_size=20), st.integers(1, 9000))
frames_of_a_stream = st.lists(st.binary(max_size=600) | repeated, min_size=1, max_size=6)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Every gateway here compresses."""
    return msgspec.structs.replace(settings, compression="on")


# -- pure


@given(frames_of_a_stream, st.integers(0, 5))
def test_every_block_is_complete_on_arrival_and_needs_none_before_it(parts: list[bytes], missed: int) -> None:
    reader = zlib.decompressobj(31)
    reader.decompress(GZIP_HEAD)
    assert [reader.decompress(block(part)) for part in parts] == parts
    latecomer = zlib.decompressobj(31)  # gets the same bytes as everybody, from its own first frame on
    latecomer.decompress(GZIP_HEAD)
    late = parts[min(missed, len(parts) - 1) :]
    assert [latecomer.decompress(block(part)) for part in late] == late


@given(st.binary(max_size=MIN_BYTES * 3) | st.text(min_size=MIN_BYTES, max_size=5000).map(str.encode))
def test_compressed_message_is_what_a_client_of_its_own_inflates(data: bytes) -> None:
    packed = message(data)
    if packed is None:
        assert len(data) < MIN_BYTES or len(zlib.compress(data, 1)) > len(data) - 20
        return
    assert len(packed) < len(data)
    assert Inflater().decode(Frame(Opcode.TEXT, packed, rsv1=True), max_size=len(data)).data == data


def test_incompressible_data_grows_by_five_bytes_a_block_at_most() -> None:
    noise = b"".join(zlib.crc32(n.to_bytes(4, "big")).to_bytes(4, "big") for n in range(40_000))
    assert len(block(noise)) <= len(noise) + 5 * (len(noise) // 65_535 + 1)
    assert message(noise) is None


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("gzip", True), ("gzip, deflate, br", True), ("br;q=1.0, gzip;q=0.8, *;q=0.1", True), ("*", True),
        ("x-gzip", True), ("GZIP", True), ("", False), ("br", False), ("gzip;q=0", False), ("gzip;q=0.0, *", False),
        ("*;q=0", False), ("identity", False), ("gzip;q=nonsense", False), ("gzip; q=0.5", True), ("notgzip", False),
    ],
)  # fmt: skip
def test_accept_encoding(header: str, accepted: bool) -> None:
    assert accepts_gzip(header) is accepted


@pytest.mark.parametrize(
    ("offer", "answer"),
    [
        ("permessage-deflate", "permessage-deflate; server_no_context_takeover; client_no_context_takeover"),
        (
            "permessage-deflate; client_max_window_bits",
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
        ),
        (
            "permessage-deflate; client_max_window_bits=10; server_no_context_takeover",
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover; client_max_window_bits=10",
        ),
        (
            "permessage-deflate; server_max_window_bits=14",
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=14",
        ),
        ("permessage-deflate; server_max_window_bits=10", None),  # our frames reach back further
        (
            "permessage-deflate; server_max_window_bits=10, permessage-deflate",
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
        ),
        (
            "permessage-deflate, permessage-deflate; client_max_window_bits",
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
        ),
        ("permessage-deflate; unknown_parameter", None),
        ("permessage-deflate; server_max_window_bits=99", None),
        ("permessage-bzip2", None),
    ],
)
def test_offers_of_permessage_deflate(offer: str, answer: str | None) -> None:
    headers = Headers({"Sec-WebSocket-Extensions": offer})
    assert ServerProtocol(extensions=[Negotiator()]).process_extensions(headers)[0] == answer


def test_heartbeat_is_not_worth_compressing() -> None:
    beat = control("ws", "heartbeat", {"topics": ["poll.p1"]}, cursor=b"1~0123456789abcdef~1.1764197000123.1.255")
    assert len(beat) < MIN_BYTES
    assert control("ws-deflate", "heartbeat", {}) == control("ws", "heartbeat", {})
    assert block(beat)[5:] == beat


# -- a running gateway


@pytest.mark.redis
async def test_frames_are_compressed_once_for_all_readers(
    settings: Settings, log: OutputLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[int] = []
    deflate = compression._deflate

    def counted(data: bytes) -> bytes:
        packed.append(len(data))
        return deflate(data)

    monkeypatch.setattr(compression, "_deflate", counted)
    log.tally("p1", 1)
    with running_gateway(settings) as gateway:
        async with AsyncExitStack() as stack:
            transports: list[Transport] = ["sse", "ws"] * 3
            readers = [await stack.enter_async_context(reading(gateway, each, "poll.p1")) for each in transports]
            for reader in readers:
                await read(reader, 2)
            packed.clear()
            log.tally("p1", 2, note="x" * 300)
            for reader in readers:
                assert (await read(reader, 1))[0]["data"]["total"] == 2
            assert len(packed) == 2, "one for the event streams, one for the WebSockets"


@pytest.mark.redis
async def test_encoding_is_what_the_client_offers(gateway: Gateway, log: OutputLog, sink: Kind) -> None:
    log.tally("p1", 1)
    path = "/api/v1/stream?topics=poll.p1"
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        for offered, encoding in (("gzip", "gzip"), ("identity", None), ("br", None), ("gzip;q=0", None)):
            async with client.stream("GET", path, headers={"Accept-Encoding": offered}) as answer:
                assert answer.headers.get("content-encoding") == encoding, offered
                assert answer.headers["vary"] == "accept-encoding"
                async for line in answer.aiter_lines():
                    if line.startswith("event: snapshot"):
                        break
    async with (
        connect(gateway.ws_url + "?topics=poll.p1", compression=None) as plain,
        connect(gateway.ws_url + "?topics=poll.p1") as packed,
    ):
        assert not plain.protocol.extensions
        assert [extension.name for extension in packed.protocol.extensions] == ["permessage-deflate"]
        if sink == "takeover":
            assert packed.response is not None
            answer_header = packed.response.headers["Sec-WebSocket-Extensions"]
            assert "server_no_context_takeover" in answer_header
        messages = [await read(_Ws(each), 2) for each in (plain, packed)]
        assert messages[0][1] == messages[1][1]


@pytest.mark.redis
async def test_off_by_default(settings: Settings, log: OutputLog) -> None:
    with running_gateway(settings, compression="off") as gateway:
        async with connect(gateway.ws_url) as socket, httpx.AsyncClient(base_url=gateway.url) as client:
            assert not socket.protocol.extensions
            async with client.stream("GET", "/api/v1/stream?topics=poll.p1") as answer:
                assert "content-encoding" not in answer.headers
            assert "content-encoding" not in (await client.get("/openapi.json")).headers
    assert Settings().compression == "off"


@pytest.mark.redis
async def test_large_rest_answers_are_compressed(gateway: Gateway, log: OutputLog) -> None:
    log.tally("p1", 1)
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        large = await client.get("/openapi.json")
        assert large.headers["content-encoding"] == "gzip"
        assert "content-encoding" not in (await client.get("/api/v1/polls/p1")).headers
        assert "content-encoding" not in (await client.get("/openapi.json", headers={"Accept-Encoding": "br"})).headers
        assert large.json()["openapi"]


def bomb(size: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (packer.compress(b" " * size) + packer.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\x00\x00\xff\xff")


async def exhaust(socket: websockets.asyncio.client.ClientConnection) -> None:
    while True:
        await socket.recv()


@pytest.mark.redis
@pytest.mark.parametrize("pieces", [1, 5])
async def test_bomb_is_refused_and_its_content_never_exists(settings: Settings, log: OutputLog, pieces: int) -> None:
    data = bomb(50_000_000)
    step = -(-len(data) // pieces)
    with running_gateway(settings) as gateway:
        async with connect(gateway.ws_url + "?topics=poll.p1") as socket:
            await socket.recv()
            for start in range(0, len(data), step):
                opcode = Opcode.CONT if start else Opcode.TEXT
                fin = start + step >= len(data)
                wire = bytearray(Frame(opcode, data[start : start + step], fin).serialize(mask=True))
                wire[0] |= 0 if start else 0x40  # RSV1
                socket.transport.write(wire)
            with pytest.raises(ConnectionClosed) as caught:
                await asyncio.wait_for(exhaust(socket), 10)
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1009


@pytest.mark.redis
async def test_compressed_requests_are_understood_and_leave_no_parser_behind(
    settings: Settings, log: OutputLog
) -> None:
    log.tally("p1", 1)
    with running_gateway(settings) as gateway:
        async with connect(gateway.ws_url) as socket:
            talk = _Ws(socket)
            await talk.next()
            topics = [f"poll.{'p' * 40}{n}" for n in range(40)]
            await socket.send(json.dumps({"op": "subscribe", "topics": topics, "ref": 1}))
            assert (await talk.next())["ref"] == 1
            request = json.dumps({"op": "unsubscribe", "topics": topics})
            await socket.send([request[:9], request[9:]])  # in two fragments
            while (answer := await talk.next())["event"] != "unsubscribed":
                pass
            assert len(answer["data"]["topics"]) == 40
            (connection,) = list(gateway.inside.wheel)
            wait_until_sync(lambda: connection._parser is None, 5.0, "nothing is left to parse")  # type: ignore[attr-defined]


@pytest.mark.redis
async def test_event_stream_is_a_gzip_stream_by_the_letter(settings: Settings, log: OutputLog) -> None:
    """As `gzip -dc` sees it: every byte inflates, and only the end of an endless stream is missing."""
    log.tally("p1", 1, note="x" * 1000)
    with running_gateway(settings) as gateway:
        async with httpx.AsyncClient(base_url=gateway.url) as client:
            raw = b""
            async with client.stream(
                "GET", "/api/v1/stream?topics=poll.p1", headers={"Accept-Encoding": "gzip"}
            ) as answer:
                async for part in answer.aiter_raw():
                    raw += part
                    if b"event: snapshot" in zlib.decompressobj(31).decompress(raw):
                        break
    text = zlib.decompressobj(31).decompress(raw)
    assert len(raw) < len(text) - 700
    assert text.endswith(b"\n\n")
    # With the end that never comes it would be a whole file.
    ended = raw + b"\x03\x00" + zlib.crc32(text).to_bytes(4, "little") + len(text).to_bytes(4, "little")
    assert gzip.decompress(ended) == text


def test_every_event_stream_has_a_compressed_form() -> None:
    assert set(GZIPPED) == {"sse", "envelope"}
