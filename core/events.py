"""What may enter the log, and how one log entry is laid out.

An entry of `events:{s}` has two fields:

    h   header, words separated by one space: kind topic received_us correlation ordinal
    d   body, one JSON object without newlines, encoded exactly once, by ingest

`kind` is one of the `ENTRY_KINDS`. `received_us` is the Unix time in microseconds at which ingest received the
request. `ordinal` numbers the entries of a shard and class (votes; everything else) from 1 without gaps: it is the
append script's own count, so a consumer that sees a jump knows that the log lost something. Votes carry the keyed
hash of the voter, 16 hex digits; the platform's identity is stored nowhere.

Readers ignore unknown JSON keys, and a new field always has a default: readers are deployed before writers.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from core.errors import Poison
from core.names import ID_PATTERN, TYPE_PATTERN
from core.position import EntryId, parse_entry_id

Id = Annotated[str, Meta(pattern=ID_PATTERN)]
Key = Annotated[str, Meta(min_length=1, max_length=128)]  # printable: checked where it enters
Source = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:-]{1,32}\Z")]
Instant = Annotated[datetime, Meta(tz=True)]
Voting = Literal["first", "last", "unlimited"]

EntryKind = Literal["vote", "match", "poll", "open", "close", "idle"]
ENTRY_KINDS: tuple[EntryKind, ...] = ("vote", "match", "poll", "open", "close", "idle")
"""vote, match: facts from outside · poll: definition · open, close: of a poll · idle: end of a silent map."""

EVENT_MAX_BYTES = 256 * 1024
"""One encoded event: it is framed and kept in memory by every gateway that has a subscriber for it."""


class Vote(Struct, frozen=True, gc=False):
    """One vote. At the door `voter` is the platform's identity; in the log it is its keyed hash."""

    event_id: Key
    poll_id: Id
    option: Id
    voter: Key
    ts: Instant | None = None
    source: Source = "api"


class MatchEvent(Struct, frozen=True):
    """One event of a match, `data` as its source sent it (JSON object, normalised to one line).

    With `corrects`, the id of an earlier event of the match, it says what that event should have been: of the record,
    which keeps both, not of the live state, which is made of what was known at the time. Corrections of a correction
    name the original again, with a higher `revision` (2 when unsaid).
    """

    event_id: Key
    match_id: Id
    map_id: Id
    type: Annotated[str, Meta(pattern=TYPE_PATTERN)]
    round_no: Annotated[int, Meta(ge=0, le=10_000)] | None = None
    ts: Instant | None = None
    source: Source = "api"
    data: dict[str, Any] = {}
    corrects: Key | UnsetType = UNSET
    revision: Annotated[int, Meta(ge=2, le=65_535)] | UnsetType = UNSET

    @property
    def version(self) -> int:
        """1 for an event as it was first told, else which correction of it this is: the highest counts, and among
        equals the later one in the log."""
        return 1 if self.corrects is UNSET else 2 if self.revision is UNSET else self.revision


class Option(Struct, frozen=True):
    """One choice of a poll."""

    id: Id
    label: Annotated[str, Meta(min_length=1, max_length=200)]


class PollDefinition(Struct, frozen=True):
    """A poll as its owner defines it. `opens_at` None = open from its creation, `closes_at` None = until closed."""

    poll_id: Id
    title: Annotated[str, Meta(min_length=1, max_length=500)]
    options: Annotated[tuple[Option, ...], Meta(min_length=1, max_length=100)]
    voting: Voting = "first"
    match_id: Id | None = None
    opens_at: Instant | None = None
    closes_at: Instant | None = None


class Change(Struct, frozen=True):
    """Body of open, close and idle entries. `due_ms` is set when a timer and not a caller asked for it."""

    reason: Literal["request", "timer"]
    due_ms: int | None = None


class Entry(Struct, frozen=True, gc=False):
    """One entry of the input log, header parsed, body still encoded."""

    id: EntryId
    kind: EntryKind
    topic: str
    received_us: int
    correlation: str
    ordinal: int
    body: bytes


_KINDS: dict[str, EntryKind] = {kind: kind for kind in ENTRY_KINDS}


def header(kind: EntryKind, topic: str, received_us: int, correlation: str) -> str:
    """Header without its ordinal, which the append script adds."""
    return f"{kind} {topic} {received_us} {correlation}"


def parse_entry(raw_id: bytes, fields: dict[bytes, bytes]) -> Entry:
    """Read one entry of `events:{s}`. Raises Poison when it is not one."""
    try:
        kind, topic, received_us, correlation, ordinal = fields[b"h"].decode().split(" ")
        return Entry(
            parse_entry_id(raw_id), _KINDS[kind], topic, int(received_us), correlation, int(ordinal), fields[b"d"]
        )
    except (KeyError, ValueError) as error:
        raise Poison(f"malformed log entry {raw_id!r}") from error


decode_vote = msgspec.json.Decoder(Vote).decode
decode_match_event = msgspec.json.Decoder(MatchEvent).decode
decode_poll = msgspec.json.Decoder(PollDefinition).decode
decode_change = msgspec.json.Decoder(Change).decode
encode_json = msgspec.json.Encoder().encode
"""Compact JSON on one line: safe to frame as one `data:` line of an event stream."""
