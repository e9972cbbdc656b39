"""Cursors: the text a stranger may send back in any shape."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core.cursor import LENGTH_MAX, decode, encode, fingerprint
from core.position import K_ALL, Position

PRINT = fingerprint("log", ["poll.p1"])
numbers = st.integers(0, 2**63 - 1)
positions = st.builds(Position, numbers, numbers, numbers, st.integers(0, K_ALL))
vectors = st.dictionaries(st.integers(0, 63), positions, min_size=1, max_size=64)


@given(vectors)
def test_cursor_survives_being_written_and_read(vector: dict[int, Position]) -> None:
    text = encode(PRINT, vector)
    if len(text) <= LENGTH_MAX:
        assert decode(text, PRINT, vector) == vector
    assert re.fullmatch(r"[A-Za-z0-9_.~:-]+", text)


@given(
    st.dictionaries(
        st.integers(0, 63), st.just(Position(9_999_999_999_999, 9_999_999_999_999, 9_999_999, K_ALL)), min_size=64
    )
)
def test_cursor_over_all_shards_fits_the_contract(vector: dict[int, Position]) -> None:
    """64 shards, moments of this century and the next, more entries in a millisecond than a server appends."""
    assert len(encode(PRINT, vector)) <= LENGTH_MAX


@given(st.text(max_size=200))
@example("1~" + PRINT)
@example("1~" + PRINT + "~")
@example("1~" + PRINT + "~0.1.1.1.1~0.1.1.1.1")
@example("1~" + PRINT + "~0.1.1.1")
@example("1~" + PRINT + "~0.1.1.1.-1")
@example("1~" + PRINT + "~0.1.1.1.99999999999999999999")
@example("1~" + PRINT + "~0.1.1.1.9223372036854775808")
@example("1~" + PRINT + "~0.1.1.1.²")
@example("1~" + PRINT + "~0.1.1.1.1\n")
@example("2~" + PRINT + "~0.1.1.1.1")
@example("\ud800")
def test_garbage_is_no_cursor_and_no_error(text: str) -> None:
    assert decode(text, PRINT, [0]) is None


@given(vectors, st.data())
def test_cut_cursor_never_gives_positions_it_did_not_have(vector: dict[int, Position], data: st.DataObject) -> None:
    text = encode(PRINT, vector)
    cut = text[: data.draw(st.integers(0, len(text) - 1))]
    found = decode(cut, PRINT, vector)
    assert found is None or found.keys() == vector.keys()


def test_cursor_of_other_topics_or_of_another_log_does_not_match() -> None:
    text = encode(PRINT, {0: Position(1, 2, 3, 4)})
    assert decode(text, fingerprint("log", ["poll.p2"]), [0]) is None
    assert decode(text, fingerprint("other log", ["poll.p1"]), [0]) is None
    assert decode(text, PRINT, [0]) == {0: Position(1, 2, 3, 4)}


def test_cursor_of_other_shards_does_not_match() -> None:
    text = encode(PRINT, {0: Position(1, 2, 3, 4)})
    assert decode(text, PRINT, [1]) is None
    assert decode(text, PRINT, [0, 1]) is None


def test_fingerprint_does_not_depend_on_order_or_repetition_of_topics() -> None:
    assert fingerprint("log", ["b", "a", "a"]) == fingerprint("log", ["a", "b"])
    assert fingerprint("log", ["a", "b"]) != fingerprint("log", ["a"])


@pytest.mark.parametrize("length", [LENGTH_MAX + 1, 10_000_000])
def test_overlong_cursor_is_refused(length: int) -> None:
    text = encode(PRINT, {0: Position(1, 2, 3, 4)})
    assert decode(text + "0" * (length - len(text)), PRINT, [0]) is None
