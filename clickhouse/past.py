"""Events of a match as a reader of the live stream missed them: by position in the log, in chunks of bounded size.

Unlike `queries`, which serves people who look things up, this is the oldest tier of resuming: the gateway goes on from
here to the output log in Redis, so it must know what can be vouched for. `kept_since_ms` tells what the table's own
TTL may have deleted; rows that an operator deletes by hand it does not notice.
"""

import re

from msgspec import Struct

from clickhouse.client import ClickHouse
from core.position import EntryId

_EVENTS = """
SELECT stream_epoch, stream_ms, stream_seq, map_id, type, payload, found
FROM
(
    SELECT *, count() OVER () AS found, sum(length(payload)) OVER
        (ORDER BY stream_ms, stream_seq, stream_epoch ROWS UNBOUNDED PRECEDING) - length(payload) AS bytes_before
    FROM
    (
        SELECT stream_epoch, stream_ms, stream_seq, map_id, type, payload
        FROM match_events
        WHERE match_id = {match_id:String}
          AND shard = {shard:UInt8}
          AND stream_ms >= {ms:UInt64}
          AND (stream_ms, stream_seq) >= ({ms:UInt64}, {seq:UInt64})
        ORDER BY stream_ms, stream_seq, stream_epoch
        LIMIT {rows:UInt32}
    )
)
WHERE bytes_before < {bytes_max:UInt64}
ORDER BY stream_ms, stream_seq, stream_epoch
"""

_TABLE = "SELECT engine_full FROM system.tables WHERE database = currentDatabase() AND name = 'match_events'"

_TTL = re.compile(r"\bTTL\s+(.+?)(?:\s+SETTINGS\b|$)", re.DOTALL)
_AGE = re.compile(r"toInterval(Second|Minute|Hour|Day|Week|Month|Quarter|Year)\((\d+)\)")
_UNIT_S = {
    "Second": 1, "Minute": 60, "Hour": 3600, "Day": 86_400, "Week": 7 * 86_400, "Month": 28 * 86_400,
    "Quarter": 90 * 86_400, "Year": 365 * 86_400,
}  # fmt: skip
"""Never more than the calendar says."""


class PastEvent(Struct, frozen=True, gc=False):
    """One event as it was streamed, with its place in the log of its shard."""

    epoch: int
    entry: EntryId
    map_id: str
    type: str
    payload: bytes


async def past_events(
    clickhouse: ClickHouse, shard: int, match_id: str, first: EntryId, *, rows: int, bytes_max: int, timeout_s: float
) -> tuple[list[PastEvent], bool]:
    """Events of a match at and after an entry, in order, and whether there may be more; `bytes_max` may be exceeded
    by one. Rolled-back ones are among them: their epoch is not the one the log has at their entry. Raises Retry."""
    found = await clickhouse.query(
        _EVENTS,
        {
            "match_id": match_id, "shard": shard, "ms": first.ms, "seq": first.seq, "rows": rows,
            "bytes_max": bytes_max,
        },
        formats={"payload": "bytes"},
        timeout_s=timeout_s,
    )  # fmt: skip
    events = [
        PastEvent(epoch, EntryId(ms, seq), map_id, kind, payload) for epoch, ms, seq, map_id, kind, payload, _ in found
    ]
    return events, bool(found) and (found[0][6] >= rows or found[0][6] > len(found))


async def kept_since_ms(clickhouse: ClickHouse, now_ms: int, *, timeout_s: float) -> int:
    """Events received at or after this moment cannot have been deleted by age. Raises Retry."""
    found = await clickhouse.query(_TABLE, timeout_s=timeout_s)
    if not found:
        return now_ms  # there is no table, and nothing in it
    return now_ms - 1000 * age_s if (age_s := shortest_age_s(found[0][0])) is not None else 0


def shortest_age_s(engine: str) -> int | None:
    """After how long the TTL of a table may delete a row (0 when it cannot be read), None when there is no TTL."""
    ttl = _TTL.search(engine)
    if ttl is None:
        return None
    ages = [int(count) * _UNIT_S[unit] for unit, count in _AGE.findall(ttl[1])]
    return min(ages, default=0)
