"""Series, objectives, and whether the generator can be believed."""

import numpy as np

from loadtests import outcome
from loadtests.latency import Summary, exact
from loadtests.machine import OTHERS, Samples, Usage
from loadtests.observe import quantile
from loadtests.trace import Requests, Trace

CALM = Samples([1.0, 2.0], {"sender": Usage([20.0, 30.0]), OTHERS: Usage([1.0, 2.0]), "ingest": Usage([40.0, 40.0])})


def trace(late_ms: float = 1.0, open_max: int = 3) -> Trace:
    due = np.arange(10.0)
    zeros = np.zeros(10, dtype=np.int64)
    return Trace(0.0, 10.0, Requests(due, due + late_ms / 1000, due + 1, zeros, zeros), {}, {}, 200, open_max)


def doubts(samples: Samples = CALM, sent: Trace | None = None, lag: Summary | None = None) -> str:
    return " ".join(outcome.doubts(samples, ["sender"], sent or trace(), lag or exact([1.0]), cores=2))


def test_a_calm_generator_on_a_calm_machine_is_believed() -> None:
    assert doubts() == ""


def test_a_generator_without_time_left_says_so() -> None:
    assert "sender used 99 % of a core" in doubts(Samples([1.0], {"sender": Usage([99.0])}))


def test_a_generator_that_sends_or_reads_late_says_so() -> None:
    assert "left 80 ms late" in doubts(sent=trace(late_ms=80))
    assert "read 90 ms late" in doubts(lag=exact([90.0]))


def test_a_pipeline_that_holds_up_the_schedule_is_not_blamed_on_the_generator() -> None:
    found = doubts(sent=trace(late_ms=5000, open_max=200))
    assert "pipeline held up" in found
    assert "late" not in found


def test_a_full_machine_and_other_programs_are_named() -> None:
    found = doubts(Samples([1.0], {"sender": Usage([50.0]), "ingest": Usage([5.0]), OTHERS: Usage([150.0])}))
    assert "2 cores were busy" in found
    assert "other programs used 150 %" in found


def test_a_generator_that_is_late_on_a_full_machine_blames_the_machine() -> None:
    found = doubts(Samples([1.0], {"sender": Usage([50.0]), OTHERS: Usage([150.0])}), trace(late_ms=80))
    assert "machine is the bottleneck: bodies left 80 ms late" in found
    assert "generator is the bottleneck" not in found


def test_objectives_are_those_of_the_slower_of_votes_and_events() -> None:
    fast, slow = exact([10.0]), exact([400.0])
    found = {objective.name: objective for objective in outcome.objectives("burst", fast, slow, 0.05)}
    assert not found["p95 end to end"].is_met
    assert found["p99 end to end"].is_met
    assert found["failed requests and lost connections"].is_met


def test_nothing_delivered_meets_no_latency() -> None:
    assert [o.name for o in outcome.objectives("sustained", exact([]), exact([]), 0.0)] == [
        "failed requests and lost connections"
    ]


def test_per_second_sums() -> None:
    times = [np.asarray([10.0, 10.9, 11.0]), np.asarray([99.0])]
    assert outcome.per_second(times, None, 10.0, 3).tolist() == [2, 1, 1]
    weights = [np.asarray([1.0, 2.0, 3.0]), np.asarray([4.0])]
    assert outcome.per_second(times, weights, 10.0, 3).tolist() == [3, 3, 4]


def test_samples_of_a_span() -> None:
    found = CALM.between(1.5, 9.0)
    assert found.at == [2.0]
    assert found.roles["sender"].mean == 30.0


def test_quantile_of_what_was_counted_between_two_scrapes() -> None:
    before = {10.0: 5.0, 20.0: 5.0, float("inf"): 5.0}
    after = {10.0: 55.0, 20.0: 105.0, float("inf"): 105.0}
    assert quantile(before, after, 50) == 10.0
    assert quantile(before, after, 75) == 15.0
    assert quantile({}, {10.0: 0.0, float("inf"): 4.0}, 99) == 10.0
    assert quantile(after, after, 99) == 0.0
    assert quantile({10.0: 500.0, float("inf"): 500.0}, {10.0: 4.0, float("inf"): 4.0}, 50) == 5.0  # restarted
