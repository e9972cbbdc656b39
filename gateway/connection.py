"""What a taken-over socket is to the hub: the writing half, shared by event streams and WebSockets.

While the transport's own buffer is empty, whoever has a frame writes it straight to the socket: the hub, to all of its
subscribers at once (`fd`; `gateway.audience`, the hot path), or `write`. What the kernel does not take, and everything
after it, goes through the transport, which keeps the order, until its buffer is empty again.

The transport tells when that is: with a write limit of zero it pauses its protocol as soon as it holds anything. What
the hub calls paused is something else, and counted here: more than the high-water mark. The descriptor is ours until
`connection_lost`, which asyncio and uvloop call before they close it.
"""

import asyncio
import os
import socket
from collections.abc import Sequence
from typing import cast

from gateway.hub import Subscriber
from gateway.service import Service
from gateway.socket_options import tune

LINGER_S = 5.0
"""A connection that was closed with data still unsent is cut after this; until then its buffer is kept."""


class Connection(asyncio.Protocol):
    """A socket taken over from the HTTP server, with its transport's flow control."""

    __slots__ = ("_service", "_socket_fd", "fd", "is_paused", "slot", "transport")

    transport: asyncio.Transport

    def __init__(self, service: Service) -> None:
        self._service = service
        self._socket_fd = -1  # of the socket, while frames may be written to it at all
        self.fd = -1
        self.is_paused = False
        self.slot = 0

    def readers(self) -> Sequence[Subscriber]:
        """The subscribers that this connection is the sink of."""
        raise NotImplementedError

    # -- gateway.hub.Sink

    @property
    def is_closing(self) -> bool:
        """See `gateway.hub.Sink`."""
        return self.transport.is_closing()

    @property
    def unsent(self) -> int:
        """See `gateway.wheel`."""
        return self.transport.get_write_buffer_size()

    def close(self, code: int, reason: str) -> None:
        """See `gateway.hub.Sink`."""
        raise NotImplementedError

    def write(self, data: bytes) -> None:
        """See `gateway.hub.Sink`."""
        if self.fd >= 0:
            try:
                data = data[os.write(self.fd, data) :]
            except (BlockingIOError, InterruptedError):
                pass
            except OSError:
                self.cut()
                return
            if not data:
                return
        transport = self.transport
        if transport.is_closing():
            return
        transport.write(data)  # calls `pause_writing` when it cannot send it now
        if transport.get_write_buffer_size() > self._service.high_water and not self.is_paused:
            self.is_paused = True
            for reader in self.readers():
                self._service.pause(reader)

    def hang_up(self) -> None:
        """Close after what was written, but do not wait for a reader that does not read."""
        self.seal()
        if self.transport.is_closing():
            return
        self.transport.close()
        if self.transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(LINGER_S, self.transport.abort)

    def cut(self) -> None:
        """Close at once; what was not sent is lost."""
        self.seal()
        self.transport.abort()

    def seal(self) -> None:
        """From here on nothing is written past `write`."""
        self._socket_fd = -1
        self._offer(-1)

    def _offer(self, fd: int) -> None:
        if fd != self.fd:
            self.fd = fd
            for reader in self.readers():
                self._service.hub.reroute(reader)

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        sock = cast(socket.socket, transport.get_extra_info("socket"))
        tune(sock, self._service.settings.lag_max_s)
        if transport.get_extra_info("sslcontext") is None:
            self._socket_fd = sock.fileno()
        self.transport.set_write_buffer_limits(high=0)
        if not self.transport.get_write_buffer_size():
            self.fd = self._socket_fd

    def connection_lost(self, exc: Exception | None) -> None:
        self.seal()

    def pause_writing(self) -> None:
        self._offer(-1)

    def resume_writing(self) -> None:
        self._offer(self._socket_fd)
        if self.is_paused:
            self.is_paused = False
            for reader in self.readers():
                self._service.resume(reader)
