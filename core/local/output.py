"""Where the output of children goes: everything into a file of bounded size, what needs a human to the terminal."""

import logging.handlers
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

LINE_MAX_BYTES = 16 * 1024
"""A longer line is cut: the log is for reading, and a child must not fill our memory."""

FILE_MAX_BYTES = 10_000_000
FILES_KEPT = 3
ECHO_MAX = 10
"""Lines of one service shown within `ECHO_PERIOD_S`; what is above goes to its file only, and that is said."""

ECHO_PERIOD_S = 10.0
_TAIL_LINES = 8
_LOUD = {"warning", "error", "critical"}
_UNSAID = {"event", "level", "timestamp", "service", "settings", "exception"}

Say = Callable[[str], None]
"""Shows one line to whoever runs `arenacast up`."""


class Output:
    """Takes what one service writes, line by line."""

    def __init__(self, service: str, directory: Path, say: Say, clock: Callable[[], float] = time.monotonic) -> None:
        """`say` shows a line."""
        self.path = directory / f"{service}.log"
        self._service = service
        self._say = say
        self._clock = clock
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._rest = b""
        self._period_start = float("-inf")
        self._shown = 0
        self._file = logging.handlers.RotatingFileHandler(
            self.path, maxBytes=FILE_MAX_BYTES, backupCount=FILES_KEPT - 1, encoding="utf-8", delay=True
        )

    def feed(self, data: bytes) -> None:
        """Take a piece of output."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take(line)
        if len(self._rest) > LINE_MAX_BYTES:
            self._take(self._rest)
            self._rest = b""

    def end(self) -> None:
        """The process has ended; the next one starts a new line."""
        if self._rest:
            self._take(self._rest)
            self._rest = b""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self.end()
        self._file.close()

    @property
    def last_words(self) -> str:
        """The last line that says something, for the message about a process that ended."""
        lines = [line for line in self._tail if line]
        return readable(lines[-1]) if lines else ""

    def _take(self, raw: bytes) -> None:
        line = raw[:LINE_MAX_BYTES].decode("utf-8", "replace").rstrip("\r")
        self._tail.append(line)
        self._file.emit(logging.LogRecord(self._service, logging.INFO, "", 0, line, None, None))
        if is_loud(line):
            self._echo(readable(line))

    def _echo(self, text: str) -> None:
        now = self._clock()
        if now - self._period_start >= ECHO_PERIOD_S:
            self._period_start, self._shown = now, 0
        self._shown += 1
        if self._shown <= ECHO_MAX:
            self._say(f"{self._service}: {text}")
        elif self._shown == ECHO_MAX + 1:
            self._say(f"{self._service}: more in {self.path}")


def is_loud(line: str) -> bool:
    """Whether a line of a service's log needs a human: a warning or worse, or our own last line before an exit."""
    return line.startswith("arenacast: ") or _fields(line).get("level") in _LOUD


def readable(line: str) -> str:
    """A JSON log line in short; any other line as it is."""
    fields = _fields(line)
    if "event" not in fields:
        return line
    details = " ".join(f"{name}={value}" for name, value in fields.items() if name not in _UNSAID)
    error = str(fields.get("exception", "")).strip().rpartition("\n")[2]
    return " ".join(part for part in (str(fields.get("level", "")), str(fields["event"]), details, error) if part)


def _fields(line: str) -> dict[str, object]:
    if not line.startswith("{"):
        return {}
    try:
        return msgspec.json.decode(line, type=dict[str, object])
    except msgspec.DecodeError:
        return {}
