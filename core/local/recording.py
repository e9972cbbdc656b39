"""The format of recordings: NDJSON, one request or one plain item a line, in the order in which to send them.

    {"at_ms": 1500, "method": "POST", "path": "/hooks/matchzy/srv1", "body": {…}}   a request (method: POST if unsaid)
    {"at_ms": 1520, "event_id": "01J…", "poll_id": "p1", "option": "a", "voter": "x:1"}   a vote, as in the contract
    {"event_id": "01J…", "match_id": "m1", "map_id": "1", "type": "round_end", "ts": "…"}   a match event, likewise

`at_ms` is the moment in milliseconds since the start of the recording. An item without it is due at its `ts`, taken
relative to the first `ts`, and without that together with the line before it. Empty lines are skipped.
Votes that fall due together are sent in one NDJSON body, and so are match events; a request is sent as it is, its
body byte for byte. Playing a recording twice counts nothing twice: its items carry their ids.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Literal

import msgspec
from msgspec import Raw, Struct

from core.errors import Fatal

BATCH_MAX_ITEMS = 500
BATCH_WITHIN_MS = 20.0
"""Items due within this time of the first one of a body travel with it."""

NDJSON = "application/x-ndjson"
JSON = "application/json"


class Request(Struct, frozen=True):
    """One request, and how much of the recording it stands for."""

    due_ms: float
    method: str
    path: str
    content_type: str
    body: bytes
    read_bytes: int  # of the recording, for a progress bar


class _Line(Struct):
    at_ms: float | None = None
    method: Literal["POST", "PUT"] = "POST"
    path: str | None = None
    body: Raw = Raw()  # its bytes as recorded
    poll_id: str | None = None
    match_id: str | None = None
    ts: datetime | None = None


_decode = msgspec.json.Decoder(_Line).decode
_ITEM_PATHS = {"vote": "/api/v1/votes", "event": "/api/v1/events"}


def requests(lines: Iterable[bytes]) -> Iterator[Request]:
    """The requests that a recording stands for, in order. Raises Fatal with the number of a line it cannot read."""
    batch = _Batch()
    origin: datetime | None = None
    due_ms = 0.0
    for number, raw in enumerate(lines, 1):
        text = raw.strip()
        if not text:
            batch.read_bytes += len(raw)
            continue
        try:
            line = _decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Fatal(f"line {number} of the recording: {error}") from error
        if line.at_ms is not None:
            due_ms = line.at_ms
        elif line.ts is not None and line.ts.tzinfo is not None:
            origin = origin or line.ts
            due_ms = (line.ts - origin).total_seconds() * 1000
        if line.path is not None:
            if not line.path.startswith("/"):
                raise Fatal(f"line {number} of the recording: path must start with /")
            yield from batch.flush()
            yield Request(due_ms, line.method, line.path, JSON, bytes(line.body), len(raw))
            continue
        kind = "vote" if line.poll_id is not None else "event" if line.match_id is not None else None
        if kind is None:
            raise Fatal(f"line {number} of the recording is no request, no vote and no match event")
        if not batch.takes(kind, due_ms):
            yield from batch.flush()
        batch.add(kind, due_ms, text, len(raw))
    yield from batch.flush()


class _Batch:
    """Items of one kind that are due together."""

    def __init__(self) -> None:
        self.read_bytes = 0
        self._kind = ""
        self._due_ms = 0.0
        self._items: list[bytes] = []

    def takes(self, kind: str, due_ms: float) -> bool:
        return not self._items or (
            kind == self._kind and abs(due_ms - self._due_ms) <= BATCH_WITHIN_MS and len(self._items) < BATCH_MAX_ITEMS
        )

    def add(self, kind: str, due_ms: float, item: bytes, read_bytes: int) -> None:
        if not self._items:
            self._kind, self._due_ms = kind, due_ms
        self._items.append(item)
        self.read_bytes += read_bytes

    def flush(self) -> Iterator[Request]:
        if self._items:
            body = b"\n".join(self._items) + b"\n"
            yield Request(self._due_ms, "POST", _ITEM_PATHS[self._kind], NDJSON, body, self.read_bytes)
            self._items, self.read_bytes = [], 0
