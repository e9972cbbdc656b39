"""What the oldest tier of resuming asks of the table of events: see tests.gateway.test_archive_tier for the rest."""

import pytest

from clickhouse.client import ClickHouse
from clickhouse.past import kept_since_ms, shortest_age_s

NOW_MS = 1_800_000_000_000


@pytest.mark.parametrize(
    ("engine", "age_s"),
    [
        ("MergeTree ORDER BY a SETTINGS index_granularity = 8192", None),
        ("MergeTree ORDER BY a TTL toDateTime(received_at) + toIntervalDay(30) SETTINGS b = 1", 30 * 86_400),
        (
            "MergeTree ORDER BY a TTL toDateTime(ts) + toIntervalMonth(1), toDateTime(ts) + toIntervalDay(90)",
            28 * 86_400,
        ),
        ("MergeTree ORDER BY a TTL forget_at SETTINGS b = 1", 0),
    ],
)
def test_age_at_which_a_table_may_forget(engine: str, age_s: int | None) -> None:
    """A rule that cannot be read means that anything may be gone."""
    assert shortest_age_s(engine) == age_s


@pytest.mark.clickhouse
async def test_ttl_is_read_from_the_table_as_it_is(clickhouse: ClickHouse) -> None:
    await clickhouse.command("ALTER TABLE match_events MODIFY TTL toDateTime(received_at) + toIntervalDay(2)")
    assert await kept_since_ms(clickhouse, NOW_MS, timeout_s=10) == NOW_MS - 2 * 86_400_000
    await clickhouse.command("ALTER TABLE match_events REMOVE TTL")
    assert await kept_since_ms(clickhouse, NOW_MS, timeout_s=10) == 0
    await clickhouse.command("DROP TABLE match_events")
    assert await kept_since_ms(clickhouse, NOW_MS, timeout_s=10) == NOW_MS
