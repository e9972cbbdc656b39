"""`arenacast export`: a poll's votes or a match's events as one file, with a manifest that lets anybody check it.

    SUBJECT.parquet | .csv      a row per vote, by option and then in log order, or a row per event, in log order
    ….manifest.json             rows, digest, positions, SHA-256 of the file, and what the tally said at that position

A poll whose id was used again is another poll: only its latest life is exported, from `since` of the manifest on.

A poll is exported up to the position at which its tally was read, so that both must agree, also while people vote: as
many rows as votes applied, and the sum of `vote_hash` over the rows is the tally's digest. The digest of a match is the
sum modulo 2^64 of xxHash64 (seed 0) of its payloads, compared with what ClickHouse computes over the same rows.

Voters are keyed anew in every export, with a random key that is thrown away (or shown, on demand): the same voter is
the same text within a file, and nothing in two files. A voter who was erased is null.

Rows are read in chunks and written as they come: memory does not grow with the poll. The file appears under its name
when it is whole, and never in place of another one.
"""

import asyncio
import hashlib
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from msgspec import Struct
from xxhash import xxh64_intdigest

from clickhouse.client import ClickHouse
from core import audit, keys, logs
from core.audit import OPERATOR, Record
from core.clock import now_us
from core.digest import MASK, format_digest
from core.errors import Fatal, Retry
from core.names import is_id, match_topic, poll_topic, shard_of
from core.position import ZERO, EntryId, parse_entry_id
from core.redis_client import Redis, Scripts, call, connect
from core.settings import Settings

Format = Literal["parquet", "csv"]
FORMATS: tuple[Format, ...] = ("parquet", "csv")

CHUNK_ROWS = 50_000
CHUNK_BYTES = 16 * 1024 * 1024
_FIRST_ROWS = 500
ARCHIVE_WAIT_S = 20.0
"""How long to wait for the archive to reach the position that is exported."""

OnRows = Callable[[int, int], None]
"""Told how many rows of how many are written."""

_VOTES = """
SELECT option_id, stream_ms, stream_seq, stream_epoch, voter_hash, event_hash, vote_hash, weight, source, ts,
       received_at
FROM votes
WHERE poll_id = {id:String} AND (stream_ms, stream_seq) <= ({last_ms:UInt64}, {last_seq:UInt64})
  AND (stream_ms, stream_seq) >= ({since_ms:UInt64}, {since_seq:UInt64})
  AND option_id >= {option:String}
  AND (option_id, stream_ms, stream_seq, stream_epoch) > ({option:String}, {ms:UInt64}, {seq:UInt64}, {epoch:UInt64})
ORDER BY option_id, stream_ms, stream_seq, stream_epoch
LIMIT {rows:UInt32}
"""
_EVENTS = """
SELECT stream_ms, stream_seq, stream_epoch, event_id, map_id, round_no, type, revision, corrects, source, ts,
       received_at, payload
FROM match_events
WHERE match_id = {id:String} AND (stream_ms, stream_seq) <= ({last_ms:UInt64}, {last_seq:UInt64})
  AND stream_ms >= {ms:UInt64}
  AND (stream_ms, stream_seq, stream_epoch) > ({ms:UInt64}, {seq:UInt64}, {epoch:UInt64})
ORDER BY stream_ms, stream_seq, stream_epoch
LIMIT {rows:UInt32}
"""
_TOTALS = {
    "poll": """
        SELECT count(), sum(vote_hash) FROM votes
        WHERE poll_id = {id:String} AND (stream_ms, stream_seq) <= ({last_ms:UInt64}, {last_seq:UInt64})
          AND (stream_ms, stream_seq) >= ({since_ms:UInt64}, {since_seq:UInt64})
    """,
    "match": """
        SELECT count(), sum(xxHash64(payload)) FROM match_events
        WHERE match_id = {id:String} AND (stream_ms, stream_seq) <= ({last_ms:UInt64}, {last_seq:UInt64})
    """,
}


_BEGAN = """
SELECT max((began_ms, began_seq)) FROM poll_lives
WHERE poll_id = {id:String} AND life > 1 AND (began_ms, began_seq) <= ({last_ms:UInt64}, {last_seq:UInt64})
"""


class Subject(Struct, frozen=True):
    """What is exported."""

    kind: Literal["poll", "match"]
    id: str

    def __str__(self) -> str:
        return f"{self.kind}.{self.id}"


class Tally(Struct, frozen=True):
    """What the live state of a poll said when the export began."""

    status: str
    applied: int
    digest: str


class Manifest(Struct, frozen=True):
    """What a file holds. `verified`: rows and digest are ClickHouse's own and the tally's; null without a tally."""

    subject: str
    file: str
    format: Format
    exported_at: str
    rows: int
    digest: str
    sha256: str
    until: str
    """Last position of the log that the export covers, as `<ms>-<seq>`."""
    since: str
    """Where the poll's latest life began; 0-0 for the first one, and for a match."""
    columns: list[str]
    tally: Tally | None
    verified: bool | None


class _Writer(Protocol):
    def write_table(self, table: pa.Table) -> None: ...
    def close(self) -> None: ...


def run(settings: Settings, subject: str, kind: Format, to: Path | None, *, shows_key: bool) -> bool:
    """Export with a progress bar, say what was written. False when the file is not what the tally says.

    Raises Fatal or Retry when nothing could be exported.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    key = secrets.token_bytes(32)
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("rows"), TimeRemainingColumn(),
        console=console,
    )  # fmt: skip
    with bar:
        task = bar.add_task(subject, total=None)
        manifest = asyncio.run(
            export(settings, subject, kind, to, key, lambda done, total: bar.update(task, completed=done, total=total))
        )
    if shows_key:
        console.print(f"voter key {key.hex()}")
    verdict = {True: "as the tally says", False: "NOT what the tally says", None: "no tally to compare with"}
    print(f"{manifest.file}: {manifest.rows} rows, digest {manifest.digest}, {verdict[manifest.verified]}")
    return manifest.verified is not False


async def export(
    settings: Settings, text: str, kind: Format, to: Path | None, key: bytes, on_rows: OnRows = lambda _done, _all: None
) -> Manifest:
    """`run` inside a running loop, with the key for the voters."""
    clickhouse = ClickHouse(settings.clickhouse_target, timeout_s=120.0)
    client = connect(settings)
    try:
        shards = int(await call(client.hget(keys.LOG, "shards")) or 0)
        if not shards:
            raise Fatal("there is no log here yet")
        subject = await _subject(clickhouse, text)
        path = to or Path(f"{subject}.{kind}")
        target = _Target(path)
        shard = shard_of(_topic(subject), shards)
        until, derived, tally = await _stand(client, shard, subject)
        await _reached(client, shard, "events", until)
        await _reached(client, shard, "updates", derived)  # of which the life is told
        manifest = await _write(clickhouse, subject, kind, target, key, until, tally, on_rows)
        await _note(client, shards, subject, manifest)
        return manifest
    finally:
        await clickhouse.close()
        await client.aclose()


async def _subject(clickhouse: ClickHouse, text: str) -> Subject:
    """What a text names: `poll.<id>`, `match.<id>`, or an id that only one of the two has."""
    kind, dot, rest = text.partition(".")
    if dot and kind in ("poll", "match") and is_id(rest):
        return Subject("poll" if kind == "poll" else "match", rest)
    if not is_id(text):
        raise Fatal("say poll.<id> or match.<id>")
    rows = await clickhouse.query(
        "SELECT (SELECT count() FROM (SELECT 1 FROM votes WHERE poll_id = {id:String} LIMIT 1)), "
        "(SELECT count() FROM (SELECT 1 FROM match_events WHERE match_id = {id:String} LIMIT 1))",
        {"id": text},
    )
    is_poll, is_match = map(bool, rows[0])
    if is_poll and is_match:
        raise Fatal(f"there is a poll and a match {text}: say poll.{text} or match.{text}")
    if not is_poll and not is_match:
        raise Fatal(f"nothing is archived of a poll or a match {text}")
    return Subject("poll" if is_poll else "match", text)


def _topic(subject: Subject) -> str:
    return poll_topic(subject.id) if subject.kind == "poll" else match_topic(subject.id, "*")


async def _stand(client: Redis, shard: int, subject: Subject) -> tuple[EntryId, EntryId, Tally | None]:
    """The position to export up to, the last derived facts by then, and the tally as of exactly that position."""
    pipe = client.pipeline(transaction=True)
    pipe.hmget(keys.progress(shard), "last_id", "updates_id")
    pipe.hget(keys.state(shard, _topic(subject)), "data")
    progress, data = await call(pipe.execute())
    last, derived = (parse_entry_id(value) if value else ZERO for value in progress)
    if subject.kind == "poll" and data is not None:
        return last, derived, msgspec.json.decode(data, type=Tally)
    newest: Any = await call(client.xrevrange(keys.events(shard), count=1))
    return max(last, parse_entry_id(newest[0][0]) if newest else ZERO), derived, None


async def _reached(client: Redis, shard: int, log: str, until: EntryId) -> None:
    """Wait until everything of a log up to a position is in ClickHouse."""
    deadline = time.monotonic() + ARCHIVE_WAIT_S
    while True:
        committed = await call(client.hget(keys.archive(shard, log), "committed"))
        if (parse_entry_id(committed) if committed else ZERO) >= until:
            return
        if time.monotonic() > deadline:
            raise Retry(f"the archive has not reached {until} within {ARCHIVE_WAIT_S:g} s: try again when it has")
        await asyncio.sleep(0.1)


async def _write(
    clickhouse: ClickHouse, subject: Subject, kind: Format, target: "_Target", key: bytes, until: EntryId,
    tally: Tally | None, on_rows: OnRows,
) -> Manifest:  # fmt: skip
    bounds: dict[str, Any] = {"id": subject.id, "last_ms": until.ms, "last_seq": until.seq}
    since = ZERO
    if subject.kind == "poll":
        since = EntryId(*(await clickhouse.query(_BEGAN, bounds))[0][0])
        bounds |= {"since_ms": since.ms, "since_seq": since.seq}
    totals = await clickhouse.query(_TOTALS[subject.kind], bounds)
    count, stored_digest = int(totals[0][0]), format_digest(int(totals[0][1]))
    on_rows(0, count)
    written, digest = 0, 0
    columns: Sequence[str] = ()
    with target:
        writer: _Writer | None = None
        async for table in _tables(clickhouse, subject, bounds, key):
            if writer is None:
                columns = table.schema.names
                writer = _writer(kind, target.part, table.schema)
            writer.write_table(table)
            written += len(table)
            digest += _digest(subject, table)
            on_rows(written, count)
        if writer is None:
            raise Fatal(f"nothing is archived of {subject}")
        writer.close()
        stand = written, format_digest(digest & MASK)
        if stand != (count, stored_digest):
            raise Retry(f"{subject} changed in ClickHouse while it was read: {stand}, then {(count, stored_digest)}")
        manifest = Manifest(
            str(subject), target.path.name, kind, datetime.now(UTC).isoformat(timespec="seconds"), written, stand[1],
            _sha256(target.part), str(until), str(since), list(columns), tally,
            None if tally is None else (tally.applied, tally.digest) == stand,
        )  # fmt: skip
        target.finish(manifest)
    return manifest


async def _tables(
    clickhouse: ClickHouse, subject: Subject, bounds: dict[str, Any], key: bytes
) -> AsyncIterator[pa.Table]:
    """The rows, in order, in tables of bounded size; the first one tells the size of the next."""
    after: dict[str, Any] = {"option": "", "ms": 0, "seq": 0, "epoch": 0}
    rows = _FIRST_ROWS
    while True:
        sql = _VOTES if subject.kind == "poll" else _EVENTS
        table = await clickhouse.arrow(sql, {**bounds, **after, "rows": rows})
        if not len(table):
            return
        last = table.slice(len(table) - 1).to_pylist()[0]
        after |= {"ms": last["stream_ms"], "seq": last["stream_seq"], "epoch": last["stream_epoch"]}
        if subject.kind == "poll":
            after["option"] = last["option_id"].decode()
        yield _as_text(_keyed(table, key) if subject.kind == "poll" else table)
        if len(table) < rows:
            return
        rows = max(1, min(CHUNK_ROWS, CHUNK_BYTES * len(table) // max(1, table.nbytes)))


def _keyed(table: pa.Table, key: bytes) -> pa.Table:
    """Voters under the key of this export."""
    voters = [
        blake2b(voter.to_bytes(8), key=key, digest_size=8).hexdigest() if voter else None
        for voter in table.column("voter_hash").to_pylist()
    ]
    return table.set_column(table.schema.get_field_index("voter_hash"), "voter", pa.array(voters, pa.string()))


def _as_text(table: pa.Table) -> pa.Table:
    """ClickHouse's strings are bytes; ours are all UTF-8."""
    fields = [field.with_type(pa.string()) if pa.types.is_binary(field.type) else field for field in table.schema]
    return table.cast(pa.schema(fields))


def _digest(subject: Subject, table: pa.Table) -> int:
    if subject.kind == "poll":
        return sum(table.column("vote_hash").to_pylist())
    return sum(xxh64_intdigest(payload.encode()) for payload in table.column("payload").to_pylist())


def _writer(kind: Format, path: Path, schema: pa.Schema) -> _Writer:
    writer: _Writer
    if kind == "csv":
        writer = pa.csv.CSVWriter(str(path), schema)
    else:
        writer = pa.parquet.ParquetWriter(str(path), schema, compression="zstd")
    return writer


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Target:
    """A file that appears whole, with its manifest, or not at all."""

    def __init__(self, path: Path) -> None:
        """Raises Fatal when there is such a file, or none can be there."""
        self.path = path
        self.part = path.with_name(f".{path.name}.{re.sub('[^0-9a-f]', '', secrets.token_hex(4))}.part")
        self._manifest = path.with_name(f"{path.name}.manifest.json")
        for taken in (path, self._manifest):
            if taken.exists():
                raise Fatal(f"{taken} exists: name another file with --to")
        if not path.absolute().parent.is_dir():
            raise Fatal(f"{path.absolute().parent} is not a directory")

    def __enter__(self) -> "_Target":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(FileNotFoundError):
            self.part.unlink()

    def finish(self, manifest: Manifest) -> None:
        """Give both their names. Raises Fatal when somebody else took one meanwhile."""
        text = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
        try:
            with self.part.open("rb") as file:
                os.fsync(file.fileno())
            os.link(self.part, self.path)  # and not rename, which would replace a file
            with self._manifest.open("xb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError as error:
            raise Fatal(f"{error.filename2 or error.filename} exists: name another file with --to") from error


async def _note(client: Redis, shards: int, subject: Subject, manifest: Manifest) -> None:
    """An export is a read like others; that it cannot be noted now is no reason to withhold the file."""
    record = Record(
        str(subject), "export", OPERATOR, now_us() // 1000, events=manifest.rows,
        detail=f"{manifest.format} until {manifest.until}, sha256 {manifest.sha256}",
    )  # fmt: skip
    try:
        await audit.append(Scripts(client, shards, audit.sources()), shards, [record])
    except Retry as error:
        logs.get().warning("export not noted in the audit", error=str(error))
