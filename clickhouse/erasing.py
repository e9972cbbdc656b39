"""Erasing voters: their hashes go from ClickHouse and Redis, every count and digest stays.

In raw each (voter, poll) gets a random number instead of the hash: the votes of one voter in one poll stay one voter,
so unique voters and a replay of the poll give the same as before, but nothing joins them to other polls or to anybody.
The numbers live in a table, so the mutation, whose text ClickHouse keeps, names neither. It is dropped when the
aggregates of its polls are computed anew or asked for (`done`), not before: an erasure that was interrupted is finished
by the next one, which finds the polls there (`interrupted`), and a mutation that goes on by itself needs it.

Erased is what was received up to an instant. Who votes again later has done something new.
"""

import asyncio
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clickhouse import comparison, segments
from clickhouse.client import ClickHouse
from core import keys
from core.errors import Retry
from core.redis_client import Redis, call, lua

BLANK = "0" * 16
"""In place of a hash in entries that are kept as they came (dead letters, segments)."""

PAGE = 500
"""Entries of a stream in one reply or one script: some milliseconds in which Redis serves nobody else."""

_COPY_TTL_S = 600
_TIMEOUT_S = 3600.0
_STAND_INS = "erasing"
_POLLS = "erasing_polls"  # of the stand-ins, which cannot be listed: joinGet is all that a table with two keys gives
_POLL_S = 0.2

_FILL = """
INSERT INTO erasing
SELECT toString(poll_id), voter_hash, rand64(cityHash64(poll_id, voter_hash)) + 1,
       transform(voter_hash, {hashes:Array(UInt64)}, {until:Array(UInt64)}, toUInt64(0)) AS until_ms
FROM (SELECT poll_id, voter_hash FROM votes WHERE {found} GROUP BY poll_id, voter_hash)
"""
_FOUND = """voter_hash IN {hashes:Array(UInt64)}
AND stream_ms <= transform(voter_hash, {hashes:Array(UInt64)}, {until:Array(UInt64)}, toUInt64(0))"""
_UPDATE = """
ALTER TABLE votes UPDATE voter_hash = joinGet('{name}', 'stand_in', toString(poll_id), voter_hash)
WHERE stream_ms <= joinGet('{name}', 'until_ms', toString(poll_id), voter_hash)
"""


async def erased_polls(clickhouse: ClickHouse, erased: Mapping[str, int]) -> dict[str, int]:
    """Poll -> rows that still carry one of the hashes. Empty = nothing is left. Raises Retry."""
    rows = await clickhouse.query(
        f"SELECT poll_id, count() FROM votes WHERE {_FOUND} GROUP BY poll_id",  # noqa: S608 - our own text
        _parameters(erased),
        timeout_s=_TIMEOUT_S,
    )
    return {str(poll): int(count) for poll, count in rows}


async def interrupted(clickhouse: ClickHouse) -> list[str]:
    """Polls of an erasure that was not `done`, once its mutation has ended: their aggregates are to be computed anew.
    Raises Retry."""
    await _earlier_mutations(clickhouse)
    exists = await clickhouse.query(
        "SELECT 1 FROM system.tables WHERE database = currentDatabase() AND name = {name:String}", {"name": _POLLS}
    )
    if not exists:
        return []
    return [str(row[0]) for row in await clickhouse.query(f"SELECT DISTINCT poll_id FROM {_POLLS}")]  # noqa: S608


async def erase_rows(clickhouse: ClickHouse, erased: Mapping[str, int]) -> dict[str, int]:
    """Take the hashes out of raw, wait until that is done, and look; poll -> rows changed. Repeating it is harmless.

    Only when nothing is `interrupted`. Aggregates of these polls still hold states made of the hashes: they are to be
    computed anew next, and then it is `done`.
    """
    polls = await erased_polls(clickhouse, erased) if erased else {}
    if not polls:
        return {}
    await done(clickhouse)
    await clickhouse.command(
        f"""CREATE TABLE {_STAND_INS} (poll_id String, voter_hash UInt64, stand_in UInt64, until_ms UInt64)
            ENGINE = Join(ANY, LEFT, poll_id, voter_hash)"""
    )
    await clickhouse.command(
        f"CREATE TABLE {_POLLS} ENGINE = MergeTree ORDER BY poll_id AS "  # noqa: S608 - our own text
        f"SELECT DISTINCT toString(poll_id) AS poll_id FROM votes WHERE {_FOUND}",
        _parameters(erased),
        timeout_s=_TIMEOUT_S,
    )
    await clickhouse.command(_FILL.replace("{found}", _FOUND), _parameters(erased), timeout_s=_TIMEOUT_S)
    name = (await clickhouse.query("SELECT concat(currentDatabase(), '.', {name:String})", {"name": _STAND_INS}))[0]
    await clickhouse.command(
        _UPDATE.replace("{name}", str(name[0])),
        settings={"mutations_sync": 2, "allow_nondeterministic_mutations": 1},
        timeout_s=_TIMEOUT_S,
    )
    if left := await erased_polls(clickhouse, erased):
        raise Retry(f"ClickHouse still has {sum(left.values())} rows with an erased hash: run it again")
    return polls


async def done(clickhouse: ClickHouse) -> None:
    """Forget which polls and voters it was about."""
    for name in (_STAND_INS, _POLLS):
        await clickhouse.command(f"DROP TABLE IF EXISTS {name} SYNC")


async def _earlier_mutations(clickhouse: ClickHouse) -> None:
    """A mutation of an erasure that was interrupted goes on by itself: let it end."""
    deadline = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline:
        rows = await clickhouse.query(
            "SELECT count() FROM system.mutations "
            "WHERE database = currentDatabase() AND table = 'votes' AND NOT is_done AND NOT is_killed"
        )
        if not rows[0][0]:
            return
        await asyncio.sleep(_POLL_S)
    raise Retry("a mutation of votes does not end")


def _parameters(erased: Mapping[str, int]) -> dict[str, Any]:
    return {"hashes": [int(voter, 16) for voter in erased], "until": list(erased.values())}


async def vote_aggregates(clickhouse: ClickHouse) -> list[comparison.Comparable]:
    """Aggregates of votes by poll: what may hold states made of voters' hashes."""
    found = await comparison.discover(clickhouse)
    return [one for one in found if one.raw == "votes" and one.subject == "poll_id"]


async def erase_in_redis(client: Redis, shards: int, erased: Mapping[str, int]) -> dict[str, int]:
    """Take the hashes out of the voters of open polls and out of dead letters; what was changed where."""
    counts = {"voters": 0, "dead": 0}
    fields = [bytes.fromhex(voter) for voter in erased]
    for shard in range(shards):
        async for name in client.scan_iter(match=f"{keys.voters(shard, '*')}", count=1000):
            counts["voters"] += int(await call(client.hdel(name, *fields)))
        counts["dead"] += await _blank(client, keys.dead(shard), erased)
    return counts


async def left_in_redis(client: Redis, shards: int, voters: Sequence[str], until_ms: int) -> list[str]:
    """Where one of the hashes still stands, up to an instant: log, dead letters, voters of polls."""
    names = [name for shard in range(shards) for name in (keys.events(shard), keys.dead(shard))]
    return [name for name in names if await _holds_one(client, name, voters, f"{until_ms}")]


async def erase_everywhere(client: Redis, clickhouse: ClickHouse, erased: Mapping[str, int], spill: Path) -> str:
    """Everything at once, for whoever is alone with the servers (a restore). `spill`: directory of segment files."""
    on_disk, damaged = await asyncio.to_thread(segments.erase_voters, spill, erased)
    unfinished = await interrupted(clickhouse)
    await done(clickhouse)  # what was to be computed anew is known here, and a restore that fails is begun again
    polls = await erase_rows(clickhouse, erased)
    for aggregate in await vote_aggregates(clickhouse):
        await comparison.rebuild(clickhouse, aggregate, sorted({*polls, *unfinished}))
    await done(clickhouse)
    shards = int(await call(client.hget(keys.LOG, "shards")) or 0)
    counts = await erase_in_redis(client, shards, erased)
    in_log = sum([await _blank(client, keys.events(shard), erased) for shard in range(shards)])
    said = (
        f"{sum(polls.values())} rows, {counts['voters']} voters, {counts['dead']} dead letters, {in_log} log entries, "
        f"{on_disk} on disk"
    )
    if damaged:
        said += f"; NOT in {', '.join(damaged)}, which cannot be read: if you bring them, run `arenacast forget` again"
    return said


async def _blank(client: Redis, stream: str, erased: Mapping[str, int]) -> int:
    """Take the hashes out of a stream, page by page; how many entries were changed. Raises Retry."""
    if not await _holds_one(client, stream, list(erased)):
        return 0
    words = [word for voter, until_ms in erased.items() for word in (voter, str(until_ms))]
    script, names = lua("clickhouse", "blank_voters"), [stream, keys.blanked(stream), keys.blanking(stream)]
    token, after, total, is_placed = secrets.token_hex(8), b"", 0, False
    while not is_placed:
        after, placed, changed = await call(
            client.eval(script, len(names), *names, after, PAGE, token, _COPY_TTL_S, BLANK, *words)
        )
        total, is_placed = total + int(changed), bool(placed)
    return total


async def _holds_one(client: Redis, stream: str, voters: Sequence[str], last: str = "+") -> bool:
    """Whether one of the hashes stands in a stream."""
    needles, start = [voter.encode() for voter in voters], "-"
    while page := await call(client.xrange(stream, min=start, max=last, count=PAGE)):
        if any(needle in fields.get(b"d", b"") for _, fields in page for needle in needles):
            return True
        start = f"({page[-1][0].decode()}"
    return False
