"""Which tally covered which vote, and percentiles."""

import numpy as np
import pytest

from loadtests.latency import LatencyGrid, coverage, exact, ranks


def u64(*values: int) -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
    return np.asarray(values, dtype=np.uint64)


def floats(*values: float) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    return np.asarray(values, dtype=np.float64)


def test_rank_is_the_place_in_the_log() -> None:
    found, missing = ranks(u64(2**64 - 1, 7, 5), u64(5, 7, 2**64 - 1, 6))
    assert found.tolist() == [3, 2, 1, 0]
    assert missing == 1


def test_nothing_has_a_rank_in_an_empty_log() -> None:
    found, missing = ranks(u64(), u64(1, 2))
    assert (found.tolist(), missing) == ([0, 0], 2)


def test_a_vote_is_covered_by_the_first_tally_that_counts_it() -> None:
    rank = np.asarray([1, 2, 3, 4])
    due, latency_ms, uncovered = coverage(
        rank, floats(10.0, 10.0, 10.1, 10.2), u64(0, 2, 2, 4), floats(9.0, 10.05, 10.06, 10.3)
    )
    assert due.tolist() == [10.0, 10.0, 10.1, 10.2]
    assert latency_ms.tolist() == pytest.approx([50, 50, 200, 100])
    assert uncovered == 0


def test_votes_after_the_last_tally_are_uncovered_and_unlogged_ones_are_left_out() -> None:
    due, latency_ms, uncovered = coverage(np.asarray([0, 1, 5]), floats(1.0, 1.0, 1.0), u64(3), floats(1.5))
    assert (due.tolist(), uncovered) == ([1.0], 1)
    assert latency_ms.tolist() == pytest.approx([500])


def test_percentiles_of_the_grid_are_at_most_a_hundredth_too_high() -> None:
    values = np.random.default_rng(1).lognormal(3.0, 1.0, 20_000)
    grid = LatencyGrid(10)
    grid.add(np.linspace(0, 9.9, len(values)), values)
    for q in (50.0, 95.0, 99.0, 99.9):
        true = float(np.sort(values)[round(len(values) * q / 100) - 1])
        assert true <= grid.percentile(q) <= true * 1.0101
    assert grid.summary().highest == values.max()
    assert grid.summary().count == 20_000


def test_percentiles_over_time_belong_to_the_second_in_which_a_vote_was_due() -> None:
    grid = LatencyGrid(4)
    grid.add(floats(0.1, 0.9, 2.5, 99.0), floats(10.0, 10.0, 500.0, 1.0))
    found = grid.over_time(50.0)
    assert found[0] == pytest.approx(10, rel=0.011)
    assert np.isnan(found[1])
    assert found[2] == pytest.approx(500, rel=0.011)
    assert found[3] == pytest.approx(1, rel=0.011)  # due after the end: counted in the last second


def test_share_of_deliveries_rises_to_one() -> None:
    grid = LatencyGrid(1)
    grid.add(floats(0.0, 0.0), floats(1.0, 100.0))
    latency, share = grid.cdf()
    assert share[np.searchsorted(latency, 50.0)] == 0.5
    assert share[-1] == 1.0


def test_nothing_has_no_latency() -> None:
    assert LatencyGrid(1).summary().p99 == exact([]).p99 == 0.0


def test_exact_percentiles() -> None:
    found = exact([float(value) for value in range(1, 1001)])
    assert (found.p50, found.p95, found.p99, found.p999, found.highest) == (500, 950, 990, 999, 1000)
