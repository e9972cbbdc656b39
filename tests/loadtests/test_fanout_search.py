"""The plan, the search for the highest rate, and what is made of measurements."""

import msgspec
import pytest

from loadtests.fanout import table
from loadtests.fanout.plan import HEADLINE, Point, is_hopeless, plan
from loadtests.fanout.search import CEILING, highest_rate
from loadtests.fanout.summary import Measured, rows


def measured(peer: str = "arenacast", *, cpu_s: float = 0.1, latency_us: int = 100, arrived: float = 1.0) -> Measured:
    point = Point("sse", 10, 100)
    delivered = int(1000 * arrived)
    return Measured(
        peer=peer, point=point, seconds=1.0, published=100, delivered=delivered, cpu_s=cpu_s,
        histogram=[(latency_us, delivered)], disordered=0, lost=0, reads=1, bytes=1, client_busy=0.1,
        measuring_busy=0.2, redis_busy=0.05, stall_ms=0, others_busy=0.0, is_client_bound=False,
    )  # fmt: skip


def test_the_full_grid_has_every_load_of_every_transport_once() -> None:
    work = plan(["sse", "ws"], is_quick=False)
    points = [*work.headlines, *work.grid]
    assert len(points) == len(set(points))
    assert {point.subscribers for point in points} == {1, 100, 500, 5000}
    assert HEADLINE in work.headlines


def test_a_load_is_left_out_only_when_its_cost_at_the_same_rate_is_known_to_be_far_too_high() -> None:
    costs = {Point("sse", 500, 100): 10.0}
    assert is_hopeless(Point("sse", 5000, 100), costs)
    assert not is_hopeless(Point("sse", 500, 100), costs)
    assert not is_hopeless(Point("ws", 5000, 100), costs)
    assert not is_hopeless(Point("sse", 5000, 1000), costs)
    assert not is_hopeless(Point("sse", 5000, 100), {Point("sse", 1, 100): 190.0})  # the cost of a message, not a write


@pytest.mark.parametrize("limit", [250, 900, 1000, 3333, 15_999])
def test_the_search_ends_within_an_eighth_to_a_quarter_below_the_limit(limit: int) -> None:
    rate, why = highest_rate(lambda rate: measured(cpu_s=0.99, latency_us=100 if rate <= limit else 2000))
    assert limit * 0.74 <= rate <= limit
    assert why == "the server"


def test_the_search_says_when_nothing_stopped_it_and_when_nothing_worked() -> None:
    assert highest_rate(lambda rate: measured()) == (CEILING, "the end of the search")
    assert highest_rate(lambda rate: measured(cpu_s=0.99, arrived=0.5)) == (0, "the server")
    assert highest_rate(lambda rate: measured(arrived=0.5)) == (0, "not the server: others had its core")


def test_the_search_does_not_blame_the_server_for_the_client() -> None:
    slow = msgspec.structs.replace(measured(arrived=0.5), is_client_bound=True)
    assert highest_rate(lambda rate: slow)[1] == "the measuring client"


def test_ratios_are_taken_within_a_round_so_that_a_slow_minute_does_not_count() -> None:
    rounds = [
        {"arenacast": measured(cpu_s=0.12 * slow), "floor": measured("floor", cpu_s=0.1 * slow)} for slow in (1, 3, 9)
    ]
    ours, floor = rows(rounds)
    assert ours.vs_floor == pytest.approx(1.2)
    assert ours.vs_nchan is None
    assert ours.cost_us == pytest.approx(360)
    assert floor.vs_floor == 1.0


def test_a_server_that_delivered_nothing_spoils_no_table() -> None:
    (row,) = rows([{"floor": measured("floor", arrived=0.0)}])
    assert row.vs_floor is None
    assert "bare C" in table.block([row])


def test_a_row_tells_what_spoiled_it() -> None:
    spoiled = msgspec.structs.replace(
        measured(cpu_s=0.99), is_client_bound=True, disordered=2, lost=3, others_busy=0.5, stall_ms=70
    )
    (row,) = rows([{"arenacast": spoiled}])
    notes = table.notes(row)
    (starved,) = rows([{"floor": measured("floor", arrived=0.2)}])
    assert "STARVED" in table.notes(starved)
    words = "saturated", "CLIENT IS THE BOTTLENECK", "others used 50%", "70 ms", "2 out of order", "3 connections lost"
    for word in words:
        assert word in notes
