"""Segment files: a closed range of a log on disk, while ClickHouse is away too long for Redis to hold it.

    <spill_dir>/store.id                                 which directory this is, for consumers on other machines
    <spill_dir>/<log id>/<shard>.<log>.<epoch>.<first>.<last>.seg

A file is one line of JSON (`Header`) and the entries, msgpack compressed with zstd. It is written under a temporary
name, flushed, renamed, and its directory flushed, before Redis hears of it; so a file with its proper name is whole,
and what a broken disk made of it afterwards is told by length and checksum. Once archived it is retired (`.done`) and
deleted a few minutes later, because a Redis that crashes may have forgotten the commit, and list it again. Files of
another log id are never touched: when Redis was lost and begun anew they may hold what nobody else has.

Blocking calls, for a thread of the caller's choice.
"""

import errno
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pyarrow as pa
from msgspec import Struct
from xxhash import xxh3_64_hexdigest

from clickhouse.rows import RawEntry
from core.errors import ArenacastError, Retry
from core.position import EntryId, parse_entry_id

SUFFIX = ".seg"
RETIRED = ".done"
RETIRED_KEPT_S = 300.0
"""How long an archived segment stays: far more than a crash or a failover of Redis takes back."""

_TEMPORARY = ".tmp"
_HOLD = ".hold"
_HOLD_MAX_S = 24 * 3600.0
"""As long as a backup may take."""

_TEMPORARY_MAX_S = 3600.0
"""A temporary file older than this belongs to nobody any more: writing one takes less than a second."""
ERASED = "0" * 16
"""What stands in the place of a voter's hash that was erased: of the same length, see `reading.checksum`."""
_HEADER_MAX_BYTES = 4096
_CODEC = "zstd"

_encode_entries = msgspec.msgpack.Encoder().encode
_decode_entries = msgspec.msgpack.Decoder(list[RawEntry]).decode


class Damaged(ArenacastError):
    """A segment file is missing, or not what was written."""


class Record(Struct, frozen=True):
    """A segment as Redis lists it, in `segments:{s}:<log>`. `crc` is the `checksum` of its entries."""

    store: str
    file: str
    after: str
    first: str
    last: str
    count: int
    crc: int

    @property
    def until(self) -> EntryId:
        """Id of the last entry."""
        return parse_entry_id(self.last)


class Header(Struct, frozen=True):
    """First line of a segment file. `stored_bytes` and `checksum` (XXH3, 64 bit) are of what follows the line."""

    shard: int
    log: str
    epoch: int
    first: str
    last: str
    count: int
    entries_bytes: int
    stored_bytes: int
    checksum: str


class Shelf:
    """The segments of one log id in a spill directory."""

    def __init__(self, directory: Path, log_id: str, budget_bytes: int) -> None:
        """Creates the directory, for its owner only: segments hold what voters voted. Raises OSError."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.store = _identity(directory)
        self.directory = directory / log_id
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self._root = directory
        self.budget_bytes = budget_bytes

    def used_bytes(self) -> int:
        """Bytes of everything in the spill directory, other logs included: it is one disk."""
        return sum(_size(path) for path in self._root.rglob("*"))

    def names(self) -> list[str]:
        """Segment files of this log id that are not retired."""
        return sorted(path.name for path in self.directory.glob(f"*{SUFFIX}"))

    def write(self, shard: int, log: str, epoch: int, entries: Sequence[RawEntry]) -> str:
        """Put entries on disk for good; the file's name. Raises Retry when the budget or the disk is used up."""
        first, last = entries[0][0].decode(), entries[-1][0].decode()
        name = f"{shard:02d}.{log}.{epoch}.{first}.{last}{SUFFIX}"
        body = _compose(shard, log, epoch, first, last, entries)
        if self.used_bytes() + len(body) > self.budget_bytes:
            raise Retry(f"the spill directory holds its budget of {self.budget_bytes >> 20} MiB")
        try:
            _replace(self.directory / name, body)
        except OSError as error:
            raise Retry(f"no segment can be written: {errno.errorcode.get(error.errno or 0, 'error')}") from error
        return name

    def read(self, name: str) -> list[RawEntry]:
        """Entries of a segment. Raises Damaged."""
        return read_file(self.directory / name)[1]

    def retire(self, names: Sequence[str]) -> None:
        """Mark segments that were archived; `expire` deletes them later."""
        for name in names:
            path = self.directory / name
            try:
                os.utime(path)
                path.rename(_retired(path))
            except OSError:
                continue  # `sweep` finds it

    def sweep(self, shard: int, log: str, listed: Sequence[str], committed: EntryId) -> None:
        """Set the files of a log right after a crash of ours or of Redis: what is listed is not retired, what is
        archived and not listed is. What is not archived stays, whatever Redis says."""
        for name in listed:
            path = self.directory / name
            if not path.exists() and _retired(path).exists():
                _retired(path).rename(path)
        leftover = [path for path in self.directory.glob(f"{shard:02d}.{log}.*{SUFFIX}") if path.name not in listed]
        self.retire([path.name for path in leftover if parse_entry_id(path.name.split(".")[4]) <= committed])

    def expire(self) -> None:
        """Delete what was retired long enough ago and no backup waits for, and temporary files that nobody is writing
        any more."""
        kept = [(f"*{_TEMPORARY}", _TEMPORARY_MAX_S)]
        if not _is_held(self._root):
            kept.append((f"*{RETIRED}", RETIRED_KEPT_S))
        for pattern, kept_s in kept:
            for path in self.directory.glob(pattern):
                if _age_s(path) > kept_s:
                    _unlink(path)


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Keep what is retired in a spill directory from being deleted: a backup copies Redis first, whose copy lists
    segments, and these files after it, however long that takes. Of a backup that was killed the hold ends by itself."""
    hold = directory / f"{secrets.token_hex(4)}{_HOLD}"
    if directory.is_dir():
        hold.touch(mode=0o600)
    try:
        yield
    finally:
        _unlink(hold)


def _is_held(directory: Path) -> bool:
    holds = list(directory.glob(f"*{_HOLD}"))
    for old in [hold for hold in holds if _age_s(hold) > _HOLD_MAX_S]:
        _unlink(old)
    return any(hold.exists() for hold in holds)


def read_file(path: Path) -> tuple[Header, list[RawEntry]]:
    """Header and entries of a segment file. Raises Damaged."""
    try:
        line, _, stored = path.read_bytes().partition(b"\n")
        header = msgspec.json.decode(line[:_HEADER_MAX_BYTES], type=Header)
        if len(stored) != header.stored_bytes or xxh3_64_hexdigest(stored) != header.checksum:
            raise Damaged(f"segment {path.name} is damaged")
        entries = _decode_entries(pa.decompress(stored, header.entries_bytes, codec=_CODEC, asbytes=True))
    except OSError as error:
        raise Damaged(f"segment {path.name} cannot be read: {type(error).__name__}") from error
    except (msgspec.MsgspecError, pa.ArrowException, ValueError) as error:
        raise Damaged(f"segment {path.name} is damaged") from error
    if not entries or (len(entries), entries[-1][0].decode()) != (header.count, header.last):
        raise Damaged(f"segment {path.name} is damaged")
    return header, entries


def erase_voters(directory: Path, erased: Mapping[str, int]) -> tuple[int, list[str]]:
    """Blank voters' hashes (16 hex digits -> ms until which it is erased) in every segment below a spill directory, in
    votes that came into the log by then; (how many entries, names of the files that cannot be read).

    The votes stay, and count as before. A batch that the archive holds in memory at this moment still has the hash:
    erase in ClickHouse after it was committed. A damaged file is left alone: its entries cannot be archived from it.
    Raises OSError.
    """
    blank = b'"voter":"%s"' % ERASED.encode()
    known = [(b'"voter":"%s"' % voter.encode(), until_ms) for voter, until_ms in erased.items()]

    def erase(entry: RawEntry) -> RawEntry:
        raw_id, fields = entry
        if not fields.get(b"h", b"").startswith(b"vote "):
            return entry
        body = fields.get(b"d", b"")
        for voter, until_ms in known:
            if voter in body and parse_entry_id(raw_id).ms <= until_ms:
                body = body.replace(voter, blank)
        return entry if body is fields.get(b"d", b"") else (raw_id, {**fields, b"d": body})

    changed, damaged = 0, []
    for path in (*directory.rglob(f"*{SUFFIX}"), *directory.rglob(f"*{SUFFIX}{RETIRED}")):
        try:
            changed += rewrite(path, erase)
        except Damaged:
            if path.exists():  # and not archived and deleted meanwhile
                damaged.append(path.name)
    return changed, sorted(damaged)


def rewrite(path: Path, change: Callable[[RawEntry], RawEntry]) -> int:
    """Change entries of a segment, at once or not at all; how many differ. None is added, removed or renamed.

    A reader sees the old file or the new one. Raises Damaged and OSError.
    """
    header, entries = read_file(path)
    changed = [change(entry) for entry in entries]
    different = sum(new != old for new, old in zip(changed, entries, strict=True))
    if different:
        body = _compose(header.shard, header.log, header.epoch, header.first, header.last, changed)
        if not path.exists():  # archived and deleted meanwhile: nothing is left that could name anybody
            return 0
        _replace(path, body)
    return different


def _compose(shard: int, log: str, epoch: int, first: str, last: str, entries: Sequence[RawEntry]) -> bytes:
    plain = _encode_entries(entries)
    stored: bytes = pa.compress(plain, codec=_CODEC, asbytes=True)
    checksum = xxh3_64_hexdigest(stored)
    header = Header(shard, log, epoch, first, last, len(entries), len(plain), len(stored), checksum)
    return b"\n".join((msgspec.json.encode(header), stored))


def _replace(path: Path, body: bytes) -> None:
    """Write a file so that its name stands for all of it or for what it stood for before, also after a power cut."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_TEMPORARY}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        _unlink(temporary)
        raise
    _flush_directory(path.parent)


def _flush_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _identity(directory: Path) -> str:
    """What `store.id` says; written by whoever comes first, at once or not at all."""
    path = directory / "store.id"
    if not path.exists():
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_TEMPORARY}")
        temporary.write_text(secrets.token_hex(8))
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            _unlink(temporary)
        _flush_directory(directory)
    return path.read_text().strip()


def _retired(path: Path) -> Path:
    return path.with_name(path.name + RETIRED)


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # still there the next time


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:  # deleted meanwhile
        return 0


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
