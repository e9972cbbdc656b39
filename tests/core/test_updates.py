"""Entries of the output log."""

import msgspec
import pytest

from core.errors import Poison
from core.position import EntryId, Position
from core.updates import (
    MapState,
    Message,
    Outlined,
    PollState,
    Prediction,
    Round,
    Update,
    decode_update,
    encode_update,
    outline_update,
)

UPDATE = Update(
    2,
    EntryId(1, 0),
    EntryId(0, 5),
    1_700_000_000_000_000,
    [Message("poll.p1", "tally", True, 1, 0, 1, b'{"total":1}', 1_700_000_000_000_000, "c")],
    [
        Prediction(1, 0, 3, "m", "1", 4, 0.5, "race", 1),
        Round(1, 0, 1, "m", "1", 4, "team1", "8", 3, 1, False, 1),
        MapState(1, 0, 2, "m", "1", "de_nuke", "live", "", 4, "A", "B", 3, 1, 1),
        PollState(1, 0, 1, "p1", "open", "t", "first", "m", {"a": "A"}, 1),
    ],
)


def test_update_survives_being_written_and_read() -> None:
    assert decode_update({b"u": encode_update(UPDATE)}) == UPDATE


def test_message_has_the_position_of_its_epoch() -> None:
    assert UPDATE.messages[0].position(UPDATE.epoch) == Position(2, 1, 0, 1)


@pytest.mark.parametrize("fields", [{}, {b"u": b""}, {b"u": b"\xff"}, {b"u": msgspec.msgpack.encode([1, 2])}])
def test_malformed_update_is_poison(fields: dict[bytes, bytes]) -> None:
    with pytest.raises(Poison):
        decode_update(fields)


def test_older_reader_ignores_what_a_newer_writer_appends() -> None:
    array = msgspec.msgpack.decode(encode_update(UPDATE))
    assert decode_update({b"u": msgspec.msgpack.encode([*array, "new"])}) == UPDATE


def test_of_a_large_entry_first_only_the_topics_are_looked_at() -> None:
    large = msgspec.structs.replace(UPDATE, messages=UPDATE.messages * 100)
    outline = outline_update({b"u": encode_update(large)})
    assert isinstance(outline, Outlined)
    assert (outline.epoch, outline.previous, outline.applied_us) == (large.epoch, large.previous, large.applied_us)
    assert [each.topic for each in outline.topics] == ["poll.p1"] * 100
    assert outline.whole() == large
    assert outline_update({b"u": encode_update(UPDATE)}) == UPDATE


def test_a_large_entry_that_is_none_is_poison_now_or_when_it_is_asked_for() -> None:
    with pytest.raises(Poison):
        outline_update({b"u": msgspec.msgpack.encode([1, "x" * 5000])})
    for fields in ({}, {b"u": b"\xff"}):
        with pytest.raises(Poison):
            outline_update(fields)
    array = msgspec.msgpack.decode(encode_update(msgspec.structs.replace(UPDATE, messages=UPDATE.messages * 100)))
    array[4][99][6] = 1  # no data
    outline = outline_update({b"u": msgspec.msgpack.encode(array)})
    assert isinstance(outline, Outlined)
    with pytest.raises(Poison):
        outline.whole()
