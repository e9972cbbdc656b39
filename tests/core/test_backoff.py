"""Waiting after failures: growing, bounded, and for outages of any length."""

from core.backoff import FIRST_S, delay_s


def test_delays_double_up_to_the_longest() -> None:
    assert [delay_s(failures, 1.0) for failures in range(1, 6)] == [FIRST_S, 0.2, 0.4, 0.8, 1.0]


def test_an_outage_of_any_length_has_a_delay() -> None:
    """2 to the power of a few thousand fits no float: the loop would end with an error of its own."""
    assert delay_s(100_000, 2.0) == 2.0
