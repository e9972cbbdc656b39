"""Framing: the same message on every wire, and nothing that could forge a line."""

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Close
from websockets.protocol import CLIENT, Protocol

from core.errors import Poison
from core.position import Position
from gateway import frames
from gateway.frames import WS_MESSAGE_MAX, Item, Wire

CURSOR = b"1~abc~0.1.2.3.4"
PLACE = Position(1, 2, 3, 4)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
json_objects = st.dictionaries(st.text().filter(lambda key: key != "topic"), json_values, max_size=4)


def item(data: bytes, kind: str = "tally", topic: str = "poll.p1") -> Item:
    return Item(0, PLACE, topic, kind, data, is_state=True)


def events(stream: bytes) -> list[dict[str, str]]:
    """Parse an event stream by the letter of the HTML standard, its line ends included."""
    text = stream.decode().replace("\r\n", "\n").replace("\r", "\n")
    return [
        {name: value.removeprefix(" ") for name, _, value in (line.partition(":") for line in block.split("\n"))}
        for block in text.split("\n\n")
        if block
    ]


@given(json_objects)
def test_every_wire_carries_the_same_message(data: dict[str, object]) -> None:
    raw = json.dumps(data, ensure_ascii=False).encode("utf-8", "surrogatepass")
    try:
        raw.decode()
    except UnicodeDecodeError:
        return  # lone surrogates never get past ingest
    one = item(raw)
    expected = {"event": "tally", "topic": "poll.p1", "id": CURSOR.decode(), "data": data}
    for wire in ("ws", "text", "poll"):
        assert json.loads(frames.encoders[wire](one, CURSOR)) == expected
    (sse,) = events(frames.encoders["sse"](one, CURSOR))
    assert (sse["id"], sse["event"]) == (CURSOR.decode(), "tally")
    assert json.loads(sse["data"]) == {"topic": "poll.p1", **data}
    assert next(iter(json.loads(sse["data"]))) == "topic"
    (envelope,) = events(frames.encoders["envelope"](one, CURSOR))
    assert "event" not in envelope
    assert json.loads(envelope["data"]) == expected


@pytest.mark.parametrize("raw", [b'{\n "a":\r\n 1\r}', b"{ }", b"{}", b'{"a":"\\n"}'])
@pytest.mark.parametrize("wire", ["sse", "envelope", "text"])
def test_line_breaks_between_json_tokens_do_not_end_a_line(raw: bytes, wire: Wire) -> None:
    encoded = frames.encoders[wire](item(raw), CURSOR)
    if wire == "text":
        assert b"\n" not in encoded
        assert json.loads(encoded)["data"] == json.loads(raw)
    else:
        assert len(events(encoded)) == 1


@pytest.mark.parametrize("bad", ["a\nevent: x", "a\rb", "", 'a"b', "a b", "a\x00"])
def test_kind_or_topic_that_could_forge_a_line_is_refused(bad: str) -> None:
    with pytest.raises(Poison):
        item(b"{}", kind=bad)
    with pytest.raises(Poison):
        item(b"{}", topic=bad)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 100_000])
def test_text_frame_is_what_a_websocket_client_reads(size: int) -> None:
    client = Protocol(CLIENT)
    client.receive_data(frames.ws_text(b"x" * size))
    (frame,) = client.events_received()
    assert bytes(frame.data) == b"x" * size  # type: ignore[union-attr]


def test_many_messages_are_split_into_frames_clients_accept() -> None:
    one = item(b'{"pad":"%b"}' % (b"x" * 50_000))
    joined = frames.joiners["ws"]([frames.encoders["ws"](one, CURSOR)] * 20)
    client = Protocol(CLIENT, max_size=1024 * 1024)
    client.receive_data(joined)
    received = [bytes(frame.data) for frame in client.events_received()]  # type: ignore[union-attr]
    assert sum(part.count(b"\n") + 1 for part in received) == 20
    assert all(len(part) <= WS_MESSAGE_MAX for part in received)
    assert len(received) > 1


def test_close_frame_keeps_to_the_limit_of_a_control_frame() -> None:
    raw = frames.ws_close(4008, "é" * 200)
    assert raw[1] <= 125
    assert Close.parse(raw[2:]).code == 4008
    assert struct.unpack("!H", raw[2:4]) == (4008,)


@pytest.mark.parametrize("wire", ["sse", "envelope", "ws", "text"])
def test_control_messages_have_the_same_shape_everywhere(wire: Wire) -> None:
    raw = frames.control(wire, "heartbeat", {"topics": ["poll.p1"]}, cursor=CURSOR, retry_ms=1500)
    if wire in ("ws", "text"):
        body = json.loads(raw[2:] if wire == "ws" else raw)
        assert body == {"event": "heartbeat", "id": CURSOR.decode(), "data": {"topics": ["poll.p1"]}}
        return
    (event,) = events(raw)
    assert (event["retry"], event["id"]) == ("1500", CURSOR.decode())
    body = json.loads(event["data"])
    assert (body if wire == "sse" else body["data"]) == {"topics": ["poll.p1"]}


def test_frame_parts_are_built_once() -> None:
    one = item(b'{"a":1}')
    assert one.sse is one.sse
    assert one.object is one.object
