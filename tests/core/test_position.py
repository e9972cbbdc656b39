"""Entry ids and positions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Poison
from core.position import K_ALL, EntryId, Position, parse_entry_id

numbers = st.integers(0, 2**63 - 1)


@given(numbers, numbers)
def test_entry_id_survives_being_written_and_parsed(ms: int, seq: int) -> None:
    assert parse_entry_id(str(EntryId(ms, seq))) == parse_entry_id(str(EntryId(ms, seq)).encode()) == (ms, seq)


def test_entry_ids_compare_as_integers_and_not_as_text() -> None:
    assert EntryId(9, 10) > EntryId(9, 9)
    assert EntryId(10, 0) > EntryId(9, 99)
    assert EntryId(7, 3).next == EntryId(7, 4)


@pytest.mark.parametrize(
    "raw", [b"", b"-", b"1", b"1-", b"-1", b"1-2-3", b"a-1", b"1-\xff", b"1 -2", b"+1-2", b"1_0-2"]
)
def test_what_is_no_entry_id_is_poison(raw: bytes) -> None:
    with pytest.raises(Poison):
        parse_entry_id(raw)


def test_position_of_a_whole_entry_lies_after_each_of_its_messages() -> None:
    assert Position(1, 5, 0, 3) < Position(1, 5, 0, K_ALL) < Position(1, 5, 1, 1)
    assert Position(1, 5, 0, 3).entry == EntryId(5, 0)


@pytest.mark.parametrize("k", [0, 1, 3, 32_000, K_ALL])
def test_debt_is_part_of_a_position_and_can_be_taken_off(k: int) -> None:
    place = Position(2, 1700, 4, k)
    owing = place.owing
    assert owing.is_owing
    assert not place.is_owing
    assert owing.owing == owing
    assert owing.settled == place
    assert place.settled == place
    assert place <= owing or k == K_ALL, "after all that this input gave up to k"
    assert owing.entry == place.entry
