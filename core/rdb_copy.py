"""A copy of everything in a Redis as of one moment, over its own replication protocol: works wherever the server is.

The server forks and sends a snapshot (RDB), as to a new replica, and the connection is closed: what was written before
the fork is in it, nothing that came later. Needs the right to `SYNC`; blocking, for a thread.

A server without replicas takes a new replication id when the first one asks, which looks like another incarnation to
`core.epochs`. As long as its run id is the same nothing was rolled back, so the epoch's record follows (`keep_epoch`).
"""

import os
import socket
import ssl
from pathlib import Path
from typing import Any, BinaryIO

from redis.connection import SSLConnection, parse_url

from core.errors import Fatal, Retry

TIMEOUT_S = 60.0
"""Between two pieces of the answer. The server sends newlines while it prepares it."""

_CHUNK = 1 << 18
_MARK_BYTES = 40


def copy_rdb(url: str, path: Path) -> int:
    """Write the snapshot to a new file, durably; its size. Raises Retry when the server goes away, Fatal when it
    refuses."""
    try:
        with _connected(url) as connection, path.open("xb") as file:
            size = _receive(connection, file)
            file.flush()
            os.fsync(file.fileno())
            return size
    except OSError as error:
        raise Retry(f"Redis: no snapshot: {error}") from error


def _connected(url: str) -> socket.socket:
    target: dict[str, Any] = dict(parse_url(url))  # type: ignore[no-untyped-call]
    if "path" in target:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(TIMEOUT_S)
        connection.connect(target["path"])
    else:
        host = target.get("host", "localhost")
        connection = socket.create_connection((host, int(target.get("port", 6379))), TIMEOUT_S)
        if target.get("connection_class") is SSLConnection:
            context = ssl.create_default_context(cafile=target.get("ssl_ca_certs"))
            connection = context.wrap_socket(connection, server_hostname=host)
    if password := target.get("password"):
        _ask(connection, "AUTH", *filter(None, (target.get("username"), password)))
    for words in (("REPLCONF", "rdb-only", "1"), ("REPLCONF", "capa", "eof")):
        try:
            _ask(connection, *words)
        except Fatal:  # an older server knows neither, and sends the snapshot all the same
            continue
    return connection


def _ask(connection: socket.socket, *words: str) -> None:
    _send(connection, *words)
    line = _line(connection, b"")[0]
    if not line.startswith(b"+"):
        raise Fatal(f"Redis refuses {words[0]}: {line[:80].decode(errors='replace')}")


def _send(connection: socket.socket, *words: str) -> None:
    parts = [word.encode() for word in words]
    connection.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))


def _line(connection: socket.socket, rest: bytes) -> tuple[bytes, bytes]:
    """The next line that is not empty, and what came behind it."""
    while True:
        rest = rest.lstrip(b"\r\n")
        line, end, behind = rest.partition(b"\r\n")
        if end:
            return line, behind
        rest += _more(connection)


def _more(connection: socket.socket) -> bytes:
    data = connection.recv(_CHUNK)
    if not data:
        raise ConnectionError("the connection was closed")
    return data


def _receive(connection: socket.socket, file: BinaryIO) -> int:
    """The snapshot: of a length given beforehand, or up to a mark given beforehand."""
    _send(connection, "SYNC")
    head, rest = _line(connection, b"")
    if not head.startswith(b"$"):
        raise Fatal(f"Redis refuses a snapshot: {head[:80].decode(errors='replace')}")
    if not head.startswith(b"$EOF:"):
        length = int(head[1:])
        size = 0
        while size < length:
            rest = rest or _more(connection)
            size += file.write(rest[: length - size])
            rest = b""
        return size
    mark = head[5 : 5 + _MARK_BYTES]
    size = 0
    while not rest.endswith(mark):
        keep = max(0, len(rest) - _MARK_BYTES)
        size += file.write(rest[:keep])
        rest = rest[keep:] + _more(connection)
    return size + file.write(rest[:-_MARK_BYTES])
