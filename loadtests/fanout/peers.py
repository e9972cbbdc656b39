"""The servers that are measured: each a real process on the server's core, on a free port of loopback, ended by pid."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import psutil
from msgspec import Struct

from core.errors import Fatal
from core.local import launch
from core.settings import Settings
from loadtests.fanout import message
from loadtests.fanout.message import Variant
from loadtests.fanout.plan import Transport
from loadtests.fanout.publish import Feed, FloorFeed, HttpFeed, LogFeed, PubSubFeed, UnreadFeed
from loadtests.fanout.usage import Placement

Name = Literal["arenacast", "arenacast-write", "floor", "nchan", "starlette"]
"""`arenacast-write` is the gateway where the kernel offers no io_uring: a system call per socket."""

OURS = ("arenacast", "arenacast-write")

STARTS_WITHIN_S = 20.0
STOPS_WITHIN_S = 5.0
SHARDS = 4
NGINX = Path("/usr/sbin/nginx")
NCHAN_MODULES = ("/usr/lib/nginx/modules/ngx_nchan_module.so", "/usr/lib64/nginx/modules/ngx_nchan_module.so")


class Peer(Struct):
    """A running server."""

    name: Name
    pid: int
    port: int
    path: Callable[[Transport, Variant], str]
    feed: Callable[[Transport, Variant], Feed]


class Ground(Struct):
    """What the servers stand on."""

    directory: Path
    floor: Path
    redis_socket: Path
    placement: Placement
    descriptors: int


def missing(name: Name) -> str:
    """Why a peer cannot be measured here; empty when it can."""
    if name == "nchan":
        if not NGINX.exists():
            return "no /usr/sbin/nginx (Debian: apt install nginx libnginx-mod-nchan)"
        if not nchan_module():
            return "nginx has no nchan module (Debian: apt install libnginx-mod-nchan)"
    return ""


def nchan_module() -> str:
    """Path of nginx's module, empty where there is none."""
    return next((path for path in NCHAN_MODULES if Path(path).exists()), "")


@contextmanager
def running(name: Name, ground: Ground) -> Iterator[Peer]:
    """Start one of them, and end it at the end. Raises Fatal when it does not start."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    starters = {
        "arenacast": _arenacast,
        "arenacast-write": _arenacast_write,
        "floor": _floor,
        "nchan": _nchan,
        "starlette": _starlette,
    }
    with starters[name](ground, port) as peer:
        yield peer


@contextmanager
def _arenacast(ground: Ground, port: int, name: Name = "arenacast", io_uring: str = "auto") -> Iterator[Peer]:
    settings = {
        "DATA_DIR": str(ground.directory / "data"),
        "REDIS_URL": f"unix://{ground.redis_socket}",
        "CLICKHOUSE_URL": "http://default:none@127.0.0.1:9/arenacast",  # only asked about a past that is not in Redis
        "GATEWAY_PORT": str(port),
        "SHARDS": str(SHARDS),
        "LOG_LEVEL": "warning",
        "IO_URING": io_uring,
    }
    settings = {f"ARENACAST_{name}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "core.cli", "gateway"]

    def path(transport: Transport, variant: Variant) -> str:
        return f"/api/v1/{'stream' if transport == 'sse' else 'ws'}?topics={message.topics(variant)}"

    def feed(_transport: Transport, variant: Variant) -> Feed:
        where = str(ground.redis_socket)
        return UnreadFeed(where, SHARDS) if variant == "unread" else LogFeed(where, variant, SHARDS)

    with _process(name, command, ground, port, {**settings, **_overrides()}) as pid:
        yield Peer(name, pid, port, path, feed)


@contextmanager
def _arenacast_write(ground: Ground, port: int) -> Iterator[Peer]:
    with _arenacast(ground, port, "arenacast-write", "off") as peer:
        yield peer


def _overrides() -> dict[str, str]:
    """Settings of the gateway's fan-out that the caller's environment changes, to measure their effect."""
    names = [f"ARENACAST_{name}" for name in Settings.__struct_fields__]
    return {name.upper(): os.environ[name.upper()] for name in names if name.upper() in os.environ}


@contextmanager
def _floor(ground: Ground, port: int) -> Iterator[Peer]:
    def feed(transport: Transport, _variant: Variant) -> Feed:
        return FloorFeed(port, message.sse if transport == "sse" else message.ws)

    with _process("floor", [str(ground.floor), str(port)], ground, port) as pid:
        yield Peer("floor", pid, port, lambda _transport, _variant: "/", feed)


@contextmanager
def _starlette(ground: Ground, port: int) -> Iterator[Peer]:
    command = [sys.executable, "-m", "loadtests.fanout.app", str(port), str(ground.redis_socket)]
    with _process("starlette", command, ground, port) as pid:
        yield Peer(
            "starlette",
            pid,
            port,
            lambda transport, _: f"/{transport}",
            lambda *_: PubSubFeed(str(ground.redis_socket)),
        )


@contextmanager
def _nchan(ground: Ground, port: int) -> Iterator[Peer]:
    directory = ground.directory / "nchan"
    directory.mkdir(exist_ok=True)
    (directory / "nginx.conf").write_text(_nginx_config(directory, port, ground.descriptors))
    command = [str(NGINX), "-p", str(directory), "-c", "nginx.conf", "-e", str(directory / "error.log")]
    with _process("nchan", command, ground, port) as pid:
        worker = psutil.Process(pid).children()[0].pid
        yield Peer("nchan", worker, port, lambda _transport, _variant: "/sub", lambda *_: HttpFeed(port, "/pub"))


def _nginx_config(directory: Path, port: int, descriptors: int) -> str:
    """One worker, no logs, no timeouts in the way; everything else as Debian and nchan have it by default."""
    user = "user root;" if os.getuid() == 0 else ""
    paths = "".join(
        f"{name}_temp_path {directory}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""load_module {nchan_module()};
{user} daemon off; worker_processes 1; pid {directory}/nginx.pid; worker_rlimit_nofile {descriptors};
error_log {directory}/error.log crit;
events {{ worker_connections {descriptors - 100}; }}
http {{
  access_log off; {paths} keepalive_requests 100000000; keepalive_timeout 600s;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location = /pub {{ nchan_publisher; nchan_channel_id bench; }}
    location = /sub {{
      nchan_subscriber eventsource websocket; nchan_channel_id bench; nchan_subscriber_first_message newest;
    }}
  }}
}}
"""


@contextmanager
def _process(
    name: Name, command: list[str], ground: Ground, port: int, settings: Mapping[str, str] | None = None
) -> Iterator[int]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ARENACAST_")}
    environment |= settings or {}
    with (ground.directory / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            launch.wrap(command),
            stdout=log,
            stderr=log,
            env=environment,
            preexec_fn=ground.placement.server,  # noqa: PLW1509 - no other thread of ours runs now
        )
    try:
        _await_port(name, process, port, ground.directory / f"{name}.log")
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(STOPS_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_port(name: Name, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise Fatal(f"{name} did not start: {log.read_text()[-1000:]}") from error
            time.sleep(0.05)
