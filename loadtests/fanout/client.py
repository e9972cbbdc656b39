"""The measuring client as a process: started, asked for reports, ended. See `client.c`."""

import resource
import subprocess
from pathlib import Path
from types import TracebackType

import msgspec
from msgspec import Struct

from core.errors import Fatal
from core.local import launch
from loadtests.fanout.usage import Placement

OPENS_WITHIN_S = 60.0
"""For all connections together. The caller's alarm clock is the kernel's: a client that hangs is killed."""


class Report(Struct, frozen=True):
    """What the client saw since the last report; see the head of `client.c`."""

    seconds: float
    cpu_s: float
    messages: int
    disordered: int
    lost: int
    least: int
    most: int
    reads: int
    bytes: int
    histogram: list[tuple[int, int]]


class Client:
    """`count` subscribers, all open once it is entered."""

    def __init__(self, program: Path, port: int, path: str, transport: str, count: int, placement: Placement) -> None:
        self._command = launch.wrap([str(program), "127.0.0.1", str(port), path, transport, str(count)])
        self._placement = placement
        self._decode = msgspec.json.Decoder(Report).decode

    def __enter__(self) -> "Client":
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=self._placement.client,  # noqa: PLW1509 - before any thread of ours that could hold a lock
        )
        self._line()
        return self

    def report(self) -> Report:
        """What happened since the last call. Raises Fatal when the client has ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        return self._decode(self._line())

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait(5.0)
            raise Fatal(f"the measuring client ended: {self._process.stderr.read().decode()[:500].strip()}")
        return line

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()  # its sockets go with a reset: no TIME_WAIT
        self._process.wait(5.0)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()


def raise_descriptor_limit(wanted: int) -> int:
    """Let this process and its children open `wanted` files, or as many as may be; gives the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for new_hard in (max(hard, wanted), hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, wanted), new_hard), new_hard))
            break
        except (ValueError, OSError):
            continue
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
