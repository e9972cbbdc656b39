"""Which processes `arenacast up` runs with which settings."""

import socket
from pathlib import Path

import msgspec
import pytest

from core.errors import Fatal
from core.local import up
from core.local.services import reachable_host, resolve_ports, stages, url
from core.settings import Settings
from tests.support.ports import free_port as _free_port

SECRETS = {
    "ingest_key": "secret-of-ingest",
    "voter_secret": "secret-of-all-the-voters",
    "clickhouse_password": "secret-ch",
}
FREE = {
    "ingest_port": 0, "gateway_port": 0, "clickhouse_port": 0, "state_metrics_port": 0, "archive_metrics_port": 0,
}  # fmt: skip


@pytest.fixture
def complete(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, **SECRETS, **FREE)  # type: ignore[arg-type]


def names(settings: Settings, *, is_demo: bool = False) -> list[list[str]]:
    return [[service.name for service in stage] for stage in stages(settings, is_demo=is_demo)]


def test_everything_is_started_in_the_order_of_its_needs(complete: Settings) -> None:
    assert names(complete, is_demo=True) == [
        ["redis"], ["clickhouse"], ["migrate"], ["state", "archive", "ingest", "gateway"], ["demo"],
    ]  # fmt: skip


def test_server_that_is_given_by_its_url_is_not_started(complete: Settings) -> None:
    given = msgspec.structs.replace(complete, redis_url="redis://r", clickhouse_url="http://c")
    assert names(given) == [["migrate"], ["state", "archive", "ingest", "gateway"]]


def test_teams_are_rated_where_that_is_wanted(complete: Settings) -> None:
    assert names(msgspec.structs.replace(complete, elo="on"))[-1] == ["elo"]


def test_secrets_travel_in_the_environment_and_never_in_arguments(complete: Settings) -> None:
    for stage in stages(complete, is_demo=True):
        for service in stage:
            assert not [word for word in service.command if "secret-" in word]
            found = {name for name, value in service.environ.items() if "secret-" in value}
            assert len(found) == (0 if service.name == "redis" else 3), "a foreign program gets none of them"


def test_port_0_becomes_a_free_one_of_each(complete: Settings) -> None:
    resolved = resolve_ports(complete, print)
    ports = [getattr(resolved, field) for field in FREE]
    assert all(ports)
    assert len(set(ports)) == len(ports)


@pytest.mark.parametrize("field", ["ingest_port", "gateway_port", "clickhouse_port"])
def test_taken_port_is_fatal_and_named(complete: Settings, field: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Fatal, match=f"ARENACAST_{field.upper()}: port {port} of 127.0.0.1 is in use"):
            resolve_ports(msgspec.structs.replace(complete, **{field: port}), print)


def test_one_port_asked_for_twice_is_fatal_and_both_are_named(complete: Settings) -> None:
    """Otherwise the one that came first would answer the other's readiness check."""
    port = _free_port()
    same = msgspec.structs.replace(complete, ingest_port=port, gateway_port=port)
    with pytest.raises(Fatal, match="ARENACAST_INGEST_PORT and ARENACAST_GATEWAY_PORT"):
        resolve_ports(same, print)


def test_taken_port_for_metrics_is_replaced_and_said(complete: Settings) -> None:
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        resolved = resolve_ports(msgspec.structs.replace(complete, state_metrics_port=port), said.append)
    assert resolved.state_metrics_port not in (0, port)
    assert said == [
        f"ARENACAST_STATE_METRICS_PORT: port {port} of 127.0.0.1 is in use by another program; "
        f"using {resolved.state_metrics_port}"
    ]


def test_clickhouse_port_does_not_matter_when_clickhouse_is_elsewhere(complete: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        elsewhere = msgspec.structs.replace(complete, clickhouse_url="http://c", clickhouse_port=taken.getsockname()[1])
        resolve_ports(elsewhere, print)


def test_host_that_cannot_be_bound_is_fatal_and_named(complete: Settings) -> None:
    with pytest.raises(Fatal, match=r"ARENACAST_GATEWAY_PORT: port 0 of 203\.0\.113\.1 cannot be bound"):
        resolve_ports(msgspec.structs.replace(complete, gateway_host="203.0.113.1"), print)


def test_server_on_every_interface_is_reached_on_loopback() -> None:
    assert [reachable_host(host) for host in ("0.0.0.0", "::", "", "192.0.2.1")] == [
        "127.0.0.1", "::1", "127.0.0.1", "192.0.2.1",
    ]  # fmt: skip
    assert url("::1", 8080) == "http://[::1]:8080"


def test_summary_tells_what_to_open_and_where_to_write(complete: Settings) -> None:
    shown = msgspec.structs.replace(complete, gateway_host="0.0.0.0", gateway_port=8080, ingest_port=8081)
    text = up.summary(shown, is_demo=True)
    for expected in ("http://127.0.0.1:8080/", "http://127.0.0.1:8081/api/v1/", "secret-of-ingest", "ingest.key"):
        assert expected in text
    assert "secret-ch" not in text
    elsewhere = msgspec.structs.replace(shown, clickhouse_url="https://u:secret-ch@ch:8443/arenacast")
    assert "https://ch:8443/arenacast" in up.summary(elsewhere, is_demo=False)
    assert "secret-ch" not in up.summary(elsewhere, is_demo=False)
