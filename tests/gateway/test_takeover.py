"""Taking connections over from uvicorn: what we lean on is there, and nothing is left when a client goes."""

import socket

import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from tests.gateway.server import Gateway
from tests.support.waiting import wait_until_sync

STREAM = b"GET /api/v1/stream?topics=poll.x HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (
            HttpToolsProtocol,
            ("on_message_begin", "on_headers_complete", "on_message_complete", "data_received", "connection_lost",
             "send_400_response", "handle_websocket_upgrade", "_unset_keepalive_if_required"),
        ),
        (FlowControl, ("resume_reading", "resume_writing")),
        (RequestResponseCycle, ("send", "receive", "run_asgi")),
    ],
)  # fmt: skip
def test_uvicorn_has_the_methods_we_lean_on(owner: type, names: tuple[str, ...]) -> None:
    assert [name for name in names if not callable(getattr(owner, name, None))] == []


def connections(gateway: Gateway) -> int:
    return gateway.call(lambda: len(gateway.inside.wheel))


@pytest.mark.parametrize(
    "sent",
    [STREAM, STREAM + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", STREAM * 3, STREAM + b"GET /healthz HT"],
    ids=["alone", "pipelined request", "pipelined streams", "half a request behind"],
)
def test_a_client_that_leaves_is_forgotten(gateway: Gateway, sent: bytes) -> None:
    sockets = []
    for _ in range(10):
        client = socket.create_connection(("127.0.0.1", gateway.port))
        client.sendall(sent)
        sockets.append(client)
    for client in sockets:
        client.settimeout(5)
        assert b"text/event-stream" in client.recv(4096)
    assert connections(gateway) >= 10
    for client in sockets:
        client.close()
    wait_until_sync(lambda: connections(gateway) == 0, 10, "nobody is left")


def test_a_reset_while_the_stream_begins_leaves_nothing(gateway: Gateway) -> None:
    for _ in range(20):
        client = socket.create_connection(("127.0.0.1", gateway.port))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        client.sendall(STREAM)
        client.close()
    wait_until_sync(lambda: gateway.call(lambda: _is_empty(gateway)), 10, "nobody and no channel is left")


def _is_empty(gateway: Gateway) -> bool:
    return not len(gateway.inside.wheel) and not gateway.inside.hub._interned
