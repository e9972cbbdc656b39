"""The order of the log in one integer, as the *_metrics tables compare it."""

from itertools import product

import pytest

from clickhouse.client import ClickHouse

pytestmark = pytest.mark.clickhouse

MS = (0, 1_764_000_000_000, 2**48)
SEQ = (0, 1, 2**40, 2**63)
EPOCH = (1, 1_764_000_000_000, 9_999_999_999_999)
K = (1, 2, 65_535)


@pytest.mark.parametrize("feed", ["round_metrics_feed", "map_metrics_feed"])
async def test_versions_are_ordered_as_positions_are(clickhouse: ClickHouse, feed: str) -> None:
    """Also where one part is as large as it can be: none may run into the next."""
    [[select]] = await clickhouse.query(
        "SELECT as_select FROM system.tables WHERE database = currentDatabase() AND name = {feed:String}",
        {"feed": feed},
    )
    table = "rounds" if feed.startswith("round") else "map_states"
    positions = list(product(MS, SEQ, EPOCH, K))
    await clickhouse.command(
        f"INSERT INTO {table} (stream_ms, stream_seq, stream_epoch, stream_k, match_id, round_no) VALUES "
        + ", ".join(f"({ms}, {seq}, {epoch}, {k}, 'm{n}', 0)" for n, (ms, seq, epoch, k) in enumerate(positions))
    )
    rows = await clickhouse.query(f"SELECT toString(match_id), toString(version) FROM ({select})")
    versions = {int(match[1:]): int(version) for match, version in rows}
    assert len(set(versions.values())) == len(positions)
    by_version = sorted(versions, key=lambda number: versions[number])
    assert by_version == sorted(versions, key=lambda number: positions[number])
