"""Who did what with the data besides writing it: records of reads, exports and repairs, on their way to the archive.

A record is an entry of `audit:{s}` in the shard of its subject, field `d`, a JSON object. Writes need none: every
event in the log says itself when, from which source and with which request it came.

There is no personal data in a record. The actor is `anonymous`, `operator` (the command line), or `key:` and a hash
of the bearer key that was shown, never the key; network addresses are not recorded at all, because the key says who
answers for a request, and an address would only say from where a person made it.
"""

from collections.abc import Sequence
from hashlib import blake2b

import msgspec
from msgspec import Struct

from core import keys
from core.errors import Poison
from core.names import shard_of
from core.redis_client import Argument, Scripts, lua

ANONYMOUS = "anonymous"
OPERATOR = "operator"

ENTRIES_MAX = 100_000
"""Records of a shard that wait for the archive; beyond it new ones are lost, counted, and the reads go on."""


class Record(Struct, frozen=True):
    """One fact. Unknown keys are ignored and new ones have defaults: readers are deployed before writers."""

    subject: str
    """`match.<id>`, `poll.<id>`, or "" for all of it."""
    action: str
    """`read_events`, `replay`, `read_audit`, `export`, `repair`, …"""
    actor: str
    at_ms: int
    requests: int = 1
    """Equal ones within a second are one record."""
    events: int = 0
    after: str = ""
    last: str = ""
    """What was read lies after the one place and ends with the other, as in `clickhouse.queries.Place`."""
    correlation: str = ""
    detail: str = ""


def key_id(key: str) -> str:
    """The actor who showed this bearer key: tells keys apart, and does not help to guess one."""
    return f"key:{blake2b(key.encode(), digest_size=4, person=b'arenacast').hexdigest()}"


def sources() -> dict[str, str]:
    """The script that `append` needs, for a process's `Scripts`."""
    return {"append_audit": lua("core", "append_audit")}


async def append(scripts: Scripts, shards: int, records: Sequence[Record]) -> int:
    """Append records, in order within a subject; returns how many found no room. Raises Retry when Redis is away: none,
    some or all of them may be there."""
    by_shard: dict[int, list[Argument]] = {}
    for record in records:
        by_shard.setdefault(shard_of(record.subject, shards), []).append(encode_record(record))
    lost = 0
    for shard, bodies in by_shard.items():
        for start in range(0, len(bodies), _APPEND_MAX):
            part = bodies[start : start + _APPEND_MAX]
            names = [keys.audit(shard), keys.archive(shard, "audit")]
            lost += len(part) - int(await scripts.run("append_audit", names, [ENTRIES_MAX, *part]))
    return lost


_APPEND_MAX = 1000
encode_record = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Record).decode


def decode_record(fields: dict[bytes, bytes]) -> Record:
    """Read an entry of `audit:{s}`. Raises Poison when it is not one."""
    try:
        return _decode(fields[b"d"])
    except (KeyError, msgspec.DecodeError, ValueError) as error:
        raise Poison("malformed audit record") from error
