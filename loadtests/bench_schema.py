"""What does a row cost, and a question? `python -m loadtests.bench_schema [--votes N] [--events N] [--queries N]`

A seeded data set, `crowd-1`, goes into the real tables of an embedded ClickHouse: votes in bursts of half a minute
after each round (300,000 voters, a few of them busy), of two sources, for two options of a poll per map; and match
events as a plugin sends them, 420 a round, with ids of 26 characters, 11 bytes of them random, each in a request of its
own. After merging, bytes per row of each column are printed against their limits (32 for a vote, 25 for an event
without its payload). Below a million rows parts are too small to tell.

Then each question of clickhouse/examples and a few point queries are asked, while a writer inserts batches of 5,000
votes, two a second, and p50 and p99 are printed against 50 ms. `--votes 10000000` is the size of the claim.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from clickhouse import embedded, examples, migrate
from clickhouse.analysts import analysts_database
from clickhouse.client import DATABASE, ClickHouse
from clickhouse.writer import INSERT_SETTINGS
from core.settings import Settings
from loadtests.bench_archive import PASSWORD, free_port, running

VOTE_MAX_BYTES, EVENT_MAX_BYTES = 32.0, 25.0
P99_MAX_MS = 50.0
_FILL_S = 250.0
_CHUNK = 1_000_000
_VOTES_PER_POLL = 50_000
_BATCH_S = 0.5

_VOTES = """
INSERT INTO votes (shard, stream_epoch, stream_ms, stream_seq, poll_id, option_id, voter_hash, event_hash, vote_hash,
                   weight, source, ts, received_at)
SELECT poll % 4, 1795300000, at, number % 50, concat('map-', toString(poll)),
       if(cityHash64(number, 1) % 100 < 57, 'a', 'b'),
       sipHash64(toUInt64(300000 * pow(cityHash64(number, 2) % 1000000 / 1e6, 2))), sipHash64(number, 3),
       sipHash64(number, 4), 1, if(cityHash64(number, 5) % 3 = 0, 'twitch', 'api'),
       fromUnixTimestamp64Milli(at - cityHash64(number, 6) % 400, 'UTC'),
       fromUnixTimestamp64Milli(at - cityHash64(number, 7) % 5, 'UTC')
FROM
(
    SELECT number, intDiv(number, {per_poll:UInt64}) AS poll, number % {per_poll:UInt64} AS vote,
           toInt64(1795300000000 + poll * 3600000 + intDiv(vote, 2000) * 115000 + (vote % 2000) * 15) AS at
    FROM numbers({start:UInt64}, {count:UInt64})
)
"""

_EVENTS = """
INSERT INTO match_events (shard, stream_epoch, stream_ms, stream_seq, event_id, match_id, map_id, round_no, type,
                          revision, source, ts, received_at, correlation, payload)
SELECT match % 4, 1795300000, at, number % 4, id, concat('league-', toString(match)),
       toString(intDiv(event, 10080) % 3), 1 + intDiv(event, 420) % 24, type, 1, 'matchzy',
       fromUnixTimestamp64Milli(at - cityHash64(number, 6) % 60, 'UTC'),
       fromUnixTimestamp64Milli(at - cityHash64(number, 7) % 5, 'UTC'), lower(hex(sipHash64(number, 13))),
       concat('{"event_id":"', id, '","match_id":"league-', toString(match), '","type":"', type,
              '","data":{"player":{"steamid":"7656119800000', toString(100 + cityHash64(number, 8) % 10),
              '"},"weapon":"', ['ak47', 'm4a1', 'awp', 'deagle'][1 + cityHash64(number, 9) % 4], '","x":',
              toString(cityHash64(number, 10) % 4000), ',"y":', toString(cityHash64(number, 11) % 4000), '}}')
FROM
(
    SELECT number, intDiv(number, 30240) AS match, number % 30240 AS event,
           toInt64(1795300000000 + match * 7200000 + event * 238) AS at,
           concat('01JC', upper(hex(sipHash128(number)) AS full_hex)) AS long_id, substring(long_id, 1, 26) AS id,
           ['player_death', 'player_hurt', 'weapon_fire', 'grenade_thrown', 'round_end']
               [1 + cityHash64(number, 12) % 5] AS type
    FROM numbers({start:UInt64}, {count:UInt64})
)
"""

_COLUMNS = """
SELECT name, data_compressed_bytes FROM system.columns
WHERE database = currentDatabase() AND table = {table:String} ORDER BY data_compressed_bytes DESC
"""

_POINTS = {
    "poll_totals of a poll": "SELECT * FROM poll_totals WHERE poll_id = 'map-7'",
    "votes_per_minute of a poll": "SELECT * FROM votes_per_minute WHERE poll_id = 'map-7' ORDER BY minute",
    "votes_per_second of a poll": "SELECT second, sum(votes) FROM votes_per_second WHERE poll_id = 'map-7' "
    "GROUP BY second",
    "event_counts of a match": "SELECT * FROM event_counts WHERE match_id = 'league-7'",
    "100 events of a match": "SELECT type, ts FROM match_events WHERE match_id = 'league-7' AND map_id = '1' "
    "ORDER BY stream_ms, stream_seq LIMIT 100",
}
_PARAMETERS = {"poll": "map-7", "minutes": 3, "match": "league-7", "map": "1", "votes": 20, "hours": 24}
_WHOLE_POLL = frozenset({"bot_suspicion", "prediction_calibration"})
"""Questions that read every vote of a poll, or every prediction: reported, not held against the limit of a point."""


async def fill(clickhouse: ClickHouse, votes: int, events: int) -> None:
    """The data set, in a hundred parts at most, merged."""
    started = time.perf_counter()
    for sql, count in ((_VOTES, votes), (_EVENTS, events)):
        for start in range(0, count, _CHUNK):
            await clickhouse.command(
                sql,
                {"start": start, "count": min(_CHUNK, count - start), "per_poll": _VOTES_PER_POLL},
                settings={"async_insert": 0, "insert_deduplication_token": f"{sql[:30]}{start}"},
                timeout_s=_FILL_S,
            )
    for table in ("votes", "match_events"):
        await clickhouse.command(f"OPTIMIZE TABLE {table} FINAL", timeout_s=_FILL_S)
    print(
        f"crowd-1: {votes:,} votes and {events:,} match events, "
        f"filled and merged in {time.perf_counter() - started:.0f} s"
    )


async def sizes(clickhouse: ClickHouse, table: str, rows: int, limit: float, without: Sequence[str] = ()) -> bool:
    """Print bytes per row; whether all columns but those `without` stay within the limit."""
    found = [(name, size / rows) for name, size in await clickhouse.query(_COLUMNS, {"table": table})]
    total = sum(size for name, size in found if name not in without)
    print(f"\n{table}: {total:.1f} B/row{' without ' + ', '.join(without) if without else ''} (limit {limit:g})")
    print("  " + ", ".join(f"{name} {size:.2f}" for name, size in found if size >= 0.005))
    return bool(total <= limit)


async def write(clickhouse: ClickHouse, done: list[int]) -> None:
    """Insert votes of a poll of their own, a batch when it is due; counts them in `done`."""
    due = time.monotonic()
    while True:
        due += _BATCH_S
        await clickhouse.command(
            _VOTES.replace("concat('map-', toString(poll))", "'written'"),
            {"start": done[0], "count": 5000, "per_poll": _VOTES_PER_POLL},
            settings={**INSERT_SETTINGS, "insert_deduplication_token": f"w{done[0]}"},
        )
        done[0] += 5000
        await asyncio.sleep(max(0.0, due - time.monotonic()))


async def questions(url: str, times: int) -> bool:
    """Ask while a writer writes; whether every point query stays within its limit."""
    parts = url.rpartition("/")
    analyst = ClickHouse(f"{parts[0]}/{analysts_database(DATABASE)}", connections_max=2)
    writer = ClickHouse(url, connections_max=1)
    done = [0]
    writing = asyncio.create_task(write(writer, done))
    started, is_well = time.perf_counter(), True
    asked = {**{name: examples.sql(name) for name in examples.names()}, **_POINTS}
    print(f"\n{'question':32} {'p50 ms':>8} {'p99 ms':>8}")
    try:
        for name, sql in asked.items():
            taken = []
            for _ in range(times):
                before = time.perf_counter()
                await analyst.query(sql, _PARAMETERS)
                taken.append((time.perf_counter() - before) * 1000)
            taken.sort()
            p99 = taken[int(len(taken) * 0.99) - 1]
            is_point = name not in _WHOLE_POLL
            is_well &= not is_point or p99 <= P99_MAX_MS
            print(f"{name:32} {taken[len(taken) // 2]:8.1f} {p99:8.1f}{'' if is_point else '   (reads a whole poll)'}")
    finally:
        writing.cancel()
        with suppress(asyncio.CancelledError):
            await writing
        rate = done[0] / (time.perf_counter() - started)
        print(f"meanwhile {rate:,.0f} votes/s were inserted; limit of a point query: p99 {P99_MAX_MS:g} ms")
        await analyst.close()
        await writer.close()
    return is_well


async def measure(settings: Settings, votes: int, events: int, times: int) -> bool:
    """Everything, on a running ClickHouse."""
    await migrate.migrate(settings)
    clickhouse = ClickHouse(settings.clickhouse_target, timeout_s=_FILL_S)
    try:
        await fill(clickhouse, votes, events)
        is_small = await sizes(clickhouse, "votes", votes, VOTE_MAX_BYTES)
        is_small &= await sizes(clickhouse, "match_events", events, EVENT_MAX_BYTES, ("payload",))
    finally:
        await clickhouse.close()
    return await questions(settings.clickhouse_target, times) and is_small


def main() -> None:
    """Start, measure, exit with 1 when a limit was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--votes", type=int, default=2_000_000)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=100, help="times that each question is asked")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ac-bench-") as directory, ExitStack() as stack:
        settings = Settings(data_dir=Path(directory), clickhouse_password=PASSWORD, clickhouse_port=free_port())
        stack.enter_context(running(embedded.run, settings))
        is_well = asyncio.run(measure(settings, arguments.votes, arguments.events, arguments.queries))
    raise SystemExit(0 if is_well else 1)


if __name__ == "__main__":
    main()
