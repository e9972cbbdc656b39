"""Stored events of a match, in the order of the log: what ClickHouse holds, in chunks of bounded size.

Order: (stream_ms, stream_seq, stream_epoch), which is how `match_events` is sorted; all maps of a match share a shard,
and one entry of the log is one event, so this is the order of its log. A place in it never changes.

Everything is read chunk by chunk: a slow reader then holds no query open in ClickHouse and no more than a chunk in
memory, and a failure is an exception before the chunk instead of a broken body in the middle of it. What of the newest
events is final here, and what comes after them, is for `clickhouse.history` to say.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import pyarrow as pa
from msgspec import Struct

from clickhouse.client import ClickHouse, TooLarge
from clickhouse.instants import MS_MAX, MS_MIN
from core.position import EntryId

CHUNK_BYTES_MAX = 8 * 1024 * 1024
"""A chunk ends early rather than exceed this (it holds one event at least): events may have 256 KB each."""

_NUMBER_MAX = 2**63 - 1
_PLACE = re.compile(r"([0-9]{1,19})\.([0-9]{1,19})\.([0-9]{1,19})\Z")

_ROWS = """
SELECT COLUMNS
FROM match_events
WHERE match_id = {match_id:String}
  AND (stream_ms, stream_seq, stream_epoch) > ({ms:UInt64}, {seq:UInt64}, {epoch:UInt64})
  AND (stream_ms, stream_seq) <= ({last_ms:UInt64}, {last_seq:UInt64})
  AND stream_ms >= {ms:UInt64} AND stream_ms <= {last_ms:UInt64}
  AND ({map_id:String} = '' OR map_id = {map_id:String})
  AND received_at >= fromUnixTimestamp64Milli({since_ms:Int64})
  AND received_at < fromUnixTimestamp64Milli({until_ms:Int64})
  AND ({corrections_only:Bool} = false OR corrects != '')
ORDER BY stream_ms, stream_seq, stream_epoch
LIMIT {rows:UInt32}
"""

_BOUNDED = f"""
SELECT COLUMNS, found
FROM
(
    SELECT *, count() OVER () AS found, sum(length(payload)) OVER
        (ORDER BY stream_ms, stream_seq, stream_epoch ROWS UNBOUNDED PRECEDING) - length(payload) AS bytes_before
    FROM ({_ROWS.replace("COLUMNS", "*")})
)
WHERE bytes_before < {{bytes_max:UInt64}}
ORDER BY stream_ms, stream_seq, stream_epoch
"""  # noqa: S608 - our own text
"""The same, ended by their size. Twice as slow, so only for rows that turn out to be too large."""

_EVENT = (
    "stream_ms, stream_seq, stream_epoch, event_id, map_id, type, revision, corrects, "
    "toUnixTimestamp64Milli(received_at) AS received_ms, payload"
)
_LINE = "stream_ms, stream_seq, stream_epoch, concat(payload, '\\n') AS line"

_SETTINGS = {
    "max_threads": 1,  # a page lies in a few granules: threads cost more than they read
    "query_plan_optimize_lazy_materialization": 0,  # as does coming back for the payloads
    "result_overflow_mode": "throw",
}


class Place(NamedTuple):
    """Where an event stands in the order of its log. Its text is opaque to clients: they give it back as `after`."""

    ms: int
    seq: int
    epoch: int

    def __str__(self) -> str:
        return f"{self.ms}.{self.seq}.{self.epoch}"

    @property
    def entry(self) -> EntryId:
        """Id of the log entry."""
        return EntryId(self.ms, self.seq)


BEGINNING = Place(0, 0, 0)
END = EntryId(_NUMBER_MAX, _NUMBER_MAX)


def parse_place(text: str) -> Place:
    """Read the text of a place. Raises ValueError, with a text fit for the client, when it is not one."""
    match = _PLACE.match(text)
    if match is None or any(int(number) > _NUMBER_MAX for number in match.groups()):
        raise ValueError("after must be a position that a page gave as next")
    return Place(*map(int, match.groups()))


class Asked(Struct, frozen=True):
    """Which events of a match: of all its maps or one, received in [since, until), in Unix ms."""

    match_id: str
    map_id: str | None = None
    since_ms: int = MS_MIN
    until_ms: int = MS_MAX
    corrections_only: bool = False


class StoredEvent(Struct, frozen=True, gc=False):
    """One event; `payload` is its JSON exactly as it was streamed, on one line."""

    place: Place
    event_id: str
    map_id: str
    type: str
    revision: int
    corrects: str
    """Id of the event that this one corrects, "" when it is none."""
    received_ms: int
    payload: bytes


class Lines(Struct, frozen=True):
    """Events as NDJSON. `last` is the place of the last one, None when there are none."""

    body: bytes
    count: int
    last: Place | None
    has_more: bool


async def stored_events(
    clickhouse: ClickHouse,
    asked: Asked,
    after: Place = BEGINNING,
    *,
    last: EntryId = END,
    rows: int = 1000,
    bytes_max: int = CHUNK_BYTES_MAX,
) -> tuple[list[StoredEvent], bool]:
    """The next events strictly after `after`, up to `last`, in order; and whether there are more in ClickHouse.

    A match nobody knows has none. Raises Retry when ClickHouse is away.
    """
    table, has_more = await _chunk(clickhouse, _EVENT, asked, after, last, rows, bytes_max)
    columns = [column.to_pylist() for column in table.columns]
    events = [
        StoredEvent(
            Place(ms, seq, epoch), event_id.decode(), map_id.decode(), type_.decode(), revision, corrects.decode(),
            received_ms, payload,
        )
        for ms, seq, epoch, event_id, map_id, type_, revision, corrects, received_ms, payload in zip(
            *columns, strict=True
        )
    ]  # fmt: skip
    return events, has_more


async def stored_lines(
    clickhouse: ClickHouse,
    asked: Asked,
    after: Place = BEGINNING,
    *,
    last: EntryId = END,
    rows: int = 1000,
    bytes_max: int = CHUNK_BYTES_MAX,
) -> Lines:
    """What `stored_events` gives, as whole lines. Hot path: ClickHouse builds the lines, one buffer is sliced here, no
    Python object is made per event (`loadtests.bench_history`)."""
    table, has_more = await _chunk(clickhouse, _LINE, asked, after, last, rows, bytes_max)
    if not len(table):
        return Lines(b"", 0, None, False)
    ms, seq, epoch = (table.column(index)[-1].as_py() for index in range(3))
    body = b"".join(map(_buffer, table.column(3).chunks))
    return Lines(body, len(table), Place(ms, seq, epoch), has_more)


async def _chunk(
    clickhouse: ClickHouse, columns: str, asked: Asked, after: Place, last: EntryId, rows: int, bytes_max: int
) -> tuple[pa.Table, bool]:
    """Up to `rows` rows, and whether there are more."""
    parameters: Mapping[str, Any] = {
        "match_id": asked.match_id,
        "map_id": asked.map_id or "",
        "ms": after.ms,
        "seq": after.seq,
        "epoch": after.epoch,
        "last_ms": last.ms,
        "last_seq": last.seq,
        "since_ms": asked.since_ms,
        "until_ms": asked.until_ms,
        "corrections_only": asked.corrections_only,
        "rows": rows + 1,  # one more, to know whether there is more
    }
    settings = {**_SETTINGS, "max_result_bytes": bytes_max}
    try:
        table = await clickhouse.arrow(_ROWS.replace("COLUMNS", columns), parameters, settings=settings)
        return table.slice(0, rows), len(table) > rows
    except TooLarge:
        bounded = {**parameters, "bytes_max": bytes_max}
        table = await clickhouse.arrow(_BOUNDED.replace("COLUMNS", columns), bounded, settings=_SETTINGS)
        used = min(rows, len(table))
        return table.slice(0, used).drop_columns("found"), used > 0 and table.column("found")[0].as_py() > used


def _buffer(lines: pa.Array) -> memoryview:
    """All values of a binary array, one after the other, without copying them."""
    _, offsets, data = lines.buffers()
    starts = memoryview(offsets).cast("i" if pa.types.is_binary(lines.type) else "q")
    return memoryview(data)[starts[lines.offset] : starts[lines.offset + len(lines)]]
