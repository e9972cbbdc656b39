"""What children write: all of it to a bounded file, what needs a human to the terminal."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.local import output as module
from core.local.output import ECHO_MAX, ECHO_PERIOD_S, LINE_MAX_BYTES, Output, is_loud, readable


class Terminal:
    """An output, what it showed, and a clock to turn."""

    def __init__(self, directory: Path) -> None:
        self.said: list[str] = []
        self.now = 0.0
        self.output = Output("ingest", directory, self.said.append, lambda: self.now)

    def written(self) -> str:
        self.output.close()
        return self.output.path.read_text()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.output.close()


def line(level: str, event: str = "x", **fields: object) -> bytes:
    return json.dumps({"event": event, "level": level, **fields}).encode() + b"\n"


def test_everything_is_written_and_only_warnings_are_shown(terminal: Terminal) -> None:
    for level in ("debug", "info", "warning", "error", "critical"):
        terminal.output.feed(line(level))
    assert terminal.said == ["ingest: warning x", "ingest: error x", "ingest: critical x"]
    assert len(terminal.written().splitlines()) == 5


def test_pieces_are_put_together_to_lines(terminal: Terminal) -> None:
    data = line("warning", "halves") + b"100 % {} %s\n" + b"without an end"
    for index in range(len(data)):
        terminal.output.feed(data[index : index + 1])
    assert terminal.said == ["ingest: warning halves"]
    assert terminal.written() == data.decode() + "\n"


def test_line_without_an_end_is_bounded(terminal: Terminal) -> None:
    for _ in range(10):
        terminal.output.feed(b"x" * LINE_MAX_BYTES)
    assert max(map(len, terminal.written().splitlines())) <= LINE_MAX_BYTES


def test_file_is_rotated_and_old_ones_go(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "FILE_MAX_BYTES", 1000)
    small = Output("small", tmp_path, print)
    for _ in range(100):
        small.feed(b"y" * 99 + b"\n")
    small.close()
    assert sorted(path.name for path in tmp_path.glob("small*")) == ["small.log", "small.log.1", "small.log.2"]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.glob("small*"))


def test_flood_of_warnings_is_cut_and_that_is_said(terminal: Terminal) -> None:
    for _ in range(1000):
        terminal.output.feed(line("warning"))
    assert len(terminal.said) == ECHO_MAX + 1
    assert terminal.said[-1] == f"ingest: more in {terminal.output.path}"
    terminal.now += ECHO_PERIOD_S
    terminal.output.feed(line("warning", "later"))
    assert terminal.said[-1] == "ingest: warning later"
    assert len(terminal.written().splitlines()) == 1001


def test_last_words_are_the_last_line_that_says_something(terminal: Terminal) -> None:
    terminal.output.feed(b"arenacast: no disk\n\n\n")
    terminal.output.end()
    assert terminal.output.last_words == "arenacast: no disk"
    assert terminal.said == ["ingest: arenacast: no disk"]


def test_what_is_not_utf_8_or_not_json_is_taken_as_it_is(terminal: Terminal) -> None:
    terminal.output.feed(b"\xff\xfe\n{broken\n[1]\n")
    assert terminal.said == []
    assert terminal.written() == "\ufffd\ufffd\n{broken\n[1]\n"


@pytest.mark.parametrize("text", ["Traceback (most recent call last):", "{}", '{"level":3}', '{"event":"x"}', ""])
def test_other_lines_are_quiet(text: str) -> None:
    assert not is_loud(text)


def test_json_line_is_readable_in_short() -> None:
    fields = {"timestamp": "2026", "service": "x", "event": "failed", "level": "error", "shard": 3}
    fields["exception"] = "Traceback …\n  File …\nValueError: no"
    assert readable(json.dumps(fields)) == "error failed shard=3 ValueError: no"
