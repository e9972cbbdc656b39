"""When everything was due, sent and answered: the sender's times, as arrays. Unix seconds throughout."""

from array import array
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from core.digest import event_hash
from core.events import Vote

Floats = NDArray[np.float64]


class Requests(Struct):
    """One row per attempt. `status` 0 = no answer."""

    due: Floats
    sent: Floats
    answered: Floats
    status: NDArray[np.int64]
    items: NDArray[np.int64]


class Trace(Struct):
    """A finished run. `votes` maps poll to (event_hash, due) of every distinct vote sent; `events` ids to due times."""

    start: float
    seconds: float
    requests: Requests
    votes: dict[str, tuple[NDArray[np.uint64], Floats]]
    events: dict[str, float]
    senders: int
    open_max: int
    """Most requests open at once: equal to `senders` means that the pipeline, not the schedule, set the pace."""


class Recorder:
    """Collects a trace, cheaply."""

    def __init__(self) -> None:
        self._votes: dict[str, tuple[array[int], array[float]]] = {}
        self._requests = tuple(array("d") for _ in range(5))
        self._events: dict[str, float] = {}

    def votes(self, due: float, votes: list[Vote]) -> None:
        """New votes are due."""
        for vote in votes:
            columns = self._votes.get(vote.poll_id)
            if columns is None:
                columns = self._votes[vote.poll_id] = (array("Q"), array("d"))
            columns[0].append(event_hash(vote.event_id))
            columns[1].append(due)

    def event(self, due: float, event_id: str) -> None:
        """A new match event is due."""
        self._events[event_id] = due

    def request(self, due: float, sent: float, answered: float, status: int, items: int) -> None:
        """One attempt has ended."""
        for column, value in zip(self._requests, (due, sent, answered, status, items), strict=True):
            column.append(value)

    def save(self, directory: Path, start: float, seconds: float, senders: int, open_max: int) -> None:
        """Write `trace.npz` and `trace.msgpack`."""
        arrays = {f"request/{number}": np.frombuffer(column) for number, column in enumerate(self._requests)}
        for poll_id, (hashes, due) in self._votes.items():
            arrays[f"vote/{poll_id}/hash"] = np.frombuffer(hashes, dtype=np.uint64).view(np.float64)
            arrays[f"vote/{poll_id}/due"] = np.frombuffer(due)
        np.savez(directory / "trace.npz", **arrays)  # type: ignore[arg-type]
        meta = _Meta(start, seconds, list(self._votes), self._events, senders, open_max)
        (directory / "trace.msgpack").write_bytes(msgspec.msgpack.encode(meta))


class _Meta(Struct):
    start: float
    seconds: float
    polls: list[str] = field(default_factory=list)
    events: dict[str, float] = field(default_factory=dict)
    senders: int = 0
    open_max: int = 0


def load(directory: Path) -> Trace:
    """Read what `Recorder.save` wrote."""
    meta = msgspec.msgpack.decode((directory / "trace.msgpack").read_bytes(), type=_Meta)
    with np.load(directory / "trace.npz") as arrays:
        due, sent, answered, status, items = (arrays[f"request/{number}"] for number in range(5))
        votes = {
            poll_id: (arrays[f"vote/{poll_id}/hash"].view(np.uint64), arrays[f"vote/{poll_id}/due"])
            for poll_id in meta.polls
        }
    requests = Requests(due, sent, answered, status.astype(np.int64), items.astype(np.int64))
    return Trace(meta.start, meta.seconds, requests, votes, meta.events, meta.senders, meta.open_max)
