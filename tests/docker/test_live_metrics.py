"""A real Prometheus with the stack's configuration scrapes our metrics: every panel shows something, alerts fire."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import urlopen

import pytest
import yaml

from tests.docker.files import DOCKER, ROOT, read_yaml, tool
from tests.docker.promql import queries
from tests.support.ports import free_port
from tests.support.waiting import wait_until_sync


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a Prometheus that runs the stack's configuration; one exporter stands for every service."""
    program, directory = tool("prometheus"), tmp_path_factory.mktemp("prometheus")
    port, exporter_port = free_port(), free_port()
    commands = [
        [sys.executable, "-m", "tests.docker.exporter", str(exporter_port)],
        [program, f"--config.file={configure(directory, port, exporter_port)}",
         f"--storage.tsdb.path={directory / 'data'}", f"--web.listen-address=127.0.0.1:{port}"],
    ]  # fmt: skip
    with open(directory / "log", "wb") as log:
        processes = [subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log) for command in commands]
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_sync(lambda: is_ready(url), 20.0, "Prometheus is ready")
            yield url
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(20)


def configure(directory: Path, own_port: int, exporter_port: int) -> Path:
    """A copy of the stack's configuration for one machine: addresses instead of names, seconds instead of minutes."""
    config = read_yaml("prometheus/prometheus.yml")
    config["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
    for job in config["scrape_configs"]:
        is_ours = bool(job.pop("dns_sd_configs", None))
        job["static_configs"] = [{"targets": [f"127.0.0.1:{exporter_port if is_ours else own_port}"]}]
    for name in config["rule_files"]:
        rules = yaml.safe_load((DOCKER / "prometheus" / name).read_text())
        for group in rules["groups"]:
            for rule in group["rules"]:
                rule.pop("for", None)
        (directory / name).write_text(yaml.safe_dump(rules))
    path = directory / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def is_ready(url: str) -> bool:
    try:
        with urlopen(f"{url}/-/ready", timeout=2):
            return True
    except (URLError, OSError):
        return False


def ask(url: str, expression: str) -> list[dict[str, Any]]:
    """Result of an instant query."""
    with urlopen(f"{url}/api/v1/query?query={quote(expression)}", timeout=5) as reply:
        result: list[dict[str, Any]] = json.load(reply)["data"]["result"]
        return result


def test_every_query_of_the_dashboard_finds_something(prometheus: str) -> None:
    def missing() -> list[str]:
        return [
            name
            for name, expression in queries().items()
            if all(row["value"][1] == "NaN" for row in ask(prometheus, expression.replace("$__rate_interval", "4s")))
        ]

    def is_complete() -> bool:
        assert missing() == []
        return True

    wait_until_sync(is_complete, 30.0, "every query finds something")


def test_alerts_name_what_is_wrong(prometheus: str) -> None:
    """The exporter's state: votes unaccounted, dead letters, a loop that fails; nobody is down."""

    def firing() -> set[str]:
        return {row["metric"]["alertname"] for row in ask(prometheus, 'ALERTS{alertstate="firing"}')}

    expected = {"ArenacastVotesUnaccounted", "ArenacastDeadLetters", "ArenacastLoopErrors"}
    wait_until_sync(lambda: expected <= firing(), 20.0, f"{expected} fire")
    assert not firing() & {"ArenacastInstanceDown", "ArenacastServiceGone", "ArenacastLatencyP99"}
