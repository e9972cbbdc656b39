"""Which metrics and labels a PromQL expression names, and which there are."""

import json
import re
from typing import Any

from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from core import metrics
from tests.docker.files import DOCKER, read_yaml

OF_PROMETHEUS = frozenset({"up", "ALERTS"})
"""What Prometheus makes itself."""

EVERYWHERE = frozenset({"job", "instance", "le", "alertname", "alertstate", "severity"})
"""Labels that Prometheus adds."""

_NOT_METRICS = frozenset({"and", "or", "unless", "by", "without", "on", "ignoring", "offset", "bool"})
_MATCHERS = re.compile(r"\{([^}]*)\}")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")


def metrics_named(expression: str) -> set[str]:
    """Names of the time series that an expression reads."""
    text = re.sub(r'"[^"]*"', "", expression)
    text = re.sub(r"\[[^\]]*\]", "", _GROUPING.sub("", _MATCHERS.sub("", text)))
    words = re.findall(r"(?<![\w.])([a-zA-Z_:][\w:]*)(\s*\()?", text)
    return {word for word, call in words if not call and word not in _NOT_METRICS}


def labels_named(expression: str) -> set[str]:
    """Names of the labels that an expression selects or groups by."""
    grouped = {label.strip() for inner in _GROUPING.findall(expression) for label in inner.split(",")}
    selected = {label for inner in _MATCHERS.findall(expression) for label in re.findall(r"(\w+)\s*[=!]", inner)}
    return {label for label in grouped | selected if label}


def recorded() -> dict[str, str]:
    """Recording rules: name -> expression."""
    groups = read_yaml("prometheus/rules.yml")["groups"]
    return {rule["record"]: rule["expr"] for group in groups for rule in group["rules"]}


def alerts() -> dict[str, str]:
    """Alerts: name -> expression."""
    groups = read_yaml("prometheus/alerts.yml")["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


def dashboard() -> dict[str, Any]:
    """The provisioned dashboard."""
    result: dict[str, Any] = json.loads((DOCKER / "grafana/dashboards/arenacast.json").read_text())
    return result


def panels() -> list[dict[str, Any]]:
    """Panels of the dashboard that show something."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> dict[str, str]:
    """Every query of the dashboard: panel/reference -> expression."""
    return {f"{panel['title']}/{target['refId']}": target["expr"] for panel in panels() for target in panel["targets"]}


def label_names() -> dict[str, frozenset[str]]:
    """Series that our processes expose -> their own labels."""
    found: dict[str, frozenset[str]] = {}
    for metric in vars(metrics).values():
        if isinstance(metric, Counter | Gauge | Histogram):
            for series in _series(metric):
                found[series] = frozenset(metric._labelnames)
    for family in REGISTRY.collect():  # those of the Python process itself
        if family.name.startswith(("process_", "python_")):
            found |= {sample.name: frozenset(sample.labels) for sample in family.samples}
    return found


def _series(metric: Any) -> list[str]:
    """Names of a metric's series as Prometheus stores them."""
    if isinstance(metric, Histogram):
        return [f"{metric._name}{suffix}" for suffix in ("_bucket", "_sum", "_count")]
    return [f"{metric._name}_total" if isinstance(metric, Counter) else metric._name]
