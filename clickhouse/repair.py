"""Looking at what ClickHouse holds, and mending what deduplication tokens cannot cover. See `writer` for when.

Aggregates are computed anew with the SELECT of the very view that fills them, read from ClickHouse, so that there is
one definition; `aggregates` says which parts, `rebuilding` how late statements are kept out. Readers may see an
aggregate without such a part for the moment between deleting and computing it.
"""

from collections.abc import Sequence

from msgspec import Struct

from clickhouse.aggregates import AGGREGATES, Aggregate, Scope
from clickhouse.client import ClickHouse
from clickhouse.rebuilding import STATEMENT_S, Attempt
from clickhouse.tables import Row, Table
from core.position import EntryId

_TIMEOUT_S = 300.0

_WITHIN = """
shard = {shard:UInt8} AND stream_ms BETWEEN {after_ms:UInt64} AND {last_ms:UInt64}
AND (stream_ms, stream_seq) > ({after_ms:UInt64}, {after_seq:UInt64})
AND (stream_ms, stream_seq) <= ({last_ms:UInt64}, {last_seq:UInt64})
"""


class Range(Struct, frozen=True):
    """Positions after `after` up to `last`."""

    epoch: int
    after: EntryId
    last: EntryId

    def parameters(self, shard: int) -> dict[str, int]:
        """For `_WITHIN`."""
        return {
            "shard": shard,
            "epoch": self.epoch,
            "after_ms": self.after.ms,
            "after_seq": self.after.seq,
            "last_ms": self.last.ms,
            "last_seq": self.last.seq,
        }


def _within(table: Table) -> str:
    """Where a batch's rows are. Derived facts may carry another epoch than their batch (`Table.key`)."""
    return f"{_WITHIN} AND stream_epoch = {{epoch:UInt64}}" if "stream_epoch" in table.key else _WITHIN


async def newest_position(
    clickhouse: ClickHouse, tables: Sequence[Table], shard: int, after: EntryId
) -> EntryId | None:
    """Newest position of a shard's rows beyond `after`, None when there is none."""
    found = EntryId(0, 0)
    for table in tables:
        rows = await clickhouse.query(
            f"""SELECT max((stream_ms, stream_seq)) AS newest FROM {table.name}
                WHERE shard = {{shard:UInt8}} AND stream_ms >= {{ms:UInt64}}
                AND (stream_ms, stream_seq) > ({{ms:UInt64}}, {{seq:UInt64}})""",  # noqa: S608 - our own table's name
            {"shard": shard, "ms": after.ms, "seq": after.seq},
            timeout_s=_TIMEOUT_S,
        )
        found = max(found, EntryId(*rows[0][0]))
    return found if found > after else None


async def repeated_rows(clickhouse: ClickHouse, table: Table, shard: int, where: Range) -> int:
    """How many rows of a shard within a range are there again."""
    rows = await clickhouse.query(
        f"SELECT count() - uniqExact({', '.join(table.key)}) FROM {table.name} WHERE {_within(table)}",  # noqa: S608
        where.parameters(shard),
        timeout_s=_TIMEOUT_S,
    )
    return int(rows[0][0])


async def missing_rows(
    clickhouse: ClickHouse, table: Table, shard: int, where: Range, rows: Sequence[Row]
) -> list[Row]:
    """Those of `rows` that a table does not hold yet."""
    present = await clickhouse.query(
        f"SELECT {', '.join(table.key)} FROM {table.name} WHERE {_within(table)}",  # noqa: S608 - our own names
        where.parameters(shard),
        timeout_s=_TIMEOUT_S,
    )
    known = {tuple(row) for row in present}
    return [row for row in rows if table.key_of(row) not in known]


async def rebuild_aggregates(
    clickhouse: ClickHouse, table: Table, shard: int, rows: Sequence[Row], attempt: Attempt
) -> None:
    """Compute what depends on `rows` of a shard anew from raw. Repeating it, after a crash half-way, is harmless."""
    for aggregate in AGGREGATES:
        if aggregate.raw is table and rows:
            for scope in aggregate.scopes(shard, rows):
                await rebuild(clickhouse, aggregate, scope, attempt)


async def rebuild(clickhouse: ClickHouse, aggregate: Aggregate, scope: Scope, attempt: Attempt) -> None:
    """Compute a part of an aggregate anew from raw."""
    if scope.target:
        await clickhouse.command(
            f"DELETE FROM {aggregate.target} WHERE {scope.target} AND {attempt.holds}",  # noqa: S608 - our own text
            settings=attempt.deleting(),
            timeout_s=STATEMENT_S,
        )
    select = await clickhouse.query(
        "SELECT as_select, database FROM system.tables WHERE database = currentDatabase() AND name = {name:String}",
        {"name": aggregate.feed},
    )
    await clickhouse.command(
        # ClickHouse's own text of our view
        f"INSERT INTO {aggregate.target} SELECT * FROM ({select[0][0]}) WHERE {attempt.holds}",  # noqa: S608
        settings={
            **attempt.inserting(),
            "additional_table_filters": {f"{select[0][1]}.{aggregate.raw.name}": scope.raw},
        },
        timeout_s=STATEMENT_S,
    )
