"""Real servers for benchmarks: started on loopback or a unix socket, in a temporary directory, ended by pid."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from core.local import redis_server
from core.settings import Settings


@contextmanager
def embedded_redis(settings: Settings) -> Iterator[None]:
    """The embedded Valkey exactly as `arenacast up` runs it, on `settings.redis_socket`."""
    redis_server.prepare(settings)
    process = subprocess.Popen(redis_server.command(settings), stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while not redis_server.answers(settings.redis_socket):
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError("the embedded Valkey did not start")
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(10)
