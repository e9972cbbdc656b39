"""Prometheus' configuration: by promtool, against the metrics that exist and the services that are scraped."""

import pytest

from core.metrics import LATENCY_BUCKETS_MS
from core.settings import Settings
from tests.docker.files import DOCKER, read_yaml, run, services, tool
from tests.docker.promql import EVERYWHERE, OF_PROMETHEUS, alerts, label_names, labels_named, metrics_named, recorded

PROMETHEUS = DOCKER / "prometheus"


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "--lint-fatal", "rules.yml", "alerts.yml"],
        ["test", "rules", "alerts_test.yml"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_promtool_is_content(arguments: list[str]) -> None:
    result = run(tool("promtool"), *arguments, cwd=PROMETHEUS)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_is_seen_firing_and_seen_quiet() -> None:
    tests = [case for test in read_yaml("prometheus/alerts_test.yml")["tests"] for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in tests if case.get("exp_alerts")} == set(alerts())
    quiet = {case["alertname"] for case in tests if not case.get("exp_alerts")}
    assert set(alerts()) - quiet <= {"ArenacastLatencyP95", "ArenacastLoopErrors"}, "those have a quiet neighbour"


@pytest.mark.parametrize("name", sorted({**recorded(), **alerts()}))
def test_rules_read_series_and_labels_that_exist(name: str) -> None:
    expression = {**recorded(), **alerts()}[name]
    existing = label_names()
    named = metrics_named(expression)
    assert named
    assert named <= set(existing) | set(recorded()) | OF_PROMETHEUS
    sources = set().union(*(metrics_named(recorded().get(metric, metric)) for metric in named))
    known = EVERYWHERE.union(*(existing.get(metric, frozenset()) for metric in sources))
    assert labels_named(expression) <= known


def test_shares_within_the_objectives_are_exact() -> None:
    for bound in (300, 500):
        assert bound in LATENCY_BUCKETS_MS
        assert f'le="{float(bound)}"' in recorded()[f"arenacast:e2e_within_{bound}ms:ratio_rate5m"]


def test_every_service_with_metrics_is_scraped_at_its_port() -> None:
    defaults = Settings()
    scraped = {
        job["job_name"]: (tuple(target["names"]), target["port"])
        for job in read_yaml("prometheus/prometheus.yml")["scrape_configs"]
        for target in job.get("dns_sd_configs", [])
    }
    assert scraped == {
        "ingest": (("ingest",), defaults.ingest_port),
        "gateway": (("gateway",), defaults.gateway_port),
        "consume-state": (("consume-state",), defaults.state_metrics_port),
        "consume-archive": (("consume-archive",), defaults.archive_metrics_port),
    }
    assert set(scraped) <= set(services())


def test_every_file_it_reads_is_mounted() -> None:
    mounted = {volume.split(":")[1] for volume in services()["prometheus"]["volumes"]}
    files = read_yaml("prometheus/prometheus.yml")["rule_files"]
    assert {f"/etc/prometheus/{name}" for name in [*files, "prometheus.yml"]} <= mounted
    assert "--config.file=/etc/prometheus/prometheus.yml" in services()["prometheus"]["command"]
