"""The generator's own processes, as their starter sees them: lines in, lines out, every wait bounded."""

import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec

from core.errors import Fatal
from core.local import launch
from loadtests.lines import Report

STOPS_WITHIN_S = 10.0


class Helper:
    """A process of ours that dies with us. Its errors go to a file beside its specification."""

    def __init__(self, module: str, spec: Any, directory: Path) -> None:
        """Start `python -m <module> SPEC`. Call from the main thread: a helper is tied to the thread that starts it."""
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.name = module.rpartition(".")[2]
        self._errors = directory / "errors.log"
        (directory / "spec.json").write_bytes(msgspec.json.encode(spec))
        command = launch.wrap([sys.executable, "-m", module, str(directory / "spec.json")])
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
            )
        self._reports: queue.Queue[Report | None] = queue.Queue()
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def next(self, within_s: float) -> Report:
        """The next report. Raises Fatal when there is none in time, or when it tells of an error."""
        try:
            report = self._reports.get(timeout=within_s)
        except queue.Empty:
            raise Fatal(f"the load generator's {self.name} said nothing for {within_s:g} s") from None
        if report is None:
            raise Fatal(f"the load generator's {self.name} ended: {self._errors.read_text()[-2000:]}")
        if report.error:
            raise Fatal(f"the load generator's {self.name}: {report.error}")
        return report

    def tell(self, message: Any) -> None:
        """Send one line."""
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(message) + b"\n")
        self._process.stdin.flush()

    def stop(self) -> None:
        """End it; nothing when it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOPS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reading.join(STOPS_WITHIN_S)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                self._reports.put(msgspec.json.decode(line, type=Report))
            except msgspec.DecodeError:
                continue  # a library that prints is not talking to us
        self._reports.put(None)
