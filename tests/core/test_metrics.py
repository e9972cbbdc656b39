"""Metrics: names that dashboards rely on, and the weighted histogram."""

import random

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from core import metrics
from core.metrics import LATENCY_BUCKETS_MS, SOURCES, WeightedHistogram, source_label


def test_weighted_observation_equals_that_many_plain_ones() -> None:
    source = random.Random(7)
    plain_registry, weighted_registry = CollectorRegistry(), CollectorRegistry()
    plain = Histogram("x", "x", ["l"], buckets=LATENCY_BUCKETS_MS, registry=plain_registry)
    weighted = WeightedHistogram("x", "x", ["l"], buckets=LATENCY_BUCKETS_MS, registry=weighted_registry)
    values = [*LATENCY_BUCKETS_MS[:-1], 0.0, -1.0, 9e9, *(source.expovariate(1 / 100) for _ in range(200))]
    for value in values:
        count = source.randrange(50)
        weighted.labels("a").observe_many(value, count)
        for _ in range(count):
            plain.labels("a").observe(value)
    assert samples(weighted_registry) == pytest.approx(samples(plain_registry))


def samples(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    return {
        (sample.name, sample.labels.get("le", "")): sample.value
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_names_are_those_of_the_contract() -> None:
    metrics.E2E.labels("x").observe_many(1, 1)
    metrics.STAGE.labels("ingest").observe_many(1, 1)
    for counter in (metrics.SLO_VIOLATIONS, metrics.EVICTIONS, metrics.RESUMES, metrics.ARCHIVE_ROWS):
        counter.labels("x")
    metrics.INGESTED.labels("api", "accepted")
    metrics.DELIVERIES.labels("sse", "state")
    text = generate_latest().decode()
    for name in (
        'e2e_latency_ms_bucket{event_type="x",le="300.0"}', 'stage_latency_ms_count{stage="ingest"}',
        "latency_slo_violations_total{slo=", 'ingest_events_total{result="accepted",source="api"}',
        "# TYPE stream_lag_entries gauge", "# TYPE stream_lag_seconds gauge", "# TYPE gateway_connections gauge",
        'gateway_deliveries_total{class="state",transport="sse"}', "gateway_conflated_total",
        "gateway_evictions_total{reason=", "gateway_resumes_total{verdict=", "archive_rows_total{table=",
        "# TYPE archive_insert_seconds histogram", "votes_unaccounted",
    ):  # fmt: skip
        assert name in text, name


def test_source_label_is_a_closed_set_because_clients_choose_the_field() -> None:
    assert {source_label(source) for source in SOURCES} == SOURCES
    assert source_label("x" * 32) == "other"
