"""A TCP proxy on loopback that lets through so many bytes a second: a slow network, or a server that reads slowly."""

import socket
import threading
import time
from contextlib import suppress
from types import TracebackType

_PIECE_BYTES = 4096


class SlowLink:
    """Forwards connections to a port of this machine; the way there is slow, the way back is not."""

    def __init__(self, to_port: int, bytes_per_second: int) -> None:
        self._to_port = to_port
        self._bytes_per_second = bytes_per_second
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._listener]
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listener.getsockname()[1])

    def __enter__(self) -> "SlowLink":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._thread.join(5.0)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to_port), 5.0)
            except OSError:
                return
            far.settimeout(None)
            self._open += [near, far]
            for source, target, rate in ((near, far, self._bytes_per_second), (far, near, 0)):
                threading.Thread(target=_forward, args=(source, target, rate), daemon=True).start()


def _forward(source: socket.socket, target: socket.socket, bytes_per_second: int) -> None:
    try:
        while piece := source.recv(_PIECE_BYTES):
            if bytes_per_second:
                time.sleep(len(piece) / bytes_per_second)
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, target):
            end.close()
