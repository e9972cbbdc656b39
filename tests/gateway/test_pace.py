"""A crowd is served a few per turn of the loop."""

import asyncio
from itertools import pairwise

from gateway.pace import CROWD, Pace


async def test_so_many_pass_per_turn_in_order_and_a_reader_that_left_takes_nobodys_turn() -> None:
    pace, passed = Pace(at_once=2), list[int]()

    async def pass_by(number: int) -> None:
        await pace.turn()
        passed.append(number)

    tasks = [asyncio.create_task(pass_by(number)) for number in range(8)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    tasks[3].cancel()
    sizes = [0]
    while sizes[-1] < 6:
        await asyncio.sleep(0)
        sizes.append(len(passed))
    assert passed == [1, 2, 4, 5, 6, 7]
    assert max(after - before for before, after in pairwise(sizes)) == 2
    await asyncio.wait_for(pace.turn(), 1.0)


async def test_it_is_crowded_until_most_had_their_turn() -> None:
    pace = Pace()
    tasks = [asyncio.create_task(pace.turn()) for _ in range(CROWD)]
    assert not pace.is_crowded
    await asyncio.sleep(0)
    assert pace.is_crowded
    await asyncio.gather(*tasks)
    assert not pace.is_crowded
