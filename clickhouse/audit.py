"""What happened with a match: who wrote, corrected and read its events, in the order in which it happened.

Writes are the events themselves (`match_events`), reads are records (`audit`), from two logs of one shard that share
Redis' clock. A page ends where the archive of either has entries waiting, so that it is final: what comes to ClickHouse
later has a later place.
"""

from datetime import UTC, datetime
from typing import Literal, NamedTuple

from msgspec import UNSET, Struct, UnsetType
from redis.exceptions import ResponseError

from clickhouse.client import ClickHouse
from clickhouse.queries import Place, parse_place
from core import keys
from core.position import ZERO, parse_entry_id
from core.redis_client import Redis, call, translate

LIMIT_MAX = 1000

_PAGE = """
SELECT * FROM
(
    SELECT stream_ms, stream_seq, stream_epoch, toUInt8(0) AS log, toUnixTimestamp64Milli(received_at) AS at_ms,
           if(corrects = '', 'write', 'correct') AS action, concat('source:', source) AS actor, correlation,
           event_id, map_id, type, toUInt64(revision) AS revision, corrects,
           toUInt64(1) AS requests, toUInt64(1) AS events, '' AS after, '' AS last, '' AS detail
    FROM match_events
    WHERE match_id = {match_id:String} AND stream_ms >= {ms:UInt64} AND stream_ms < {until:UInt64}
    UNION ALL
    SELECT stream_ms, stream_seq, stream_epoch, toUInt8(1), toUnixTimestamp64Milli(ts), action, actor, correlation,
           '', '', '', toUInt64(0), '', toUInt64(requests), events, after, last, detail
    FROM audit
    WHERE subject = concat('match.', {match_id:String}) AND stream_ms >= {ms:UInt64} AND stream_ms < {until:UInt64}
)
WHERE (stream_ms, stream_seq, stream_epoch, log) > ({ms:UInt64}, {seq:UInt64}, {epoch:UInt64}, {log:UInt8})
ORDER BY stream_ms, stream_seq, stream_epoch, log
LIMIT {rows:UInt32}
"""


class AuditEntry(Struct, frozen=True):
    """Something that somebody did with a match.

    `write` and `correct` have the event's ids and its position; the others say what was read.
    """

    at: str
    action: str
    actor: str
    correlation: str
    position: str | UnsetType = UNSET
    event_id: str | UnsetType = UNSET
    map_id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    revision: int | UnsetType = UNSET
    corrects: str | UnsetType = UNSET
    requests: int | UnsetType = UNSET
    events: int | UnsetType = UNSET
    after: str | UnsetType = UNSET
    last: str | UnsetType = UNSET
    detail: str | UnsetType = UNSET


class AuditPage(Struct, frozen=True):
    """Entries in order. `next` is the `after` of the following page, null when there was nothing more."""

    entries: list[AuditEntry]
    next: str | None


class AuditPlace(NamedTuple):
    """Place of an entry, and which of the two logs it is in."""

    place: Place
    log: Literal[0, 1]

    def __str__(self) -> str:
        return f"{self.place}.{self.log}"


AUDIT_BEGINNING = AuditPlace(Place(0, 0, 0), 0)


def parse_audit_place(text: str) -> AuditPlace:
    """Read the `next` of a page. Raises ValueError, with a text fit for the client, when it is not one."""
    place, _, log = text.rpartition(".")
    if log not in ("0", "1"):
        raise ValueError("after must be a position that a page gave as next")
    return AuditPlace(parse_place(place), 1 if log == "1" else 0)


async def audit_page(
    clickhouse: ClickHouse, client: Redis, shard: int, match_id: str, after: AuditPlace, limit: int
) -> AuditPage:
    """The next entries after a place. Raises Retry when either server is away."""
    until = await _settled_ms(client, shard)
    place = after.place
    rows = await clickhouse.query(
        _PAGE,
        {
            "match_id": match_id, "ms": place.ms, "seq": place.seq, "epoch": place.epoch, "log": after.log,
            "until": until, "rows": limit + 1,
        },
    )  # fmt: skip
    shown = rows[:limit]
    following = None
    if len(rows) > limit:
        ms, seq, epoch, log = shown[-1][:4]
        following = str(AuditPlace(Place(ms, seq, epoch), log))
    return AuditPage([_entry(*row) for row in shown], following)


async def _settled_ms(client: Redis, shard: int) -> int:
    """Before this moment of Redis' clock nothing is missing in ClickHouse, and nothing will come."""
    logs = (("events", keys.events(shard)), ("audit", keys.audit(shard)))
    pipe = client.pipeline(transaction=True)
    pipe.time()
    for name, stream in logs:
        pipe.hget(keys.archive(shard, name), "committed")
        pipe.xinfo_stream(stream)
    moment, *replies = await call(pipe.execute(raise_on_error=False))
    if isinstance(moment, Exception):
        raise translate(moment) from moment
    bounds: list[int] = [moment[0] * 1000 + moment[1] // 1000]
    for committed, info in zip(replies[::2], replies[1::2], strict=True):
        if isinstance(info, ResponseError):
            continue  # no such key: nothing was ever appended
        archived = parse_entry_id(committed) if committed else ZERO
        if parse_entry_id(info["last-generated-id"]) > archived:
            bounds.append(archived.ms)
    return min(bounds)


def _entry(
    ms: int, seq: int, epoch: int, log: int, at_ms: int, action: str, actor: str, correlation: str, event_id: str,
    map_id: str, type_: str, revision: int, corrects: str, requests: int, events: int, after: str, last: str,
    detail: str,
) -> AuditEntry:  # fmt: skip
    at = datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if log == 0:
        return AuditEntry(
            at, action, actor, correlation, str(Place(ms, seq, epoch)), event_id, map_id, type_, revision,
            corrects or UNSET,
        )  # fmt: skip
    return AuditEntry(
        at, action, actor, correlation, requests=requests, events=events, after=after or UNSET, last=last or UNSET,
        detail=detail or UNSET,
    )  # fmt: skip
