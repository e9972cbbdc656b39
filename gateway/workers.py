"""Several processes on one port: `arenacast gateway --workers N`.

The parent opens one listening socket per worker on the same port and keeps them: the kernel spreads connections over
them evenly (one socket shared by all would give a whole crowd to whoever wakes up first), and connections that wait
to be accepted survive the restart of their worker. Where the kernel does not spread (not Linux), all workers share one
socket. Each worker has its own hub and reads the shards its own readers need, each once.

A worker that dies is restarted; when the parent dies, even by kill -9, the workers drain and end. Counters are shared
through prometheus' multiprocess files: any worker's `/metrics` shows the sum over all.
"""

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess

from prometheus_client.multiprocess import mark_process_dead

from core import logs
from core.errors import Fatal
from core.settings import Settings

Work = Callable[[Settings, socket.socket], None]
"""What a worker process does with the listening socket; it returns when the worker was asked to end. Importable."""

BACKLOG = 4096
"""Connections waiting to be accepted: a crowd comes back at once after a gateway died."""

BACKOFF_S, BACKOFF_MAX_S = 0.2, 5.0
STEADY_S = 10.0
"""A worker that ran this long starts its back-off anew."""

FATAL_EXIT = 78
"""Exit code of a worker for which a restart is of no use (EX_CONFIG)."""

STOP_EXTRA_S = 10.0


def run_workers(settings: Settings, count: int, listener: socket.socket, work: Work) -> None:
    """Run `count` workers until SIGTERM or SIGINT. Raises Fatal when a worker says that it can never work.

    `listener` holds the address until here; it is closed when the workers can have sockets of their own.
    """
    listeners = _spread(listener, count)
    try:
        with tempfile.TemporaryDirectory(prefix="arenacast-metrics-") as directory:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory  # read by prometheus_client when a worker imports it
            _Supervisor(settings, listeners, work, directory).run()
    finally:
        for one in listeners:
            one.close()


def _spread(listener: socket.socket, count: int) -> list[socket.socket]:
    if sys.platform != "linux":
        return [listener] * count
    # First without SO_REUSEPORT (by the caller), then with: or a second gateway would share the port in silence.
    family, address = listener.family, listener.getsockname()
    listener.close()
    listeners: list[socket.socket] = []
    for _ in range(count):
        one = socket.socket(family)
        listeners.append(one)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            one.bind(address)
        except OSError as error:
            raise Fatal(
                f"ARENACAST_GATEWAY_PORT: cannot listen on {address[0]}:{address[1]}: {error.strerror}"
            ) from error
        one.listen(BACKLOG)
    return listeners


class _Supervisor:
    def __init__(self, settings: Settings, listeners: list[socket.socket], work: Work, metrics_directory: str) -> None:
        self._settings = settings
        self._listeners = listeners
        self._work = work
        self._metrics_directory = metrics_directory
        self._context = multiprocessing.get_context("spawn")  # no half-copied event loop, and its own metrics files
        self._slots: list[SpawnProcess | None] = [None] * len(listeners)
        self._started_at = [0.0] * len(listeners)
        self._backoff_s = [BACKOFF_S] * len(listeners)
        self._wake, self._waker = self._context.Pipe(duplex=False)
        self._stopping = threading.Event()
        self._log = logs.get()

    def run(self) -> None:
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            for slot in range(len(self._slots)):
                self._start(slot)
            while not self._stopping.is_set():
                self._wait(None)
                for slot, process in enumerate(self._slots):
                    if process is not None and not process.is_alive() and not self._stopping.is_set():
                        self._replace(slot, process)
        finally:
            self._end()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._stopping.set()
        self._waker.send_bytes(b".")

    def _wait(self, timeout_s: float | None) -> None:
        wait([self._wake, *(process.sentinel for process in self._slots if process is not None)], timeout_s)

    def _start(self, slot: int) -> None:
        process = self._context.Process(
            target=_worker, args=(self._work, self._settings, self._listeners[slot]), name=f"gateway-{slot}"
        )
        process.start()
        self._slots[slot] = process
        self._started_at[slot] = time.monotonic()

    def _replace(self, slot: int, process: SpawnProcess) -> None:
        self._bury(process)
        self._slots[slot] = None
        if process.exitcode == FATAL_EXIT:
            raise Fatal("a gateway worker cannot work, its reason is above")
        if time.monotonic() - self._started_at[slot] > STEADY_S:
            self._backoff_s[slot] = BACKOFF_S
        delay_s = self._backoff_s[slot]
        self._backoff_s[slot] = min(BACKOFF_MAX_S, 2 * delay_s)
        self._log.error("worker died, restarting", worker=slot, exit_code=process.exitcode, delay_s=delay_s)
        if not self._stopping.wait(delay_s):
            self._start(slot)

    def _bury(self, process: SpawnProcess) -> None:
        """A dead worker's gauges must not count on; its counters stay."""
        process.join()
        assert process.pid is not None
        mark_process_dead(process.pid, self._metrics_directory)  # type: ignore[no-untyped-call]

    def _end(self) -> None:
        for listener in self._listeners:
            listener.close()  # or the kernel would go on queueing connections that nobody will accept
        running = [process for process in self._slots if process is not None]
        for process in running:
            if process.is_alive():
                process.terminate()
        deadline = time.monotonic() + self._settings.drain_s + STOP_EXTRA_S
        for process in running:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                self._log.error("worker does not end, killed", pid=process.pid)
                process.kill()
            self._bury(process)


def _worker(work: Work, settings: Settings, listener: socket.socket) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    logs.configure("gateway", settings)
    try:
        work(settings, listener)
    except Fatal as error:
        logs.get().error("cannot work", error=str(error))
        raise SystemExit(FATAL_EXIT) from None
