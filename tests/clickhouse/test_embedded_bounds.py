"""Places, bodies and sessions of the embedded ClickHouse have bounds, and what is over them is refused."""

import asyncio
import threading

import pytest

from clickhouse.embedded.errors import ClickHouseError, Code
from clickhouse.embedded.sessions import Sessions
from clickhouse.embedded.workers import Budget, Workers


async def test_places_are_given_in_turn_and_waiting_is_bounded() -> None:
    workers = Workers(running_max=1, waiting_max=1, wait_max_s=10.0)
    order: list[int] = []
    held = asyncio.Event()

    async def hold(number: int) -> None:
        async with workers.place():
            order.append(number)
            await held.wait()

    first, second = asyncio.create_task(hold(1)), asyncio.create_task(hold(2))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with pytest.raises(ClickHouseError, match="too many are waiting") as caught:
        await hold(3)
    assert caught.value.code is Code.TOO_MANY_SIMULTANEOUS_QUERIES
    held.set()
    await asyncio.gather(first, second)
    assert order == [1, 2]
    await hold(4)
    workers.close()


async def test_waiting_for_a_place_ends() -> None:
    workers = Workers(running_max=1, waiting_max=1, wait_max_s=0.01)
    async with workers.place():
        with pytest.raises(ClickHouseError, match="none has ended"):
            async with workers.place():
                pass
    async with workers.place():
        pass
    workers.close()


async def test_cancelled_caller_leaves_its_thread_counted() -> None:
    workers = Workers(running_max=1, waiting_max=1, wait_max_s=1.0)
    release = threading.Event()
    started = threading.Event()

    def work() -> bool:
        started.set()
        return release.wait(10)

    task = asyncio.create_task(workers.run(work))
    assert await workers.control(started.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not await workers.idle(0.05)
    release.set()
    assert await workers.idle(5.0)
    workers.close()


def test_bodies_share_one_budget() -> None:
    budget = Budget(100)
    with budget.lease() as first, budget.lease() as second:
        first.grow(60)
        second.grow(40)
        with pytest.raises(ClickHouseError):
            first.grow(1)
    with budget.lease() as third:
        third.grow(100)


class Closable:
    """What `Sessions` keeps: it only ever closes it."""

    is_closed = False

    def close(self) -> None:
        self.is_closed = True


def test_sessions_are_bounded_exclusive_and_end() -> None:
    now = [0.0]
    opened: list[Closable] = []

    def connect(_user: str) -> Closable:
        opened.append(Closable())
        return opened[-1]

    sessions = Sessions(connect, limit=2, clock=lambda: now[0])  # type: ignore[arg-type]
    with pytest.raises(ClickHouseError, match="not found"):
        sessions.take(("u", "a"), must_exist=True)
    kept = sessions.take(("u", "a"), must_exist=False)
    with pytest.raises(ClickHouseError, match="locked"):
        sessions.take(("u", "a"), must_exist=False)
    sessions.take(("other", "a"), must_exist=False)
    with pytest.raises(ClickHouseError, match="Too many"):
        sessions.take(("u", "b"), must_exist=False)
    sessions.give_back(("u", "a"), 10)
    now[0] = 9.0
    assert sessions.take(("u", "a"), must_exist=True) is kept
    sessions.give_back(("u", "a"), 10)
    now[0] = 20.0
    sessions.expire()
    assert [connection.is_closed for connection in opened] == [True, False]  # the other is in use
    sessions.take(("u", "b"), must_exist=False)
    sessions.give_back(("u", "b"), 0)
    sessions.give_back(("other", "a"), 10)
    sessions.close()
    assert all(connection.is_closed for connection in opened)
