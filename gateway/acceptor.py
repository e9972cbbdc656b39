"""Letting connections in a few at a time, so that a crowd at the door does not keep those inside from their messages.

uvloop gives every connection that waits its transport, in one turn of its loop; parsing and joining of all of them
follow in the next turns, each as one block. Here they are taken from the kernel at once, because its queue is short
(net.core.somaxconn) and whom it turns away tries again only after seconds, but they wait as bare sockets: next to no
work, no timeout of ours running. Measured with 5,000 readers in a second, see `loadtests.fanout.storm`.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable

from core import logs
from core.metrics import LOOP_ERRORS

ACCEPTED_AT_ONCE = 64
"""Per turn of the loop: some 10 us each."""

LET_IN_AT_ONCE = 4
"""Per turn of the loop: some 0.3 ms each until they are readers."""

PAUSE_S = 1.0
"""When it fails, nearly always because there are no descriptors left: the listener stays readable meanwhile."""


class Acceptor:
    """Takes connections from a listening socket; to be closed like an `asyncio.Server`, which leaves them alone."""

    def __init__(
        self, listener: socket.socket, protocol: Callable[[], asyncio.Protocol], is_crowded: Callable[[], bool]
    ) -> None:
        """`protocol`: makes one for each connection. `is_crowded`: whether those inside are so many that nobody else
        should come in before the next turn of the loop."""
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._protocol = protocol
        self._is_crowded = is_crowded
        self._fd = listener.fileno()
        self._waiting: deque[socket.socket] = deque()
        self._starting: set[asyncio.Task[object]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._log = logs.get()
        listener.setblocking(False)
        self._loop.add_reader(self._fd, self._accept)

    def close(self) -> None:
        """Accept no more; who is accepted is let in, to be told whatever there is to tell. Harmless a second time."""
        if self._pause is not None:
            self._pause.cancel()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._fd = -1
        while self._waiting:
            self._let_in()

    async def wait_closed(self) -> None:
        """What was accepted has its protocol."""
        await asyncio.gather(*self._starting, return_exceptions=True)

    def _accept(self) -> None:
        was_waiting = bool(self._waiting)
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                self._waiting.append(self._listener.accept()[0])
            except (BlockingIOError, InterruptedError):
                break
            except ConnectionAbortedError:
                continue
            except OSError as error:
                LOOP_ERRORS.labels("accept").inc()
                self._log.error("cannot accept connections", error=str(error), again_in_s=PAUSE_S)
                self._loop.remove_reader(self._fd)
                self._pause = self._loop.call_later(PAUSE_S, self._loop.add_reader, self._fd, self._accept)
                break
        if not was_waiting:
            self._let_some_in()

    def _let_some_in(self) -> None:
        if not self._is_crowded():
            for _ in range(min(LET_IN_AT_ONCE, len(self._waiting))):
                self._let_in()
        if self._waiting:
            self._loop.call_soon(self._let_some_in)

    def _let_in(self) -> None:
        connection = self._waiting.popleft()
        task: asyncio.Task[object] = self._loop.create_task(
            self._loop.connect_accepted_socket(self._protocol, connection)
        )
        self._starting.add(task)
        task.add_done_callback(self._is_in)

    def _is_in(self, task: asyncio.Task[object]) -> None:
        self._starting.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            LOOP_ERRORS.labels("accept").inc()
            self._log.warning("connection lost at the door", error=str(error))
