"""One child process: started bound to our life, its output taken, stopped within a bound."""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import core
from core.local import launch
from core.local.output import Output

_PIPE_READ_BYTES = 64 * 1024
_DRAIN_S = 1.0  # a grandchild may hold the pipe open after the child's end


def python_command(*arguments: str) -> list[str]:
    """Command line of our own program. -P: a directory called `core` where the user happens to be is not ours."""
    return [sys.executable, "-P", "-m", "core.cli", *arguments]


def python_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` so that a child finds the same code as we run, installed or not."""
    ours = str(Path(core.__file__).resolve().parents[1])
    return {**environ, "PYTHONPATH": os.pathsep.join(filter(None, (ours, environ.get("PYTHONPATH", ""))))}


def describe_exit(code: int) -> str:
    """`exit code 1` or `signal SIGKILL`."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


class Child:
    """A running process and the processes it started."""

    def __init__(self, process: asyncio.subprocess.Process, pipe: int, output: Output) -> None:
        self._process = process
        self._output = output
        self._pump = asyncio.create_task(self._take_output(pipe))
        self._ended = asyncio.create_task(self._end())

    @classmethod
    async def start(cls, command: Sequence[str], environ: Mapping[str, str], output: Output) -> "Child":
        """Start a program in a session of its own, so that Ctrl-C reaches only us and we stop it in order.

        It is killed when we are (see `launch`). That is tied to the thread that starts it: call from the main one.
        """
        # A pipe of our own: asyncio's would report the end of the child only after that of everybody who holds it.
        reading, writing = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *launch.wrap(list(command)),
                env=dict(environ),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                start_new_session=True,
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        return cls(process, reading, output)

    @property
    def pid(self) -> int:
        """Process id, and id of its process group."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it and what it left behind are gone."""
        return self._ended.done()

    async def wait(self) -> int:
        """Wait for its end; its exit code (negative: the signal). Any number of callers may wait."""
        return await asyncio.shield(self._ended)

    def terminate(self) -> None:
        """Ask it to stop."""
        if self._process.returncode is None:
            self._process.terminate()

    def kill(self) -> None:
        """Kill it and its own children."""
        if not self.has_ended:  # afterwards its id may be another's
            self._kill_group()

    def _kill_group(self) -> None:
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
            return

    async def _end(self) -> int:
        code = await self._process.wait()
        self._kill_group()
        await asyncio.wait([self._pump], timeout=_DRAIN_S)
        self._pump.cancel()
        self._output.end()
        return code

    async def _take_output(self, pipe: int) -> None:
        reader = asyncio.StreamReader()
        with os.fdopen(pipe, "rb", buffering=0) as file:
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), file
            )
            try:
                while data := await reader.read(_PIPE_READ_BYTES):
                    self._output.feed(data)
            finally:
                transport.close()
