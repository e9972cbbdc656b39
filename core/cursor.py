"""Cursors: what a reader keeps, and gives back on any transport to any node.

Text form, inside the contract's `[A-Za-z0-9_.~:-]{1,3000}`:

    1~<fingerprint>~<shard>.<epoch>.<ms>.<seq>.<k>[~<shard>.…]

One part per shard involved, ascending by shard, so that its length grows with shards and not with topics. The
fingerprint is a hash of the log's identity (drawn when a data directory is first used) and of the sorted topics: a
cursor of another data directory, or of other topics, does not match and is answered with a `reset`, never an error.
A cursor names what was *processed*: reading resumes strictly after it.
"""

from collections.abc import Iterable, Mapping

from xxhash import xxh64_hexdigest

from core.position import Position

LENGTH_MAX = 3000
_VERSION = "1"
_INT_MAX = 2**63 - 1


def fingerprint(log_id: str, topics: Iterable[str]) -> str:
    """16 hex digits that tell one set of topics in one log from every other."""
    return xxh64_hexdigest("\0".join((log_id, *sorted(set(topics)))).encode())


def format_position(shard: int, position: Position) -> str:
    """The part of a cursor that stands for one shard."""
    return f"{shard}.{position.epoch}.{position.ms}.{position.seq}.{position.k}"


def encode(print_: str, vector: Mapping[int, Position]) -> str:
    """Cursor text for a fingerprint and the position reached in each shard."""
    return "~".join((_VERSION, print_, *(format_position(shard, vector[shard]) for shard in sorted(vector))))


def decode(text: str, print_: str, shards: Iterable[int]) -> dict[int, Position] | None:
    """Positions by shard, or None when `text` is no usable cursor for this fingerprint and these shards.

    Whether the positions still *exist* (not trimmed, not rolled back, not in the future) is for the log to say.
    """
    if not text.isascii() or len(text) > LENGTH_MAX:
        return None
    version, *rest = text.split("~")
    if version != _VERSION or not rest or rest[0] != print_:
        return None
    vector: dict[int, Position] = {}
    for part in rest[1:]:
        fields = part.split(".")
        if len(fields) != 5 or not all(field.isdecimal() and len(field) <= 19 for field in fields):
            return None
        shard, *numbers = map(int, fields)
        if shard in vector or max(numbers) > _INT_MAX:
            return None
        vector[shard] = Position(*numbers)
    return vector if vector.keys() == set(shards) else None
