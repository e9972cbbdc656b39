"""The ClickHouse engine inside this process (chdb-core), and everything that knows it.

One engine and one data directory per process. The engine is loaded when it is opened, not when this module is imported.
"""

import fcntl
import os
from collections.abc import Mapping
from contextlib import chdir
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from clickhouse.embedded.request import quote
from clickhouse.embedded.users import ANALYST, DEFAULT_USER
from core import logs
from core.errors import Fatal

SERIES = "26.9."
"""Version of the engine this package was written and tested for: it leans on details that no interface promises."""

_HERE = Path(__file__).parent

# As a server would have them: no `SELECT` supplied where it is missing, no functions that show the process's memory.
_SESSION_SETTINGS = "implicit_select=0&allow_introspection_functions=0"


class Result(Protocol):
    """What a statement gave."""

    def bytes(self) -> bytes: ...
    def has_error(self) -> bool: ...
    def error_message(self) -> str: ...
    def rows_read(self) -> int: ...
    def bytes_read(self) -> int: ...
    def rows_written(self) -> int: ...
    def bytes_written(self) -> int: ...
    def storage_rows_read(self) -> int: ...
    def storage_bytes_read(self) -> int: ...


class Connection(Protocol):
    """A connection of chdb: one statement at a time. The calls release the interpreter's lock; errors are RuntimeError
    with the text of ClickHouse's exception."""

    def query(self, sql: bytes | str, format: str = ..., *, params: Mapping[str, str] = ...) -> Result: ...
    def send_query(self, sql: bytes | str, format: str = ..., *, params: Mapping[str, str] = ...) -> object: ...
    def streaming_fetch_result(self, stream: object) -> Result | None: ...
    def streaming_cancel_query(self, stream: object) -> None: ...
    def send_insert(self, sql: bytes | str, format: str = ...) -> object: ...
    def insert_append(self, insert: object, data: bytes) -> None: ...
    def insert_done(self, insert: object) -> Result: ...
    def insert_cancel(self, insert: object) -> None: ...
    def classify_query(self, sql: bytes | str, target_database: str = ...) -> dict[str, Any]: ...
    def close(self) -> None: ...


class Classification(NamedTuple):
    """The engine's own opinion of a text, without running it."""

    kind: str
    """READ_ONLY, MUTATING, MUTATING_GLOBAL, CONTROL, or UNKNOWN when it does not parse."""
    statements: int


class Engine:
    """An open engine. Thread-safe; a connection is not."""

    def __init__(self, data_dir: Path, backups_dir: Path) -> None:
        """Open the data in `data_dir`, which is created when missing. BACKUP and RESTORE reach `backups_dir` only.

        Raises Fatal when another process has it open, when it was written by a newer engine, or when the engine is not
        the one this was made for.
        """
        self._path = data_dir.absolute()
        self._backups = backups_dir.absolute()
        for path in (self._path, self._backups, _HERE):
            if any(character in str(path) for character in "?&"):  # they separate the arguments of a connect string
                raise Fatal(f"the ClickHouse engine cannot use a path with ? or & in it: {path}")
        self._analyst_settings = ""
        self._prepare_directories()
        self._lock = self._take_lock()
        try:
            self._chdb = self._load()
            self._root = self._open()
        except BaseException:
            self._lock.close()
            raise

    def connect(self, user: str = DEFAULT_USER) -> Connection:
        """A connection with settings, current database and temporary tables of its own. Takes 0.1 ms.

        The engine has one user with all rights; for `analyst` the connection gives up all but the role's, and takes on
        the bounds of the profile. It could take the role back itself, so an analyst's statements must be READ_ONLY
        (`execution` sees to that).
        """
        connection: Connection = self._chdb.connect(f"{self._path}?{_SESSION_SETTINGS}")
        if user == ANALYST:
            try:
                self._bind_analyst(connection)
            except BaseException:
                connection.close()
                raise
        return connection

    def _bind_analyst(self, connection: Connection) -> None:
        connection.query(f"SET profile = '{ANALYST}'")
        if not self._analyst_settings:  # the engine takes a profile's constraints and leaves its values
            found = connection.query("SELECT name, max FROM system.settings WHERE max != ''", "TabSeparated").bytes()
            bounds = dict(line.split("\t") for line in found.decode().splitlines())
            self._analyst_settings = ", ".join(f"{name} = {quote(bound)}" for name, bound in bounds.items())
        connection.query(f"SET {self._analyst_settings}")
        connection.query(f"SET ROLE {ANALYST}")
        connection.query("SET readonly = 2")

    def cancel(self, tag: str) -> None:
        """Cancel what runs with `log_comment = tag`; takes effect within a block of data."""
        self._kill(f"Settings['log_comment'] = {quote(tag)}")

    def cancel_all(self) -> None:
        """Cancel everything that runs."""
        self._kill("query_id != queryID()")

    def close(self) -> None:
        """Close the data. All connections must have been closed."""
        self._root.close()
        self._lock.close()

    def _kill(self, condition: str) -> None:
        connection = self.connect()
        try:
            connection.query(f"KILL QUERY WHERE {condition} ASYNC FORMAT Null")
        finally:
            connection.close()

    def _prepare_directories(self) -> None:
        for path, purpose in ((self._path, "data"), (self._backups, "backups")):
            try:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
                path.chmod(0o700)  # it may have been there
            except OSError as error:
                raise Fatal(f"cannot use {path} for ClickHouse's {purpose}: {error.strerror}") from error

    def _take_lock(self) -> IO[str]:
        """A lock of our own in front of the engine's, to say whose the directory is; the kernel frees it."""
        path = self._path / "arenacast.lock"
        lock = path.open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = path.read_text().strip() or "?"
            lock.close()
            raise Fatal(f"ClickHouse's data in {self._path} is in use by another process (pid {owner})") from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        return lock

    def _load(self) -> Any:
        with chdir(self._path):  # a config.xml in the working directory would be taken for the engine's
            try:
                from chdb import _chdb
            except ImportError as error:
                raise Fatal(f"the ClickHouse engine cannot be loaded: {error}") from error
        return _chdb

    def _open(self) -> Connection:
        arguments = (
            f"config-file={_HERE / 'server.xml'}&users_config={_HERE / 'users.xml'}"
            f"&storage_configuration.disks.backups.path={self._backups}/"
        )
        marker = self._path / "engine.version"
        written_by = marker.read_text().strip() if marker.exists() else ""
        try:
            root: Connection = self._chdb.connect(f"{self._path}?{arguments}")
        except RuntimeError as error:
            raise Fatal(f"ClickHouse's data in {self._path} cannot be opened, see the line above") from error
        try:
            self.version, self.timezone = (
                root.query("SELECT version(), timezone()", "TabSeparated").bytes().decode().split()
            )
            if not self.version.startswith(SERIES):
                raise Fatal(f"the ClickHouse engine is {self.version}, needed is {SERIES}x: install chdb-core 26.9.0")
            if _numbers(written_by) > _numbers(self.version):
                raise Fatal(f"the data in {self._path} was written by ClickHouse {written_by}, this is {self.version}")
            self._replace_default_database(root)
            if written_by != self.version:
                marker.write_text(self.version + "\n")
        except BaseException:
            root.close()
            raise
        return root

    def _replace_default_database(self, root: Connection) -> None:
        """Make `default` a plain database.

        As a local tool the engine puts its file system behind that database, so that a name that is no table is
        looked for as a file; every unknown table would then be a missing grant to read files.
        """
        metadata = self._path / "metadata"
        if not any((metadata / "default").glob("*.sql")):
            root.query("DROP DATABASE default")
            root.query("CREATE DATABASE default ENGINE = Atomic")
        elif (metadata / "default.sql").exists():
            root.query(
                "DETACH DATABASE default SETTINGS check_table_dependencies=0, check_referential_table_dependencies=0"
            )
            root.query("ATTACH DATABASE default")
        else:
            logs.get().warning("database default was made by another program and stays as it is")


def classify(connection: Connection, sql: bytes) -> Classification:
    """What the engine thinks a text would do."""
    found = connection.classify_query(sql)
    return Classification(found["query_class"].name, found["statement_count"])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())
