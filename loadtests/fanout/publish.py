"""Publishing at an even rate, to any of the servers: what differs is only the bytes of one message.

Answers are counted and not waited for, so a slow answer (an fsync, an HTTP response) delays no later message.
"""

import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import hiredis
import redis

from core import keys
from core.clock import now_us
from core.names import shard_of
from core.position import ZERO, EntryId
from core.updates import Message, Update, encode_update
from loadtests.fanout import message
from loadtests.fanout.message import Variant

SLICE_S = 0.001
"""Shortest sleep: above 1000 messages per second several are sent back to back."""

_SEND_TIMEOUT = struct.pack("ll", 2, 0)  # struct timeval: a server that reads nothing for so long has failed


class Feed(Protocol):
    """A connection to publish on, and how one message looks on it."""

    def connect(self) -> socket.socket:
        """A new connection, ready for frames."""

    def frame(self, number: int, sent_us: int) -> bytes:
        """Bytes that publish message `number`."""


class LogFeed:
    """Into the output log and hot state, in one transaction as the state consumer's apply script does it."""

    def __init__(self, path: str, variant: Variant, shards: int) -> None:
        self._path = path
        self._is_state = variant == "state"
        self._topic = message.STATE_TOPIC if self._is_state else message.EVENT_TOPIC
        self._kind = message.STATE_KIND if self._is_state else message.EVENT_KIND
        self._shard = shard_of(self._topic, shards)
        self._previous = ZERO

    def connect(self) -> socket.socket:
        with redis.Redis(unix_socket_path=self._path) as client:
            newest: Any = client.hget(keys.progress(self._shard), "updates_id") or b"0-0"
            self._previous = EntryId(*map(int, newest.split(b"-")))
        return _unix(self._path)

    def frame(self, number: int, sent_us: int) -> bytes:
        last = self._previous
        ms = max(sent_us // 1000, last.ms)
        entry = EntryId(ms, last.seq + 1 if ms == last.ms else 0)
        data = self._data(number, sent_us)
        update = Update(1, entry, last, sent_us, self._messages(entry, data, sent_us), [])
        self._previous = entry
        state, progress, pack = keys.state(self._shard, self._topic), keys.progress(self._shard), _pack
        return b"".join((
            pack(("MULTI",)),
            pack(("XADD", keys.updates(self._shard), str(entry), "u", encode_update(update))),
            pack(("HSET", progress, "last_id", str(entry), "updates_id", str(entry))),
            pack(("HSET", state, "pos", f"1.{entry.ms}.{entry.seq}", "data", data)),
            pack(("EXEC",)),
        ))  # fmt: skip

    def _data(self, number: int, sent_us: int) -> bytes:
        return message.data(number, sent_us)

    def _messages(self, entry: EntryId, data: bytes, sent_us: int) -> list[Message]:
        return [Message(self._topic, self._kind, self._is_state, entry.ms, entry.seq, 1, data, sent_us, "bench")]


class UnreadFeed(LogFeed):
    """A batch of messages in the shard of the event's topic, each for a topic that nobody reads."""

    BATCH = 500

    def __init__(self, path: str, shards: int) -> None:
        super().__init__(path, "event", shards)

    def _messages(self, entry: EntryId, data: bytes, sent_us: int) -> list[Message]:
        return [
            Message(f"match.unread{k}.1", self._kind, False, entry.ms, entry.seq, k, data, sent_us, "bench")
            for k in range(1, self.BATCH + 1)
        ]


class PubSubFeed:
    """With Redis PUBLISH."""

    CHANNEL = "bench"

    def __init__(self, path: str) -> None:
        self._path = path

    def connect(self) -> socket.socket:
        return _unix(self._path)

    def frame(self, number: int, sent_us: int) -> bytes:
        return _pack(("PUBLISH", self.CHANNEL, message.data(number, sent_us)))


class HttpFeed:
    """With POST requests on one connection kept alive."""

    def __init__(self, port: int, path: str) -> None:
        self._port = port
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {message.DATA_BYTES}\r\n\r\n"
        self._head = head.encode()

    def connect(self) -> socket.socket:
        return _tcp(self._port)

    def frame(self, number: int, sent_us: int) -> bytes:
        return self._head + message.data(number, sent_us)


class FloorFeed:
    """Framed already, with its length in front."""

    def __init__(self, port: int, framed: Callable[[int, bytes], bytes]) -> None:
        self._port = port
        self._framed = framed

    def connect(self) -> socket.socket:
        connection = _tcp(self._port)
        connection.sendall(b"PUB\n")
        time.sleep(0.02)  # so that the server reads it alone
        return connection

    def frame(self, number: int, sent_us: int) -> bytes:
        framed = self._framed(number, message.data(number, sent_us))
        return len(framed).to_bytes(4, "little") + framed


class Publisher(threading.Thread):
    """Sends at `rate` per second until `finish`. A message that is due late is sent late, none is left out."""

    def __init__(self, feed: Feed, rate: float) -> None:
        super().__init__(daemon=True)
        self._feed = feed
        self._rate = rate
        self._ending = threading.Event()
        self.sent = 0
        self.late_ms = 0.0
        """How far behind its schedule it is, or was when it ended."""
        self.cpu_s = 0.0
        self.error: Exception | None = None

    def run(self) -> None:
        """Thread body."""
        try:
            with self._feed.connect() as connection:
                self._send(connection)
        except OSError as error:
            self.error = error

    def _send(self, connection: socket.socket) -> None:
        connection.settimeout(None)  # with one, Python waits for answers even where MSG_DONTWAIT is asked for
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIMEOUT)
        started, gap = time.monotonic(), 1 / self._rate
        number = 0
        while not self._ending.is_set():
            ahead = started + number * gap - time.monotonic()
            if ahead > 0:
                time.sleep(max(ahead, SLICE_S) if self._rate > 1 / SLICE_S else ahead)
                continue
            connection.sendall(self._feed.frame(number, now_us()))
            number += 1
            self.sent = number
            if number % 16 == 0 or gap > SLICE_S:
                self.late_ms, self.cpu_s = -ahead * 1000, time.thread_time()
                _discard(connection)

    def finish(self) -> None:
        """Stop sending. Raises OSError when the server broke the connection."""
        self._ending.set()
        self.join(5.0)
        if self.error is not None:
            raise self.error


def _pack(words: tuple[str | bytes, ...]) -> bytes:
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # declared as of one word
    return packed


def _discard(connection: socket.socket) -> None:
    try:
        while answer := connection.recv(65_536, socket.MSG_DONTWAIT):
            if b"-ERR" in answer or b"-EXECABORT" in answer or b"HTTP/1.1 4" in answer or b"HTTP/1.1 5" in answer:
                raise OSError(f"publishing was refused: {answer[:200]!r}")
    except BlockingIOError:
        pass


def _unix(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    return connection


def _tcp(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=2.0)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection
