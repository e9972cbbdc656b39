"""Who goes first when all readers together hold too much."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from gateway.budget import RELIEF, worst


@dataclass
class Reader:
    unsent: int
    is_closing: bool = False


readers = st.lists(st.builds(Reader, st.integers(0, 1000), st.booleans()), max_size=30)


@given(readers, st.integers(1, 5000), st.integers(0, 500))
def test_enough_go_and_no_better_reader_before_a_worse_one(held: list[Reader], bytes_max: int, others: int) -> None:
    evict, cut = worst(held, bytes_max, others)
    total = others + sum(one.unsent for one in held)
    if total <= bytes_max:
        assert not evict
        assert not cut
        return
    assert all(one.is_closing for one in cut)
    assert not any(one.is_closing for one in evict)
    left = [one for one in held if not any(one is gone for gone in (*evict, *cut))]
    rest = others + sum(one.unsent for one in left)
    assert rest <= bytes_max * RELIEF or not any(one.unsent for one in left)
    for gone in (evict, cut):
        alike = [one.unsent for one in left if one.is_closing == (gone is cut)]
        assert min((one.unsent for one in gone), default=9999) >= max(alike, default=0)
    if evict:
        assert not any(one.is_closing and one.unsent for one in left), "who was told to end goes before the others"
