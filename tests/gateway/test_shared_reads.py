"""One read for a crowd, a bound on different ones, and nobody takes another one's read along."""

import asyncio

import pytest

from core.errors import Retry
from gateway.shared_reads import SharedReads
from tests.gateway.simulation.virtual_time import run
from tests.support.waiting import wait_until

FRESH_S = 2.0
"""How long a value stays good, where that is bounded."""


class Value:
    def __init__(self, size: int = 1) -> None:
        self.size = size


def reads(*, bytes_max: int = 100, at_once: int = 2, waiting_max: int = 3) -> SharedReads[Value]:
    return SharedReads(bytes_max=bytes_max, at_once=at_once, waiting_max=waiting_max)


READ_S = 1.0
"""Virtual seconds that a read takes."""


async def _slowly() -> Value:
    await asyncio.sleep(READ_S)
    return Value()


async def _is_under_way(shared: SharedReads[Value], count: int) -> None:
    """So many reads were begun."""
    await wait_until(lambda: shared.count == count, READ_S / 2)


def test_all_who_want_the_same_share_one_read_and_what_it_gave() -> None:
    async def scenario() -> None:
        shared = reads()
        found = await asyncio.gather(*(shared.get("a", _slowly) for _ in range(1000)))
        assert shared.count == 1
        assert all(one is found[0] for one in found)
        assert await shared.get("a", _slowly) is found[0], "kept"

    run(scenario())


def test_reader_who_leaves_does_not_take_the_read_along() -> None:
    async def scenario() -> None:
        shared = reads()
        leaver = asyncio.create_task(shared.get("a", _slowly))
        other = asyncio.create_task(shared.get("a", _slowly))
        await _is_under_way(shared, 1)
        leaver.cancel()
        assert isinstance(await other, Value)
        assert shared.count == 1

    run(scenario())


def test_different_reads_beyond_the_bound_are_refused_and_the_same_ones_are_not() -> None:
    async def scenario() -> None:
        shared = reads(at_once=1, waiting_max=2)
        waiting = [asyncio.create_task(shared.get(key, _slowly)) for key in ("a", "b")]
        await _is_under_way(shared, 1)  # the other one waits for its turn
        with pytest.raises(Retry):
            await shared.get("c", _slowly)
        assert await shared.get("b", _slowly) is await waiting[1]
        assert isinstance(await shared.get("c", _slowly), Value), "there is room again"

    run(scenario())


def test_failure_reaches_all_who_wait_and_is_not_kept() -> None:
    async def fail() -> Value:
        await asyncio.sleep(1.0)
        raise Retry("away")

    async def scenario() -> None:
        shared = reads()
        outcomes = await asyncio.gather(*(shared.get("a", fail) for _ in range(3)), return_exceptions=True)
        assert all(isinstance(one, Retry) for one in outcomes)
        assert isinstance(await shared.get("a", _slowly), Value)

    run(scenario())


def test_what_is_kept_is_bounded_in_bytes_and_in_time() -> None:
    async def scenario() -> None:
        shared = reads(bytes_max=100)

        async def big() -> Value:
            return Value(40)

        for key in range(5):
            await shared.get(key, big)
            assert shared.bytes <= 100
        loop = asyncio.get_running_loop()
        first = await shared.get("short", big, lambda _: FRESH_S)
        kept_from = loop.time()

        async def is_gone() -> bool:
            return await shared.get("short", big) is not first

        await wait_until(is_gone, FRESH_S * 1.1)
        assert loop.time() - kept_from == pytest.approx(FRESH_S, abs=0.02)

    run(scenario())
