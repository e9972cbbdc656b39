"""Fixtures of every test: real servers, settings for a temporary data directory, and a check that nothing is left."""

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import structlog
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from core.settings import Settings
from tests.support.clickhouse_server import ClickHouseServer, running_clickhouse
from tests.support.migrated import Schema
from tests.support.ports import free_port as _free_port
from tests.support.processes import adopt_orphans, descendants
from tests.support.redis_server import RedisServer, running_redis
from tests.support.waiting import wait_until_sync

# A generated example has no deadline: on a busy machine it would be a timed test.
hypothesis_settings.register_profile("arenacast", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("arenacast")


# A process that configures its logs writes tracebacks as text. structlog's own default draws each with all its local
# variables, which takes a busy machine a second per error, in the event loop under test.
structlog.configure(
    processors=[
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper("%H:%M:%S", utc=True),
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)


@pytest.fixture(scope="session", autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Fail the run when a test started a process that is still there at the end of it (Linux).

    Processes whose parent has died count too: they become children of this one instead of the system's.
    """
    adopt_orphans()
    yield
    before = descendants(os.getpid())
    if before:
        warnings.warn(f"still running at the end: {before}", stacklevel=1)
    wait_until_sync(lambda: not descendants(os.getpid()), 5.0, f"child processes have ended: {before}")


@pytest.fixture(scope="session")
def redis_server(no_process_is_left: None) -> Iterator[RedisServer]:
    """The session's Valkey. Tests that stop or restart a server start their own with `running_redis`."""
    directory = Path(tempfile.mkdtemp(prefix="ac-redis-"))
    try:
        with running_redis(directory) as server:
            yield server
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """URL of a server without data and without scripts."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        client.script_flush()
        client.config_resetstat()
    return redis_server.url


@pytest.fixture(scope="session")
def clickhouse_server(no_process_is_left: None) -> Iterator[ClickHouseServer]:
    """The session's embedded ClickHouse. Tests that stop or fill a server start their own with `running_clickhouse`."""
    directory = Path(tempfile.mkdtemp(prefix="ac-clickhouse-"))
    try:
        with running_clickhouse(directory / "data") as server:
            yield server
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def schema(clickhouse_server: ClickHouseServer) -> Schema:
    """Makes migrated databases on any server."""
    return Schema(clickhouse_server)


@pytest.fixture
def clickhouse_url(clickhouse_server: ClickHouseServer) -> str:
    """URL of the session's ClickHouse; the database it names does not exist."""
    return clickhouse_server.target()


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> Settings:
    """Settings of a whole installation: empty Redis, temporary data directory, known secrets, free ports."""
    return Settings(
        data_dir=tmp_path / "data",
        redis_url=redis_url,
        ingest_key="test-ingest-key",
        voter_secret="test-voter-secret-0123456789",
        clickhouse_password="test-clickhouse-password",
        ingest_port=_free_port(),
        gateway_port=_free_port(),
        clickhouse_port=_free_port(),
        state_metrics_port=0,
        archive_metrics_port=0,
    )


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Gives a free port at each call."""
    return _free_port
