"""Rates over time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.curves import Curve, Segment, burst, sustained

# None, or one event in a day and more: the square of a rate of 1e-200 is 0, and no load is like that.
RATES = st.just(0.0) | st.floats(min_value=1e-5, max_value=10_000.0)
SEGMENTS = st.builds(Segment, st.floats(min_value=0.1, max_value=100.0), RATES, RATES)


def test_sustained_is_a_thousand_a_second_for_five_minutes() -> None:
    curve = sustained()
    assert curve.seconds == 300
    assert curve.total == 300_000
    assert {curve.rate(t) for t in (0, 150, 299.9)} == {1000}


def test_burst_reaches_its_peak_within_30_s_and_is_calm_again_a_minute_later() -> None:
    curve = burst()
    assert curve.rate(0) == curve.rate(14.9) == 100
    assert curve.rate(45) == curve.peak == 5000
    assert curve.rate(15 + 30 + 60) == pytest.approx(100)
    assert curve.seconds == 120


def test_shorter_burst_has_the_same_peak() -> None:
    curve = burst(seconds=30)
    assert curve.peak == 5000
    assert curve.rate(11.25) == pytest.approx(5000)
    assert curve.total == pytest.approx(burst().total / 4)


def test_nothing_is_due_outside_of_the_curve() -> None:
    curve = sustained(10, 2)
    assert curve.rate(-1) == curve.rate(2) == 0
    assert curve.count(-1) == 0
    assert curve.count(99) == 20
    assert curve.when(20) is None


@given(st.lists(SEGMENTS, min_size=1, max_size=4), st.floats(min_value=0.0, max_value=0.999))
def test_when_is_the_inverse_of_count(segments: list[Segment], share: float) -> None:
    curve = Curve("any", segments)
    count = curve.total * share
    when = curve.when(count)
    if when is None:  # only where nothing is left to come
        assert count >= curve.total * 0.999 or curve.total == 0
        return
    assert 0 <= when <= curve.seconds
    assert curve.count(when) == pytest.approx(count, rel=1e-6, abs=1e-6)


def test_events_are_due_in_order_and_evenly_at_a_constant_rate() -> None:
    curve = sustained(100, 1)
    moments = [curve.when(number) for number in range(100)]
    assert moments == pytest.approx([number / 100 for number in range(100)])
