"""Every setting: environment variable `ARENACAST_<FIELD>`, read once at start, checked as a whole.

A bad or missing one ends the process with one line naming it (`Fatal`). Nothing else in the project reads the
environment. Secrets are read from their files in the data directory when their variable is unset; `arenacast up`
writes those files at its first start.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote, urlsplit

import msgspec
from msgspec import Meta, Struct

from core.errors import Fatal

PREFIX = "ARENACAST_"
SECRETS = frozenset({"ingest_key", "voter_secret", "clickhouse_password", "analyst_password"})
"""Fields never printed; URLs are printed without their password."""

_SOCKET_PATH_MAX = 104  # sizeof(sun_path) on macOS, the smaller of the two systems

Secret = Literal["ingest_key", "voter_secret", "clickhouse_password", "analyst_password"]
Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[float, Meta(gt=0, le=1e9)]  # an upper bound, because "inf" is a number too


_SECRET_FILES: dict[Secret, str] = {
    "ingest_key": "ingest.key",
    "voter_secret": "voter.secret",
    "clickhouse_password": "clickhouse.key",
    "analyst_password": "analyst.key",
}


class Settings(Struct, frozen=True):
    """All settings, grouped by who uses them. Units are the last word of a name."""

    # -- everybody
    data_dir: Path = Path("data")  # where the embedded servers and the generated secrets live
    redis_url: str = ""  # empty = the embedded server's socket in data_dir
    clickhouse_url: str = ""  # empty = the embedded ClickHouse
    clickhouse_port: Port = 8123  # of the embedded ClickHouse, loopback
    clickhouse_password: str = ""  # of the embedded ClickHouse; empty = data_dir/clickhouse.key
    analyst_password: str = ""  # of its user `analyst`, read-only; empty = data_dir/analyst.key
    clickhouse_cluster: str = ""  # create Replicated tables ON CLUSTER this name; empty = one server, plain MergeTree
    shards: Annotated[int, Meta(ge=1, le=64)] | None = None  # None = what Redis knows, 4 at the first start
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    redis_maxmemory_mb: Annotated[int, Meta(ge=64)] = 2048  # budget of the embedded server; ingest refuses at 95 %

    # -- ingest
    ingest_host: str = "127.0.0.1"
    ingest_port: Port = 8081
    ingest_key: str = ""  # bearer key of the write side; empty = data_dir/ingest.key
    voter_secret: str = ""  # key of the voter hash; empty = data_dir/voter.secret
    ack: str = "fsync"  # what a 202 promises: fsync, replicas:N, memory
    vote_dedup_window_s: Annotated[int, Meta(ge=60)] = 3600  # a repeated event_id is harmless at least this long
    append_batch_max: Annotated[int, Meta(ge=1, le=1000)] = 500  # entries of one append call (Lua stack: < 8000 words)
    append_queue_max: Annotated[int, Meta(ge=1000)] = 50_000  # entries waiting per shard; beyond it 503

    # -- consumers
    metrics_host: str = "127.0.0.1"  # where the consumers serve /healthz, /readyz and /metrics

    # -- state consumer
    state_metrics_port: Port = 8082
    lease_ttl_s: Seconds = 3.0  # a dead owner's shard stands still this long
    apply_batch_max: Annotated[int, Meta(ge=1, le=2000)] = 500
    map_idle_s: Seconds = 6 * 3600.0  # a map without events for this long has ended
    final_retention_s: Annotated[int, Meta(ge=60)] = 30 * 24 * 3600  # final state stays readable
    events_retention_s: Seconds = 600.0  # kept in Redis although everybody has committed it
    updates_retention_s: Seconds = 1800.0  # how far back a reader may resume from Redis

    # -- archive consumer
    archive_metrics_port: Port = 8083
    archive_linger_s: Seconds = 1.0  # a part-filled batch is written after this
    archive_batch_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 50_000
    spill_dir: str = ""  # segment files while ClickHouse is away; empty = data_dir/spill; share it between machines
    spill_max_mb: Annotated[int, Meta(ge=0)] = 10_240  # disk budget of spill_dir; 0 = never spill
    spill_after_s: Seconds = 900.0  # what is not archived by then goes to disk, when the archive stands still
    spill_memory_percent: Annotated[int, Meta(ge=0, le=100)] = 60  # of Redis' maxmemory: above it spilling is not late
    reconcile_interval_s: Seconds = 60.0  # how often log, hot state, raw and aggregates are compared
    reconcile_window_s: Seconds = 900.0  # polls and matches that changed within this; `arenacast reconcile` takes all

    # -- ratings
    # `up` rates teams and gives live maps a prior. Off: that is an event in a match which its source never sent.
    elo: Literal["on", "off"] = "off"

    # -- backups
    backup_retention_days: Annotated[float, Meta(gt=0, le=36500)] = 30.0  # older ones go when a new one is complete

    # -- gateway
    gateway_host: str = "127.0.0.1"
    gateway_port: Port = 8080
    cors_origins: str = "*"  # comma list, for reading; writing allows none
    compression: Literal["off", "on"] = (
        "off"  # of streams, for clients that offer it: bandwidth for a little CPU a frame
    )
    heartbeat_s: Annotated[float, Meta(gt=0, le=15)] = 10.0  # contract: at least every 15 s
    flush_interval_ms: Annotated[float, Meta(ge=0, le=1000)] = 5.0  # while busy; the first message goes at once
    io_uring: Literal["auto", "off"] = "auto"  # auto: one system call for all sockets of a topic, where it is allowed
    ring_max_mb: Annotated[int, Meta(ge=1)] = 64  # messages kept for resuming, per shard and process
    subscriber_high_water_kb: Annotated[int, Meta(ge=1)] = 64  # unsent bytes above which a subscriber is lagging
    gateway_max_buffer_mb: Annotated[int, Meta(ge=8)] = 256  # unsent and catching up, all readers of a process
    lag_max_s: Seconds = 30.0  # lagging longer than this is an eviction
    replays_max: Annotated[int, Meta(ge=1)] = 32  # sent at once per process (each holds up to 4 MB); beyond it 503
    drain_s: Seconds = 5.0  # SIGTERM: connections are closed over this time

    @property
    def redis_socket(self) -> Path:
        """Unix socket of the embedded server; a short temporary path where that exceeds sun_path."""
        path = self.data_dir.absolute() / "redis.sock"
        if len(os.fsencode(path)) < _SOCKET_PATH_MAX:
            return path
        from hashlib import blake2b
        from tempfile import gettempdir

        name = blake2b(os.fsencode(path), digest_size=8).hexdigest()
        return Path(gettempdir()) / f"arenacast-{os.getuid()}-{name}.sock"

    @property
    def redis_target(self) -> str:
        """URL of the Redis to talk to."""
        return self.redis_url or f"unix://{quote(str(self.redis_socket))}"

    @property
    def clickhouse_target(self) -> str:
        """URL of the ClickHouse to talk to, credentials included. Raises Fatal when its password is not known."""
        if self.clickhouse_url:
            return self.clickhouse_url
        password = quote(self.secret("clickhouse_password"), safe="")
        return f"http://default:{password}@127.0.0.1:{self.clickhouse_port}/arenacast"

    @property
    def spill_path(self) -> Path:
        """Where segment files go."""
        return (Path(self.spill_dir) if self.spill_dir else self.data_dir / "spill").absolute()

    @property
    def ack_replicas(self) -> int:
        """N of `replicas:N`, 0 otherwise."""
        return int(self.ack.partition(":")[2] or 0)

    def secret(self, field: Secret) -> str:
        """A secret from its variable, or from its file in the data directory. Raises Fatal when there is neither."""
        value: str = getattr(self, field)
        if value:
            return value
        path = self.secret_file(field)
        try:
            value = path.read_text().strip()
        except (OSError, ValueError) as error:
            raise Fatal(f"{PREFIX}{field.upper()} is not set and {path} cannot be read") from error
        if not value:  # an empty key would let in everybody who sends an empty one
            raise Fatal(f"{PREFIX}{field.upper()} is not set and {path} is empty")
        return value

    def secret_file(self, field: Secret) -> Path:
        """Where `arenacast up` keeps a generated secret."""
        return self.data_dir / _SECRET_FILES[field]

    @property
    def voter_secrets_file(self) -> Path:
        """Earlier voter secrets, a line each, newest first: what joins old hashes to a known identity."""
        return self.data_dir / "voter.secrets"

    def voter_secrets(self) -> list[str]:
        """The voter secret and the earlier ones that were kept. Raises Fatal."""
        try:
            lines = self.voter_secrets_file.read_text().splitlines()
            earlier = [line.strip() for line in lines if line.strip()]
        except FileNotFoundError:
            earlier = []
        except (OSError, ValueError) as error:
            raise Fatal(f"{self.voter_secrets_file} cannot be read") from error
        return [self.secret("voter_secret"), *earlier]

    @property
    def backups_dir(self) -> Path:
        """Where the embedded ClickHouse's `Disk('backups', …)` is."""
        return self.data_dir / "backups"

    def public(self) -> dict[str, object]:
        """The settings as they may be printed: no secret, no password before the @ or in the query of a URL."""
        shown: dict[str, object] = {}
        for field in self.__struct_fields__:
            value = getattr(self, field)
            if field in SECRETS:
                value = "set" if value else "unset"
            elif field.endswith("_url") and value:
                url = urlsplit(value)
                value = url._replace(netloc=url.netloc.rpartition("@")[2], query="").geturl()
            shown[field] = str(value) if isinstance(value, Path) else value
        return shown


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Read and check the settings. Raises Fatal with one line naming the variable at fault."""
    environ = os.environ if environ is None else environ
    values = {
        name.removeprefix(PREFIX).lower(): value
        for name, value in environ.items()
        if name.startswith(PREFIX) and value != ""
    }
    try:
        settings = msgspec.convert(values, Settings, strict=False, dec_hook=lambda kind, value: kind(value))
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$.")
        raise Fatal(f"{PREFIX}{path.rstrip('`').upper()}: {reason}") from None
    _cross_check(settings)
    return settings


def unknown_variables(environ: Mapping[str, str] | None = None) -> list[str]:
    """Variables with our prefix that are no setting: probably a misspelling, so every process warns about them."""
    environ = os.environ if environ is None else environ
    known = {PREFIX + field.upper() for field in Settings.__struct_fields__}
    return sorted(name for name in environ if name.startswith(PREFIX) and name not in known)


def _cross_check(settings: Settings) -> None:
    kind, _, count = settings.ack.partition(":")
    if not (settings.ack in ("fsync", "memory") or (kind == "replicas" and count.isdecimal() and int(count) > 0)):
        raise Fatal(f"{PREFIX}ACK must be fsync, memory or replicas:N (N > 0), not {settings.ack!r}")
    if settings.redis_url:
        _check_redis_url(settings.redis_url)
    if settings.clickhouse_url:
        _check_url("CLICKHOUSE_URL", settings.clickhouse_url, ("http", "https"))
    for origin in filter(None, map(str.strip, settings.cors_origins.split(","))):
        if origin != "*" and not _ORIGIN.match(origin):
            raise Fatal(f"{PREFIX}CORS_ORIGINS: {origin!r} is no origin: * or scheme://host[:port], without a path")
    if settings.voter_secret and len(settings.voter_secret) < 16:
        raise Fatal(f"{PREFIX}VOTER_SECRET must have at least 16 characters")
    if settings.ingest_key and len(settings.ingest_key) < 8:
        raise Fatal(f"{PREFIX}INGEST_KEY must have at least 8 characters")


_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+\Z", re.IGNORECASE)


def _check_redis_url(url: str) -> None:
    scheme, path = _check_url("REDIS_URL", url, ("redis", "rediss", "unix"))
    if scheme == "unix":
        if len(path) < 2:
            raise Fatal(f"{PREFIX}REDIS_URL must name a socket: unix:///path")
    elif path not in ("", "/") and not path[1:].isdecimal():
        raise Fatal(f"{PREFIX}REDIS_URL: the path must be the number of a database")


def _check_url(name: str, url: str, schemes: tuple[str, ...]) -> tuple[str, str]:
    """(scheme, path). The message never quotes the URL: it may hold a password."""
    try:
        parts = urlsplit(url)
        if parts.scheme != "unix" and (parts.port == 0 or not parts.hostname):
            raise ValueError
    except ValueError:
        raise Fatal(f"{PREFIX}{name} has no usable host and port") from None
    if parts.scheme not in schemes:
        raise Fatal(f"{PREFIX}{name} must start with {', '.join(f'{scheme}://' for scheme in schemes)}")
    return parts.scheme, parts.path
