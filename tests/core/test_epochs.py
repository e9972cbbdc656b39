"""Which lifetime of the log a position belongs to."""

from hypothesis import given
from hypothesis import strategies as st

from core.epochs import Epochs, parse
from core.position import K_ALL, ZERO, EntryId, Position

TABLE = Epochs({1: EntryId(0, 1), 2: EntryId(100, 5), 3: EntryId(200, 0)})


def test_entry_belongs_to_the_last_epoch_that_started_at_or_before_it() -> None:
    found = [TABLE.of(EntryId(*id_)) for id_ in ((0, 1), (100, 4), (100, 5), (199, 9), (200, 0), (999, 9))]
    assert found == [1, 1, 2, 2, 3, 3]


def test_cursor_of_an_entry_that_survived_stays_good() -> None:
    assert TABLE.holds(Position(1, 100, 4, K_ALL))
    assert TABLE.holds(Position(2, 100, 5, 1))


def test_cursor_of_an_entry_that_was_rolled_back_is_no_good() -> None:
    """Its id was given again, to another entry, in the next epoch."""
    assert not TABLE.holds(Position(1, 100, 5, 1))
    assert not TABLE.holds(Position(2, 250, 0, 1))


def test_cursor_of_an_epoch_that_never_was_is_no_good() -> None:
    assert not TABLE.holds(Position(4, 300, 0, 1))
    assert not TABLE.holds(Position(0, 50, 0, 1))
    assert not TABLE.holds(Position(2, 50, 0, 1))


def test_epoch_without_entries_is_passed_over() -> None:
    """Two restarts without an append in between start at the same id: the newer one owns it."""
    table = Epochs({1: EntryId(0, 1), 2: EntryId(50, 1), 3: EntryId(50, 1)})
    assert table.of(EntryId(50, 1)) == 3
    assert table.current == 3
    assert not table.holds(Position(2, 50, 1, 1))
    assert table.holds(Position(1, 50, 0, K_ALL))


def test_beginning_of_the_log_is_a_position_that_holds() -> None:
    for table in (TABLE, Epochs({}), Epochs({1: EntryId(0, 1), 2: EntryId(0, 1)})):
        assert table.holds(table.at(ZERO))


def test_what_lies_before_the_first_recorded_epoch_belongs_to_it() -> None:
    """So that one run of entries is one epoch's, whoever recorded it and when."""
    assert Epochs({5: EntryId(100, 1)}).of(EntryId(50, 0)) == 5


def test_position_at_the_beginning_of_an_unwritten_log_holds_when_the_first_epoch_begins() -> None:
    """Whoever subscribed before the first event is not asked to come back because of it."""
    assert Epochs({1_764_000_000_000: EntryId(0, 1)}).holds(Epochs({}).at(ZERO))


def test_hash_is_read_without_its_other_fields() -> None:
    table = parse({b"run": b"x:y", b"now": b"2", b"1": b"0-1", b"2": b"7-3"})
    assert (table.current, table.of(EntryId(7, 2)), table.of(EntryId(7, 3))) == (2, 1, 2)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5)), min_size=1, max_size=8), st.integers(0, 60))
def test_whatever_an_entry_gives_holds_as_long_as_it_is_in_the_log(firsts: list[tuple[int, int]], ms: int) -> None:
    table = Epochs({number: EntryId(*first) for number, first in enumerate(sorted(firsts), 1)})
    assert table.holds(table.at(EntryId(ms, 0)))
