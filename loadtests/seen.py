"""What all subscribers of a process saw, as files: readers are written by one process and compared by another."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from loadtests.reader import Reader

Floats = NDArray[np.float64]
Counts = NDArray[np.uint64]


class Seen(Struct):
    """One subscriber; see `Reader` for the words. `polls` maps poll to (last applied, last digest)."""

    name: str
    kinds: dict[str, int]
    verdicts: dict[str, int]
    backwards: int
    repeats: int
    connections: int
    polls: dict[str, tuple[int, str]]
    events: list[str] = field(default_factory=list)


class Views(Struct):
    """All subscribers. `tallies`: per subscriber, poll to (applied, at); `events_at`: per subscriber."""

    seen: list[Seen]
    tallies: list[dict[str, tuple[Counts, Floats]]]
    events_at: list[Floats]
    failures: list[str]
    loop_lag_ms: Floats


def summary(reader: Reader) -> Seen:
    """A reader without its times."""
    return Seen(
        reader.name, dict(reader.kinds), dict(reader.verdicts), reader.backwards, reader.repeats, reader.connections,
        {poll_id: (int(t.applied[-1]) if t.applied else 0, t.digest) for poll_id, t in reader.tallies.items()},
        reader.events,
    )  # fmt: skip


def save(directory: Path, readers: Sequence[Reader], failures: Sequence[str], loop_lag_ms: Sequence[float]) -> None:
    """Write `seen.msgpack` and `times.npz`. Event ids are written once and referred to by number."""
    ids = {event_id: number for number, event_id in enumerate({i: None for r in readers for i in r.events})}
    arrays: dict[str, NDArray[np.generic]] = {"lag": np.asarray(loop_lag_ms, dtype=np.float64)}
    bare = []
    for number, reader in enumerate(readers):
        seen = summary(reader)
        seen.events = []
        bare.append(seen)
        arrays[f"{number}/events"] = np.asarray([ids[event_id] for event_id in reader.events], dtype=np.uint32)
        arrays[f"{number}/events_at"] = np.frombuffer(reader.events_at, dtype=np.float64)
        for poll_id, tallies in reader.tallies.items():
            arrays[f"{number}/{poll_id}/applied"] = np.frombuffer(tallies.applied, dtype=np.uint64)
            arrays[f"{number}/{poll_id}/at"] = np.frombuffer(tallies.at, dtype=np.float64)
    np.savez(directory / "times.npz", **arrays)  # type: ignore[arg-type]
    (directory / "seen.msgpack").write_bytes(msgspec.msgpack.encode((list(ids), list(failures), bare)))


def load(directories: Sequence[Path]) -> Views:
    """Read what `save` wrote, of one process or of several."""
    views = Views([], [], [], [], np.empty(0))
    for directory in directories:
        ids, failures, seen = msgspec.msgpack.decode(
            (directory / "seen.msgpack").read_bytes(), type=tuple[list[str], list[str], list[Seen]]
        )
        views.failures.extend(failures)
        with np.load(directory / "times.npz") as arrays:
            views.loop_lag_ms = np.concatenate([views.loop_lag_ms, arrays["lag"]])
            for number, one in enumerate(seen):
                one.events = [ids[index] for index in arrays[f"{number}/events"]]
                views.seen.append(one)
                views.events_at.append(arrays[f"{number}/events_at"])
                views.tallies.append({
                    poll_id: (arrays[f"{number}/{poll_id}/applied"], arrays[f"{number}/{poll_id}/at"])
                    for poll_id in one.polls
                })  # fmt: skip
    return views
