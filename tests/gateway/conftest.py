"""Fixtures of the read side: an output log to write, and gateways with either kind of sink."""

from collections.abc import Iterator

import pytest

from core.settings import Settings
from tests.gateway.output_log import OutputLog
from tests.gateway.server import Gateway, Kind, running_gateway


@pytest.fixture
def log(redis_url: str) -> Iterator[OutputLog]:
    """What the state consumer would write."""
    writer = OutputLog(redis_url)
    yield writer
    writer.close()


@pytest.fixture(params=["takeover", "plain"])
def sink(request: pytest.FixtureRequest) -> Kind:
    """Every contract test runs over both."""
    kind: Kind = request.param
    return kind


@pytest.fixture
def gateway(settings: Settings, log: OutputLog, sink: Kind) -> Iterator[Gateway]:
    """A gateway whose heartbeats come quickly."""
    with running_gateway(settings, sink, heartbeat_s=0.9) as running:
        yield running
