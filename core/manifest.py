"""A backup as it lies on disk: a directory with a name of its time, and what must be in it.

    <directory>/<name>/manifest.json     this, written last: a directory without it is no backup
    <directory>/<name>/redis.rdb         the whole log and hot state, as of one moment
    <directory>/<name>/clickhouse/       ClickHouse's own BACKUP, begun after that moment
    <directory>/<name>/spill/            segments of the log that lay on disk, if any
    <directory>/erased.list              voters erased since (see `core.erasures`), applied at every restore

An incremental backup holds what changed since its base, which lies beside it and is needed to restore it.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from core.errors import Fatal

FORMAT = 1
MANIFEST = "manifest.json"
RDB = "redis.rdb"
CLICKHOUSE = "clickhouse"
SPILL = "spill"
TO_KEEP = ("ARENACAST_VOTER_SECRET (voter.secret, voter.secrets)", "ARENACAST_INGEST_KEY (ingest.key)", "passwords")
"""What is in no backup, and what a restored installation needs to recognise the same voters and senders."""

_CHUNK = 1 << 20


class File(Struct, frozen=True):
    """One file of a backup, relative to its directory."""

    path: str
    bytes: int
    sha256: str


class Manifest(Struct, frozen=True):
    """What a backup holds. `base` is the name of the backup it builds upon, "" for a full one."""

    format: int
    name: str
    created_ms: int
    version: str
    log_id: str
    shards: int
    base: str
    databases: list[str]
    has_clickhouse_files: bool
    """False when ClickHouse's part stayed on the disk of a server elsewhere, under the same name."""
    settings: dict[str, object]
    to_keep: list[str]
    files: list[File]


def describe_files(directory: Path) -> list[File]:
    """Every file below a directory, with its checksum; each is flushed to disk on the way."""
    return [File(path, *_digest(directory / path, is_flushed=True)) for path in _paths(directory)]


def write(directory: Path, manifest: Manifest) -> None:
    """Complete a backup: the manifest, durably."""
    path = directory / MANIFEST
    with path.open("xb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(manifest)))
        file.flush()
        os.fsync(file.fileno())
    flush_directory(directory)


def flush_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(directory: Path) -> Manifest:
    """The manifest of a backup. Raises Fatal when there is none, or of another format."""
    try:
        manifest = msgspec.json.decode((directory / MANIFEST).read_bytes(), type=Manifest)
    except OSError as error:
        raise Fatal(f"{directory} is no complete backup: {MANIFEST} cannot be read ({error.strerror})") from error
    except msgspec.MsgspecError as error:
        raise Fatal(f"{directory / MANIFEST} is damaged: {error}") from error
    if manifest.format != FORMAT:
        raise Fatal(f"{directory} is of format {manifest.format}, this version reads {FORMAT}")
    return manifest


def chain(directory: Path) -> list[tuple[Path, Manifest]]:
    """A backup and those it builds upon, itself first. Raises Fatal when one is missing."""
    found: list[tuple[Path, Manifest]] = []
    while True:
        manifest = read(directory)
        if manifest.name != directory.name:
            raise Fatal(f"{directory} was made as {manifest.name}: give it its name back, others build upon it")
        found.append((directory, manifest))
        if not manifest.base:
            return found
        directory = directory.parent / manifest.base
        if len(found) > 1000:
            raise Fatal(f"the bases of {found[0][0]} form a circle")


def verify(directory: Path) -> list[tuple[Path, Manifest]]:
    """`chain`, every file of it compared with its checksum. Raises Fatal naming the first that differs."""
    found = chain(directory)
    for place, manifest in found:
        known = {file.path: file for file in manifest.files}
        present = set(_paths(place)) - {MANIFEST}
        for path in sorted(known.keys() | present):
            if path not in known:
                raise Fatal(f"{place / path} does not belong to the backup")
            if path not in present:
                raise Fatal(f"{place / path} is missing from the backup")
            if _digest(place / path, is_flushed=False) != (known[path].bytes, known[path].sha256):
                raise Fatal(f"{place / path} is damaged: it is not what the manifest says")
    return found


def complete_backups(directory: Path) -> list[tuple[Path, Manifest]]:
    """The complete backups of a directory, oldest first."""
    found = []
    for path in sorted(directory.iterdir()) if directory.is_dir() else []:
        if (path / MANIFEST).is_file() and not path.is_symlink():
            found.append((path, read(path)))
    return sorted(found, key=lambda one: one[1].created_ms)


def expired(backups: list[tuple[Path, Manifest]], older_than_ms: int) -> list[Path]:
    """Backups made before an instant that no younger one builds upon."""
    needed: set[str] = set()
    for _, manifest in reversed(backups):
        if manifest.created_ms >= older_than_ms or manifest.name in needed:
            needed |= {manifest.name, manifest.base}
    return [path for path, manifest in backups if manifest.name not in needed]


def _paths(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def _digest(path: Path, *, is_flushed: bool) -> tuple[int, str]:
    total, digest = 0, hashlib.sha256()
    with path.open("rb") as file:
        for chunk in _chunks(file):
            total += len(chunk)
            digest.update(chunk)
        if is_flushed:
            os.fsync(file.fileno())
    return total, digest.hexdigest()


def _chunks(file: object) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):  # type: ignore[attr-defined]
        yield chunk
