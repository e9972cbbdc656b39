"""Retention: whatever the schema says goes after a time does go, and nothing else does. Generic over the schema."""

import re

import pytest

from clickhouse.client import ClickHouse

pytestmark = pytest.mark.clickhouse

_RULE = r"TTL (?:toDateTime\()?`?(\w+)`?\)? \+ toIntervalDay\((\d+)\)"
_COLUMN = re.compile(rf"`(\w+)` [^\n]*?{_RULE}")
_TABLE = re.compile(rf"\b{_RULE}")


async def rules(clickhouse: ClickHouse) -> list[tuple[str, str, str, int]]:
    """(table, column that goes or "" for the row, column of the time, days)."""
    rows = await clickhouse.query(
        """SELECT name, create_table_query FROM system.tables
           WHERE database = currentDatabase() AND engine LIKE '%MergeTree'"""
    )
    found = []
    for name, create in rows:
        columns, _, behind = str(create).partition(") ENGINE")
        parts = columns.replace(", `", "\n`").splitlines()
        found += [(name, m[1], m[2], int(m[3])) for part in parts if (m := _COLUMN.search(part))]
        found += [(name, "", m[1], int(m[2])) for m in _TABLE.finditer(behind)]
        assert len([one for one in found if one[0] == name]) == str(create).count("TTL "), (
            f"a TTL not understood: {create}"
        )
    return found


async def test_what_is_to_go_after_a_time_goes_and_the_rest_stays(clickhouse: ClickHouse) -> None:
    todo = await rules(clickhouse)
    assert ("votes", "voter_hash") in {(table, column) for table, column, _, _ in todo}, "the one personal datum"
    for table, column, time, days in todo:
        for age in (days - 2, days + 2):
            extra = f", {column}" if column else ""
            value = ", 77" if column else ""
            await clickhouse.command(f"INSERT INTO {table} ({time}{extra}) SELECT now() - INTERVAL {age} DAY{value}")
        await clickhouse.command(f"OPTIMIZE TABLE {table} FINAL", timeout_s=60)
        young = f"{time} > now() - INTERVAL {days} DAY"
        kept = column or "1"
        rows = await clickhouse.query(f"SELECT {young}, max({kept}) FROM {table} GROUP BY 1 ORDER BY 1")
        expected = [(0, 0), (1, 77)] if column else [(1, 1)]
        assert [tuple(row) for row in rows] == expected, (table, column, time, days)
