"""The client's buckets mean what `client.c` puts into them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.fanout.histogram import percentile_ms, upper_us


def bucket_of(latency_us: int) -> int:
    """As in client.c."""
    octave = 0 if latency_us < 128 else latency_us.bit_length() - 7
    return octave * 64 + (latency_us >> octave)


@given(st.integers(0, 10**8))
def test_a_bucket_reaches_up_to_at_most_two_percent_above_what_is_in_it(latency_us: int) -> None:
    upper = upper_us(bucket_of(latency_us))
    assert latency_us <= upper <= latency_us * 1.016


@given(st.integers(1, 10**8))
def test_buckets_neither_overlap_nor_leave_gaps(latency_us: int) -> None:
    bucket = bucket_of(latency_us)
    assert upper_us(bucket - 1) < latency_us


@pytest.mark.parametrize(("q", "expected"), [(50, 0.050), (99, 0.099), (99.9, 0.1), (100, 0.1)])
def test_percentiles_count_messages_and_not_buckets(q: float, expected: float) -> None:
    assert percentile_ms([(latency, 1) for latency in range(1, 101)], q) == expected


def test_no_messages_have_no_latency() -> None:
    assert percentile_ms([], 99) == 0.0
