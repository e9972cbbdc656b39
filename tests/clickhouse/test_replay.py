"""A replay is the whole log of a match, in chunks, at the pace that was asked for."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from clickhouse import replay as module
from clickhouse.client import ClickHouse
from clickhouse.history import History
from clickhouse.queries import BEGINNING, Asked, Place, StoredEvent
from clickhouse.replay import lines, paced, pages
from core import keys
from core.errors import Retry
from tests.support.archive_log import ArchiveLog
from tests.support.stored_events import T0, Stored, payload_of

pytestmark = [pytest.mark.redis, pytest.mark.clickhouse]

M1 = Asked("m1")


def event(ms: int) -> StoredEvent:
    return StoredEvent(Place(T0 + ms, 0, 1), "e", "1", "kill", 1, "", T0 + ms, b"{}")


async def batches(*parts: Sequence[StoredEvent]) -> AsyncIterator[list[StoredEvent]]:
    for part in parts:
        yield list(part)


async def test_a_replay_is_every_event_as_whole_lines(log: ArchiveLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_ROWS_FIRST", 4)
    monkeypatch.setattr(module, "CHUNK_ROWS_MAX", 4)
    positions = [(ms, seq) for ms in range(5) for seq in range(2)]
    await Stored(log.clickhouse).add(*positions)
    log.sync.hset(keys.archive(0, "events"), "committed", f"{T0 + 100}-0")
    newest = b'{"event_id":"n","match_id":"m1","map_id":"1","type":"kill"}'
    log.log_writer.append("match", "match.m1.1", newest)
    history = History(log.clickhouse, log.client, 1)
    chunks = [chunk.body async for chunk in lines(history, M1)]
    assert len(chunks) == 4
    assert all(chunk.endswith(b"\n") for chunk in chunks)
    assert b"".join(chunks).splitlines() == [*(payload_of(*position) for position in positions), newest]
    found = [event async for part in pages(history, M1) for event in part]
    assert [event.payload for event in found] == b"".join(chunks).splitlines()
    rest = [chunk.body async for chunk in lines(history, M1, found[7].place)]
    assert b"".join(rest).splitlines() == [event.payload for event in found[8:]]
    assert [chunk async for chunk in lines(history, Asked("nobody"))] == []


async def test_without_clickhouse_a_replay_is_whole_or_fails(log: ArchiveLog, free_port: Any) -> None:
    away = History(ClickHouse(f"http://127.0.0.1:{free_port()}/x"), log.client, 1)
    log.log_writer.event("m1", "1", "kill", {})
    log.log_writer.event("m1", "1", "kill", {})
    assert len(b"".join([chunk.body async for chunk in lines(away, M1)]).splitlines()) == 2
    log.sync.xtrim(keys.events(0), maxlen=1, approximate=False)
    with pytest.raises(Retry, match="ClickHouse does not answer"):
        await anext(lines(away, M1))


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    async def sleep(self, delay_s: float) -> None:
        self.now_s += delay_s


async def test_a_paced_replay_keeps_the_distances_of_the_match(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeTime()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "asyncio", clock)
    source = batches([event(0), event(2000)], [event(2000), event(6000), event(6000 + 48 * 3_600_000)])
    arrivals = []
    async for due in paced(source, 2.0):
        assert len(due) == 1
        arrivals.append(clock.now_s)
        clock.now_s += 0.3  # a reader that takes its time does not delay the rest
    assert arrivals == pytest.approx([0.0, 1.0, 1.3, 3.0, 3.0 + module.GAP_MAX_S])


async def test_a_paced_replay_ends_when_its_reader_does() -> None:
    due = paced(batches([event(0), event(3_600_000)]), 1.0)
    assert await anext(due)
    task = asyncio.ensure_future(anext(due))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_replay_goes_on_from_a_place(log: ArchiveLog) -> None:
    await Stored(log.clickhouse).add((1, 0), (2, 0))
    log.sync.hset(keys.archive(0, "events"), "committed", f"{T0 + 2}-0")
    log.log_writer.event("m2", "1", "kill", {})  # a log that has entries is there
    history = History(log.clickhouse, log.client, 1)
    all_of_it = [event async for part in pages(history, M1, BEGINNING) for event in part]
    rest = [event async for part in pages(history, M1, all_of_it[0].place) for event in part]
    assert rest == all_of_it[1:]
