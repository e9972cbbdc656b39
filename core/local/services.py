"""Which processes make up a whole installation on one machine, in which order, and how each says that it is ready."""

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import msgspec

from core.errors import Fatal
from core.local import redis_server
from core.local.child import python_command, python_environment
from core.local.output import Say
from core.local.supervisor import Service
from core.settings import PREFIX, Settings

REDIS_READY_S = 600.0
"""Reading the append-only file takes about a second per 100 MB, and refusing to wait would not make it faster."""

CLICKHOUSE_READY_S = 120.0
MIGRATE_WITHIN_S = 300.0
SERVICE_READY_S = 60.0
_PREDECESSOR_S = 5.0  # the server of an `up` that was killed a moment ago is still on its way out
_ASK_TIMEOUT_S = 3.0
_POLL_S = 0.05


def stages(settings: Settings, *, is_demo: bool) -> list[list[Service]]:
    """Services by stage of the start. `settings` are complete: every secret and every port is set."""
    environ = python_environment(environment(settings, os.environ))
    reader, writer = reachable_host(settings.gateway_host), reachable_host(settings.ingest_host)
    consumer = reachable_host(settings.metrics_host)

    def ours(*arguments: str, name: str, host: str, port: int, stop_within_s: float = 10.0) -> Service:
        return Service(
            name, python_command(*arguments), environ, is_ready=_http(host, port, "/readyz"),
            ready_within_s=SERVICE_READY_S, stop_within_s=stop_within_s,
        )  # fmt: skip

    result = servers(settings)
    result.append([
        Service("migrate", python_command("migrate"), environ, ready_within_s=MIGRATE_WITHIN_S, is_task=True)
    ])  # fmt: skip
    result.append([
        ours("consume", "state", name="state", host=consumer, port=settings.state_metrics_port),
        ours("consume", "archive", name="archive", host=consumer, port=settings.archive_metrics_port),
        ours("ingest", name="ingest", host=writer, port=settings.ingest_port),
        ours("gateway", name="gateway", host=reader, port=settings.gateway_port, stop_within_s=settings.drain_s + 5.0),
    ])  # fmt: skip
    if settings.elo == "on":  # nobody waits for it: without it predictions start from one half
        command = python_command("elo", "--follow", "--to", url(writer, settings.ingest_port))
        result.append([Service("elo", command, environ)])
    if is_demo:
        result.append([Service("demo", python_command("demo", "--to", url(writer, settings.ingest_port)), environ)])
    return result


def servers(settings: Settings) -> list[list[Service]]:
    """The embedded servers, by stage: those whose URL is not set."""
    environ = python_environment(environment(settings, os.environ))
    found: list[list[Service]] = []
    if not settings.redis_url:
        found.append([_redis(settings)])
    if not settings.clickhouse_url:
        ping = _http("127.0.0.1", settings.clickhouse_port, "/ping")
        found.append(
            [Service("clickhouse", python_command("clickhouse"), environ, ping, None, CLICKHOUSE_READY_S, 20.0)]
        )
    return found


_PORTS = ("ingest_port", "gateway_port", "clickhouse_port", "state_metrics_port", "archive_metrics_port")


def resolve_ports(settings: Settings, say: Say) -> Settings:
    """The settings with every port known to be free; 0 is replaced by one.

    Raises Fatal naming the setting when a port that others rely on is taken, or asked for twice. A taken port for the
    metrics of a consumer is replaced, because nobody should be kept from starting by it.
    """
    asked: dict[int, str] = {}
    for field in _PORTS:
        port = getattr(settings, field)
        if port and not (field == "clickhouse_port" and settings.clickhouse_url):
            first = asked.setdefault(port, field)
            if first != field:
                raise Fatal(f"{PREFIX}{first.upper()} and {PREFIX}{field.upper()} are both {port}")
    changed: dict[str, int] = {
        "ingest_port": _port(settings.ingest_host, settings.ingest_port, "ingest_port"),
        "gateway_port": _port(settings.gateway_host, settings.gateway_port, "gateway_port"),
    }
    if not settings.clickhouse_url:
        changed["clickhouse_port"] = _port("127.0.0.1", settings.clickhouse_port, "clickhouse_port")
    for field in ("state_metrics_port", "archive_metrics_port"):
        try:
            changed[field] = _port(settings.metrics_host, getattr(settings, field), field)
        except Fatal as error:
            changed[field] = _port(settings.metrics_host, 0, field)
            say(f"{error}; using {changed[field]}")
    return msgspec.structs.replace(settings, **changed)


def environment(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` with the settings, and no others of ours, in it: what `core.settings.load` reads as equal settings."""
    result = {name: value for name, value in environ.items() if not name.startswith(PREFIX)}
    for field in settings.__struct_fields__:
        value = getattr(settings, field)
        if isinstance(value, Path):
            value = value.absolute()
        if value is not None and value != "":
            result[PREFIX + field.upper()] = str(value)
    return result


def url(host: str, port: int) -> str:
    """Base URL of a service of ours."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def reachable_host(host: str) -> str:
    """Where a server that listens on `host` can be asked from this machine."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound


def _redis(settings: Settings) -> Service:
    async def prepare() -> None:
        deadline = asyncio.get_running_loop().time() + _PREDECESSOR_S
        while True:
            try:
                return redis_server.prepare(settings)
            except Fatal:
                if asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(_POLL_S)

    async def is_ready() -> bool:
        return await asyncio.to_thread(redis_server.answers, settings.redis_socket)

    environ = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return Service("redis", redis_server.command(settings), environ, is_ready, prepare, REDIS_READY_S, 60.0)


def _http(host: str, port: int, path: str) -> Callable[[], Awaitable[bool]]:
    async def answers_200() -> bool:
        try:
            return await asyncio.wait_for(_status(host, port, path), _ASK_TIMEOUT_S) == 200
        except (OSError, TimeoutError, ValueError):
            return False

    return answers_200


async def _status(host: str, port: int, path: str) -> int:
    """Status of a GET. Ten lines instead of a client library, whose import would be most of our own start."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
        return int((await reader.readline()).split(b" ", 2)[1])
    except IndexError:
        return 0
    finally:
        writer.close()


def _port(host: str, port: int, field: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: a port in TIME_WAIT is free
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            reason = "is in use by another program" if error.errno == errno.EADDRINUSE else f"cannot be bound: {error}"
            raise Fatal(f"{PREFIX}{field.upper()}: port {port} of {host} {reason}") from error
        return int(probe.getsockname()[1])
