"""Streams as bytes, from the reader's side."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import CloseCode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from core.position import Position
from loadtests.wire import Message, SseStream, StreamRefused, WebSocketStream, parse_vector

URL = "http://127.0.0.1:8080"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
FRAMES = (
    b'retry: 2000\nevent: welcome\ndata: {"session":"s","topics":{"poll.p":{"resume":"snapshot"}}}\n\n'
    b'id: 1~f~0.1.7.0.65535\nevent: snapshot\ndata: {"topic":"poll.p","poll_id":"p","applied":3,"digest":"aa"}\n\n'
    b": a comment\n\n"
    b'id: 1~f~0.1.9.2.1\nevent: round_end\ndata: {"topic":"match.m.0","event_id":"e1"}\n\n'
)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def chunked(data: bytes, size: int) -> bytes:
    parts = [data[start : start + size] for start in range(0, len(data), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


def check(messages: list[Message]) -> None:
    assert [message.kind for message in messages] == ["welcome", "snapshot", "round_end"]
    assert (messages[1].topic, messages[1].poll_id, messages[1].applied, messages[1].digest) == ("poll.p", "p", 3, "aa")
    assert messages[2].event_id == "e1"
    assert messages[2].vector == ((0, Position(1, 9, 2, 1)),)


@given(st.lists(st.integers(min_value=0), max_size=12))
def test_messages_do_not_depend_on_how_the_bytes_are_cut(cuts: list[int]) -> None:
    stream = SseStream(URL, ("poll.p",))
    check([message for piece in split(HEAD + FRAMES, cuts) for message in stream.feed(piece)])


@given(st.lists(st.integers(min_value=0), max_size=12), st.integers(min_value=1, max_value=300))
def test_chunked_responses_are_read_likewise(cuts: list[int], size: int) -> None:
    data = HEAD.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n") + chunked(FRAMES, size)
    stream = SseStream(URL, ("poll.p",))
    check([message for piece in split(data, cuts) for message in stream.feed(piece)])


def test_anything_but_a_stream_is_refused() -> None:
    with pytest.raises(StreamRefused, match="503"):
        SseStream(URL, ("poll.p",)).feed(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")


def test_a_cursor_goes_where_event_source_puts_it() -> None:
    request = SseStream(URL, ("poll.p", "match.m.*"), "1~f~0.1.2.3.4").request()
    assert request.startswith(b"GET /api/v1/stream?topics=poll.p,match.m.* HTTP/1.1\r\n")
    assert b"\r\nLast-Event-ID: 1~f~0.1.2.3.4\r\n" in request


def test_vector_of_a_cursor_with_several_shards() -> None:
    assert parse_vector("1~f~0.1.2.3.4~3.2.1.0.65535") == ((0, Position(1, 2, 3, 4)), (3, Position(2, 1, 0, 65535)))
    assert parse_vector("") == ()


def served(stream: WebSocketStream) -> ServerProtocol:
    """A server that has answered the handshake of `stream`."""
    server = ServerProtocol()
    server.receive_data(stream.request())
    (request,) = server.events_received()
    assert isinstance(request, Request)
    server.send_response(server.accept(request))
    return server


def test_websocket_messages_hold_one_or_more_objects() -> None:
    stream = WebSocketStream(URL, ("poll.p",), "1~f~0.1.1.1.1")
    server = served(stream)
    server.send_text(b'{"event":"welcome","data":{"topics":{}}}')
    tally = b'{"event":"tally","topic":"poll.p","id":"1~f~0.1.%d.0.1","data":{"poll_id":"p","applied":%d}}'
    server.send_text(tally % (5, 1) + b"\n" + tally % (6, 2))
    messages = stream.feed(b"".join(server.data_to_send()))
    assert [(message.kind, message.applied) for message in messages] == [("welcome", -1), ("tally", 1), ("tally", 2)]


def test_websocket_pings_are_answered() -> None:
    stream = WebSocketStream(URL, ("poll.p",))
    server = served(stream)
    server.send_ping(b"x")
    assert stream.feed(b"".join(server.data_to_send())) == []
    server.receive_data(stream.outgoing())
    (pong,) = server.events_received()
    assert pong.data == b"x"  # type: ignore[union-attr]


def test_websocket_handshake_that_is_rejected_is_refused() -> None:
    stream = WebSocketStream(URL, ("poll.p",))
    server = ServerProtocol()
    server.receive_data(stream.request())
    server.send_response(server.reject(503, "later"))
    with pytest.raises(StreamRefused, match="503"):
        stream.feed(b"".join(server.data_to_send()))


def test_websocket_close_is_answered() -> None:
    stream = WebSocketStream(URL, ("poll.p",))
    server = served(stream)
    server.send_close(CloseCode.SERVICE_RESTART)
    stream.feed(b"".join(server.data_to_send()))
    assert stream.outgoing()
