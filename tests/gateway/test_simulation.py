"""The gateway's whole logic in a world in memory: hundreds of seeded scenarios, and mutants that they must catch."""

import asyncio
import logging
import subprocess
import sys
from collections.abc import Awaitable, Iterator, Sequence
from typing import Any
from unittest.mock import patch

import pytest
import structlog

from core.epochs import Epochs
from core.position import EntryId, Position
from gateway import conflate, feeder, hub
from gateway.backlog import Chunk
from gateway.channel import Channel, Vector
from gateway.frame_cache import FrameCache
from gateway.frames import Item
from gateway.past import Past, PastChunk
from gateway.ring import Ring, _Line
from tests.gateway.simulation.client import Broken
from tests.gateway.simulation.scenario import play

SCENARIOS = 200
BATCH = 20
SEEDS_FOR_A_MUTANT = 600


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Outages by the hundred are logged by the thousand."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


@pytest.mark.parametrize("first", range(0, SCENARIOS, BATCH))
def test_every_promise_is_kept(first: int) -> None:
    """Slow, dying, resuming clients; trimming, rollbacks, outages; two gateways: see tests.gateway.simulation."""
    for seed in range(first, first + BATCH):
        try:
            play(seed)
        except Broken as broken:
            raise AssertionError(f"seed {seed}: {broken}") from broken


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_every_promise_is_kept_ten_thousand_times() -> None:
    """The long form, on all cores, as the command does it."""
    command = [sys.executable, "-m", "tests.gateway.simulation", "10000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1100, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_scenarios_meet_every_verdict() -> None:
    """Or they would prove less than they seem to."""
    seen: set[str] = set()
    for seed in range(10):
        seen |= play(seed)
    assert seen == {"snapshot", "complete", "conflated", "reset"}


# -- mutants


def _drop_without_telling(self: Ring) -> None:
    """The ring wraps, but the floor stays: a reader is told it gets everything and misses one."""
    entry = self._order.popleft()
    self.bytes -= entry.items.drop_first().size


_line_after = _Line.after


def _after_and_one_more(self: _Line, position: Position) -> list[Item]:
    """Resumes one too late."""
    return _line_after(self, position)[1:]


def _after_and_the_last_again(self: _Line, position: Position) -> list[Item]:
    """Resumes one too early."""
    first = len(self._items) - len(_line_after(self, position))
    return self._items[max(self._head, first - 1) :]


def _whole_whatever_was_trimmed(self: Chunk, position: Position) -> bool:
    """Never notices that the log was trimmed."""
    return True


def _take_everything(items: Sequence[Item], start: int, bytes_max: int) -> tuple[list[Item], int]:
    """Conflates nothing."""
    return list(items[start:]), len(items)


_conflate_take = conflate.take


def _take_events_for_states(items: Sequence[Item], start: int, bytes_max: int) -> tuple[list[Item], int]:
    """Conflates events as well."""
    kept, end = _conflate_take(items, start, bytes_max)
    newest = {(item.topic, item.kind): item for item in kept}
    return [item for item in kept if newest[item.topic, item.kind] is item], end


def _never_resets(*_: Any) -> bool:
    """Believes every position of every lifetime of the log."""
    return True


def _vouch_for_everything(*_: Any) -> Awaitable[bool]:
    """Believes the archive wherever it is, and whatever it has forgotten."""
    future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    future.set_result(True)
    return future


def _since_ever(*_: Any) -> Awaitable[int]:
    """Never notices that rows came of age."""
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    future.set_result(0)
    return future


def _owe_nothing(self: Position) -> Position:
    """Forgets the states that a reader fed from the archive has not got."""
    return self


_past_read = Past._read


async def _read_one_page(
    self: Past, shard: int, match_id: str, first: EntryId, epochs: Epochs, reach: EntryId
) -> PastChunk:
    """Takes a page of the archive for all of it."""
    chunk = await _past_read(self, shard, match_id, first, epochs, reach)
    return PastChunk(chunk.items, epochs.at(reach), is_full=False)


def _joined_by_the_ends(self: FrameCache, channel: Channel, items: Sequence[Item], vector: Vector) -> bytes:
    """Takes two batches for the same when they begin and end alike: of several shards, one may have a newer state."""
    key: Any = (channel, tuple(vector.items()), id(items[0]), id(items[-1]), len(items))
    frame = self._entries[key][0] if key in self._entries else channel.join(channel.encode(items, dict(vector)))
    self._entries[key] = frame, (items[0], items[-1])
    vector.update({item.shard: item.position for item in items})
    return frame


MUTANTS: dict[str, list[tuple[Any, str, Any]]] = {
    "one message dropped when the ring wraps": [(Ring, "_drop_oldest", _drop_without_telling)],
    "resume begins one too late": [(_Line, "after", _after_and_one_more)],
    "resume begins one too early": [(_Line, "after", _after_and_the_last_again)],
    "verdict complete though trimmed": [(Chunk, "is_whole_for", _whole_whatever_was_trimmed)],
    "state not conflated": [(hub, "take", _take_everything), (feeder, "take", _take_everything)],
    "event conflated": [(hub, "take", _take_events_for_states), (feeder, "take", _take_events_for_states)],
    "rolled-back position believed": [(Epochs, "holds", _never_resets)],
    "archive believed beyond what it has": [(Past, "vouches", _vouch_for_everything)],
    "archive believed when it has forgotten": [(Past, "kept_since_ms", _since_ever)],
    "states owed forgotten": [(Position, "owing", property(_owe_nothing))],
    "page of the archive taken for all of it": [(Past, "_read", _read_one_page)],
    "frame cache keyed by the ends only": [(FrameCache, "joined", _joined_by_the_ends)],
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name: str) -> None:
    """The scenarios notice when a promise is broken on purpose."""
    patches = [patch.object(owner, attribute, replacement) for owner, attribute, replacement in MUTANTS[name]]
    for one in patches:
        one.start()
    try:
        for seed in range(SEEDS_FOR_A_MUTANT):
            try:
                play(seed)
            except (Broken, AssertionError):
                return
    finally:
        for one in patches:
            one.stop()
    pytest.fail(f"no scenario noticed: {name}")
