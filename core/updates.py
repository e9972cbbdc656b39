"""What leaves a state consumer: one entry of `updates:{s}` per applied batch.

The entry's id is the id of the batch's last input event. Its field `u` holds a msgpack `Update`: the ordered messages
for readers (each with its own position) and the facts derived for the archive. `previous` chains the entries: a
reader that knows the last entry it saw notices a trimmed or lost one at once.
"""

from typing import Literal

import msgspec
from msgspec import Struct

from core.errors import Poison
from core.position import EntryId, Position


class Message(Struct, array_like=True, frozen=True, gc=False):
    """One message for readers.

    `data` is a JSON object on one line, without `topic`, which every transport adds in its own way. `received_us` is
    when ingest received the oldest input behind it, so a latency measured from it is never flattered.
    """

    topic: str
    kind: str
    is_state: bool
    ms: int
    seq: int
    k: int
    data: bytes
    received_us: int
    correlation: str

    def position(self, epoch: int) -> Position:
        """Position of this message, given the epoch of its update."""
        return Position(epoch, self.ms, self.seq, self.k)


class Prediction(Struct, array_like=True, frozen=True, tag="prediction"):
    """Win probability of a map after a round."""

    ms: int
    seq: int
    k: int
    match_id: str
    map_id: str
    round_no: int
    p_team1: float
    model: str
    ts_ms: int


class Round(Struct, array_like=True, frozen=True, tag="round"):
    """A finished round, or a correction of one: the highest (ms, seq) of a (match, map, round) counts.

    `is_void` says that a restore or a restart took the round back.
    """

    ms: int
    seq: int
    k: int
    match_id: str
    map_id: str
    round_no: int
    winner: Literal["team1", "team2", ""]
    reason: str
    score_team1: int
    score_team2: int
    is_void: bool
    ts_ms: int


class MapState(Struct, array_like=True, frozen=True, tag="map"):
    """Summary of a map after a change: the highest (ms, seq) of a (match, map) counts."""

    ms: int
    seq: int
    k: int
    match_id: str
    map_id: str
    map_name: str
    status: str
    winner: str
    round_no: int
    team1: str
    team2: str
    score_team1: int
    score_team2: int
    ts_ms: int


class SeriesState(Struct, array_like=True, frozen=True, tag="series"):
    """Summary of a match around its maps after a change: the highest (ms, seq) of a match counts.

    `num_maps` is 0 while nobody said how many there are at most.
    """

    ms: int
    seq: int
    k: int
    match_id: str
    status: str
    winner: str
    num_maps: int
    team1: str
    team2: str
    maps_team1: int
    maps_team2: int
    ts_ms: int


class PollState(Struct, array_like=True, frozen=True, tag="poll"):
    """A poll's lifecycle: written when its definition or status changes."""

    ms: int
    seq: int
    k: int
    poll_id: str
    status: str
    title: str
    voting: str
    match_id: str
    options: dict[str, str]
    ts_ms: int


Fact = Prediction | Round | MapState | SeriesState | PollState


class Update(Struct, array_like=True, frozen=True):
    """Everything one batch of inputs gave, in order of position."""

    epoch: int
    first: EntryId
    previous: EntryId
    applied_us: int
    messages: list[Message]
    facts: list[Fact]


class Topic(Struct, array_like=True, frozen=True, gc=False):
    """How a `Message` begins: enough to know whether anybody reads it."""

    topic: str


class _Outline(Struct, array_like=True, frozen=True):
    """How an `Update` begins."""

    epoch: int
    first: EntryId
    previous: EntryId
    applied_us: int
    messages: list[Topic]


class Outlined:
    """An `Update` of which only the topics were decoded so far: a third of the work when nobody reads them here."""

    __slots__ = ("_raw", "applied_us", "epoch", "previous", "topics")

    def __init__(self, raw: bytes) -> None:
        """Raises msgspec's errors."""
        outline = _outline_decoder.decode(raw)
        self.epoch = outline.epoch
        self.previous = outline.previous
        self.applied_us = outline.applied_us
        self.topics = outline.messages
        self._raw = raw

    def whole(self) -> Update:
        """All of it. Raises Poison when the rest is malformed."""
        return decode_update({b"u": self._raw})


OUTLINE_BYTES = 4096
"""Entries from this size on are worth looking at twice."""

_outline_decoder = msgspec.msgpack.Decoder(_Outline)
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Update)


def encode_update(update: Update) -> bytes:
    """Field `u` of an entry of `updates:{s}`."""
    return _encoder.encode(update)


def outline_update(fields: dict[bytes, bytes]) -> Update | Outlined:
    """Like `decode_update`, but of a large entry only what tells whether it is worth more."""
    raw = fields.get(b"u", b"")
    if len(raw) < OUTLINE_BYTES:
        return decode_update(fields)
    try:
        return Outlined(raw)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise Poison("malformed update entry") from error


def decode_update(fields: dict[bytes, bytes]) -> Update:
    """Read an entry of `updates:{s}`. Raises Poison when it is not one."""
    try:
        return _decoder.decode(fields[b"u"])
    except (KeyError, msgspec.DecodeError, msgspec.ValidationError) as error:
        raise Poison("malformed update entry") from error
