"""Aggregates against raw: which polls and matches differ, where they begin to, and how to compute them anew.

An aggregate is the target of a materialized view. What it should hold is what the view's own SELECT gives over all of
raw, so the views and their targets are read from ClickHouse and none has to be named here: a new view is compared from
its first day. Compared are targets sorted by `poll_id` or `match_id` that one view fills: sums and versions, cell by
cell. Left out are what raw does not determine exactly or for as long as the aggregate lives: states (unique voters,
quantiles: approximate, and raw forgets voters after their TTL), floating sums, and targets of several views (latency).

A comparison is three reads, raw, target, raw: a subject whose raw changed in between says nothing and is asked again.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence

from msgspec import Struct

from clickhouse.client import ClickHouse
from clickhouse.rebuilding import ALONE, STATEMENT_S, Attempt
from core.names import is_id

SUBJECTS = ("poll_id", "match_id")
"""What is compared and rebuilt as a whole. Both belong to one shard, so one archive writer adds to them."""

TRIES = 8
TRY_EVERY_S = 0.4
"""Raw and its aggregates change together about once in an archive's linger (1 s), and agree between two inserts."""

_TIMEOUT_S = 300.0
_AT_ONCE = 200
"""Subjects in one statement that changes something: their ids are part of its text."""

_TARGET = re.compile(r"\bTO\s+(?:`[^`]+`|\w+)\.(?:`([^`]+)`|(\w+))")
_VERSION = re.compile(r"ReplacingMergeTree\((?:'[^']*',\s*'[^']*',\s*)?(\w+)\)")
_SIMPLE = re.compile(r"SimpleAggregateFunction\((\w+), (.+)\)\Z")


class Comparable(Struct, frozen=True):
    """A target of a view. `columns` are those compared, the sorting key first; `folds` sum up the rest."""

    name: str
    raw: str
    select: str
    """The view's SELECT."""
    typed: str
    """The same with the types of the target: what an insert makes of it."""
    fed: tuple[str, ...]
    """Columns the view gives."""
    key: tuple[str, ...]
    folds: tuple[tuple[str, str], ...]
    """(column, function) of every simple aggregate that is compared."""
    version: str
    """Column that decides between rows of one key; "" where rows are summed up."""

    @property
    def subject(self) -> str:
        """`poll_id` or `match_id`."""
        return self.key[0]

    def folded(self, rows: str, only: str) -> str:
        """SELECT of one row per cell from `rows` (a subquery or a table), for the subjects that `only` admits."""
        where = f"WHERE {only}" if only else ""
        key = ", ".join(self.key)
        if self.version:
            order = f"ORDER BY {self.version} DESC LIMIT 1 BY {key}"
            return f"SELECT {', '.join(self.fed)} FROM {rows} {where} {order}"  # noqa: S608 - our own schema
        folds = ", ".join(f"toString({function}({column})) AS {column}_" for column, function in self.folds)
        return f"SELECT {key}, {folds} FROM {rows} {where} GROUP BY {key}"  # noqa: S608


class Cell(Struct, frozen=True):
    """What one place says of one subject: number of cells and a digest over them."""

    cells: int
    digest: int


NOTHING = Cell(0, 0)


class Mismatch(Struct, frozen=True):
    """One subject of one aggregate."""

    aggregate: str
    raw_table: str
    subject: str
    """Name of the column."""
    id: str
    raw: Cell
    target: Cell


async def discover(clickhouse: ClickHouse) -> list[Comparable]:
    """Every aggregate that can be compared, by name. Raises Retry."""
    tables = await clickhouse.query(
        """SELECT name, engine_full, as_select, create_table_query, sorting_key, dependencies_table
           FROM system.tables WHERE database = currentDatabase()"""
    )
    engines = {name: (engine, key) for name, engine, _, _, key, _ in tables}
    views = {name: (select, create) for name, _, select, create, _, _ in tables}
    feeds: dict[str, list[tuple[str, str]]] = {}
    for raw, _, _, _, _, dependants in tables:
        for view in dependants:
            match = _TARGET.search(views.get(view, ("", ""))[1])
            if match:
                feeds.setdefault(match[1] or match[2], []).append((raw, views[view][0]))
    found = []
    for name, sources in sorted(feeds.items()):
        engine, sorting = engines.get(name, ("", ""))
        key = tuple(part.strip() for part in sorting.split(","))
        if len(sources) == 1 and key[0] in SUBJECTS and all(part.isidentifier() for part in key):
            found.append(await _described(clickhouse, name, *sources[0], key, engine))
    return [aggregate for aggregate in found if aggregate.version or aggregate.folds]


async def _described(
    clickhouse: ClickHouse, name: str, raw: str, select: str, key: tuple[str, ...], engine: str
) -> Comparable:
    fed = await clickhouse.query(f"DESCRIBE TABLE ({select})")
    columns = await clickhouse.query(
        "SELECT name, type FROM system.columns WHERE database = currentDatabase() AND table = {name:String}",
        {"name": name},
    )
    version = _VERSION.search(engine)
    folds, types = [], {}
    for column, kind in columns:
        simple = _SIMPLE.match(kind)
        types[column] = simple[2] if simple else kind
        if simple and column not in key and "Float" not in simple[2]:
            folds.append((column, simple[1]))
    names = tuple(str(row[0]) for row in fed)
    casts = (name if "AggregateFunction" in types[name] else f"{name}::{types[name]} AS {name}" for name in names)
    typed = f"SELECT {', '.join(casts)} FROM ({select})"  # noqa: S608 - our own schema
    return Comparable(name, raw, select, typed, names, key, tuple(folds), version[1] if version else "")


async def mismatches(
    clickhouse: ClickHouse, aggregate: Comparable, ids: Sequence[str] | None = None
) -> tuple[list[Mismatch], list[str]]:
    """(subjects that differ, subjects that never stood still for long enough), among `ids` or all. Raises Retry."""
    asked = None if ids is None else sorted(set(ids))
    for attempt in range(TRIES):
        if asked is not None and not asked:
            return [], []
        if attempt:
            await asyncio.sleep(TRY_EVERY_S)
        before = await _cells(clickhouse, aggregate, f"({aggregate.typed})", asked)
        target = await _cells(clickhouse, aggregate, _stored(aggregate), asked)
        suspects = sorted(
            name for name in before.keys() | target.keys() if before.get(name) != target.get(name)
        )  # fmt: skip
        if not suspects:
            return [], []
        after = await _cells(clickhouse, aggregate, f"({aggregate.typed})", suspects)
        restless = [name for name in suspects if before.get(name) != after.get(name)]
        # What differs while raw stands still may be a view's target that has yet to follow its raw block.
        if not restless and attempt >= 2:
            return [_mismatch(aggregate, name, before, target) for name in suspects], []
        asked = suspects
    still = [_mismatch(aggregate, name, before, target) for name in suspects if name not in restless]
    return still, restless


def _mismatch(aggregate: Comparable, name: str, raw: Mapping[str, Cell], target: Mapping[str, Cell]) -> Mismatch:
    return Mismatch(
        aggregate.name, aggregate.raw, aggregate.subject, name, raw.get(name, NOTHING), target.get(name, NOTHING)
    )  # fmt: skip


async def _cells(
    clickhouse: ClickHouse, aggregate: Comparable, rows: str, ids: Sequence[str] | None
) -> dict[str, Cell]:
    only = "" if ids is None else f"{aggregate.subject} IN {{ids:Array(String)}}"
    found = await clickhouse.query(
        f"""SELECT toString({aggregate.subject}), count(), sum(cityHash64(*))
            FROM ({aggregate.folded(rows, only)}) GROUP BY {aggregate.subject}""",  # noqa: S608 - our own schema
        {} if ids is None else {"ids": list(ids)},
        timeout_s=_TIMEOUT_S,
    )
    return {name: Cell(int(cells), int(digest)) for name, cells, digest in found}


def _stored(aggregate: Comparable) -> str:
    """The target's rows: as the view gives them, whatever else the table has."""
    return f"(SELECT {', '.join(aggregate.fed)} FROM {aggregate.name})"  # noqa: S608 - our own schema


async def first_difference(clickhouse: ClickHouse, aggregate: Comparable, name: str) -> str:
    """The first cell, in the order of the key, in which a subject's aggregate is not what raw gives; "" when none."""
    only = f"{aggregate.subject} = {{id:String}}"
    by = ", ".join(f"toString({column})" for column in aggregate.key[1:]) or "''"
    rows = []
    for source in (f"({aggregate.typed})", _stored(aggregate)):
        found = await clickhouse.query(
            f"""SELECT concatWithSeparator(' ', {by}) AS cell, sum(cityHash64(*))
                FROM ({aggregate.folded(source, only)}) GROUP BY cell""",  # noqa: S608 - our own schema
            {"id": name},
            timeout_s=_TIMEOUT_S,
        )
        rows.append({str(cell): int(digest) for cell, digest in found})
    raw, target = rows
    return min((cell for cell in raw.keys() | target.keys() if raw.get(cell) != target.get(cell)), default="")


async def rebuild(clickhouse: ClickHouse, aggregate: Comparable, ids: Sequence[str], attempt: Attempt = ALONE) -> None:
    """Compute subjects anew from raw. Only for whoever keeps raw still for them: the shard's archive writer between
    two batches, or a restore. A reader may find them missing for a moment; repeating it after a crash is harmless."""
    if not all(map(is_id, ids)):
        raise ValueError("not ids")
    for start in range(0, len(ids), _AT_ONCE):
        names = list(ids[start : start + _AT_ONCE])
        await clickhouse.command(
            f"DELETE FROM {aggregate.name} "  # noqa: S608 - our own schema
            f"WHERE {aggregate.subject} IN {{ids:Array(String)}} AND {attempt.holds}",
            {"ids": names},
            settings=attempt.deleting(),
            timeout_s=STATEMENT_S,
        )
        listed = ", ".join(f"'{name}'" for name in names)  # ids hold nothing that needs a quote
        await clickhouse.command(
            f"INSERT INTO {aggregate.name} ({', '.join(aggregate.fed)}) "  # noqa: S608 - our own schema
            f"SELECT * FROM ({aggregate.select}) WHERE {aggregate.subject} IN ({listed}) AND {attempt.holds}",
            settings=attempt.inserting(),
            timeout_s=STATEMENT_S,
        )
