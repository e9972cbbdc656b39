"""The dashboard: well-formed, bound to the provisioned data source, asking only for what exists."""

import re
from pathlib import Path

import pytest
import yaml

from tests.docker.files import read_yaml, run, services, tool
from tests.docker.promql import (
    EVERYWHERE,
    OF_PROMETHEUS,
    dashboard,
    label_names,
    labels_named,
    metrics_named,
    panels,
    queries,
    recorded,
)


def test_panels_are_distinct() -> None:
    everything = dashboard()["panels"]
    for key in ("id", "title"):
        values = [panel[key] for panel in everything]
        assert len(set(values)) == len(values), key


def test_panels_do_not_overlap_and_stay_on_the_grid() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_panels_say_what_they_show_and_in_which_unit() -> None:
    for panel in panels():
        assert panel["description"], panel["title"]
        if panel["type"] in ("stat", "timeseries"):
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


def test_everything_asks_the_provisioned_data_source() -> None:
    (source,) = read_yaml("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    wanted = {"type": source["type"], "uid": source["uid"]}
    for panel in panels():
        assert panel["datasource"] == wanted
        assert all(target["datasource"] == wanted for target in panel["targets"])


def test_data_source_is_the_prometheus_of_the_stack() -> None:
    (source,) = read_yaml("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert set(services()["grafana"]["networks"]) & set(services()["prometheus"]["networks"])
    scrape = read_yaml("prometheus/prometheus.yml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape


@pytest.mark.parametrize("name", sorted(queries()))
def test_queries_read_series_and_labels_that_exist(name: str) -> None:
    expression = queries()[name]
    existing = label_names()
    named = metrics_named(expression)
    assert named
    assert named <= set(existing) | set(recorded()) | OF_PROMETHEUS
    sources = set().union(*(metrics_named(recorded().get(metric, metric)) for metric in named))
    known = EVERYWHERE.union(*(existing.get(metric, frozenset()) for metric in sources))
    assert labels_named(expression) <= known


def test_legends_use_labels_that_their_query_keeps() -> None:
    for panel in panels():
        for target in panel["targets"]:
            legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            kept = labels_named(recorded().get(target["expr"], target["expr"])) | {"instance"}
            assert legend <= kept, panel["title"]


def test_every_metric_of_the_contract_is_shown() -> None:
    shown = {metric for expression in queries().values() for metric in metrics_named(expression)}
    read = shown | {metric for name in shown for metric in metrics_named(recorded().get(name, name))}
    names = {name for name in label_names() if not name.startswith(("process_", "python_"))}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
    assert families <= {re.sub(r"_(bucket|sum|count)$", "", name) for name in read}


def test_queries_are_promql(tmp_path: Path) -> None:
    """promtool has no checker for single expressions, but one for rules."""
    rules = [
        {"record": f"query_{number}", "expr": expression.replace("$__rate_interval", "1m")}
        for number, expression in enumerate(queries().values())
    ]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    result = run(tool("promtool"), "check", "rules", str(path))
    assert result.returncode == 0, result.stdout + result.stderr
