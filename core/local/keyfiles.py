"""The secrets a first start generates, kept in the data directory for the next one and for whoever sends votes."""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from core.errors import Fatal
from core.settings import PREFIX, Secret, Settings

_FIELDS: tuple[Secret, ...] = ("ingest_key", "voter_secret", "clickhouse_password", "analyst_password")
_BYTES = 24  # 192 bits, 32 characters


def make_data_dir(settings: Settings) -> None:
    """Create the data directory, for this user only. Raises Fatal when that is not possible."""
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Fatal(f"{PREFIX}DATA_DIR: {settings.data_dir} cannot be created: {error.strerror}") from error


@contextmanager
def locked(settings: Settings) -> Iterator[None]:
    """Hold the data directory: two supervisors on one append-only file would destroy it.

    A lock of the kernel and not a file that exists, so that kill -9 leaves nothing to clean up. Raises Fatal when
    another `arenacast up` holds it.
    """
    descriptor = os.open(settings.data_dir / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Fatal(f"another `arenacast up` runs on {settings.data_dir} ({PREFIX}DATA_DIR)") from None
        yield
    finally:
        os.close(descriptor)


def with_secrets(settings: Settings) -> Settings:
    """The settings with every secret set: from its variable, else from its file, which is written when missing."""
    values = {field: _read_or_create(settings, field) for field in _FIELDS}
    return msgspec.structs.replace(settings, **values)


def _read_or_create(settings: Settings, field: Secret) -> str:
    path = settings.secret_file(field)
    if not getattr(settings, field) and not path.exists():
        write_secret(path, secrets.token_urlsafe(_BYTES))
    return settings.secret(field)


def write_secret(path: Path, value: str) -> None:
    """All of it or nothing, whatever interrupts us: a new voter secret would count everybody's votes again."""
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(value + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
