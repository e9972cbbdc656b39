"""ClickHouse and the log in Redis are one log: every event once and in order, whatever moves while it is read."""

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from clickhouse import history as module
from clickhouse.client import ClickHouse
from clickhouse.history import History, Page
from clickhouse.queries import BEGINNING, Asked, Place
from clickhouse.reading import Limits
from clickhouse.writer import Writer
from core import keys
from core.errors import Retry
from core.position import parse_entry_id
from tests.support.archive_log import ArchiveLog

pytestmark = [pytest.mark.redis, pytest.mark.clickhouse]

M1 = Asked("m1")
_numbers = itertools.count(100)


class Log:
    """The input log of one shard, its archive, and what a reader must see of match m1."""

    def __init__(self, log: ArchiveLog) -> None:
        self.log = log
        self.history = History(log.clickhouse, log.client, shards=1)
        self.expected: list[bytes] = []
        self.match_id = "m1"
        self._writer: Writer | None = None

    def begin(self, match_id: str) -> None:
        """From here on a reader follows another match."""
        self.match_id, self.expected = match_id, []

    def append(self, count: int = 1, match_id: str = "", map_id: str = "1") -> None:
        for _ in range(count):
            match_id = match_id or self.match_id
            body = (
                f'{{"event_id":"e{next(_numbers)}","match_id":"{match_id}","map_id":"{map_id}","type":"kill",'
                f'"source":"api"}}'
            ).encode()
            self.log.log_writer.append("match", f"match.{match_id}.{map_id}", body)
            if match_id == self.match_id:
                self.expected.append(body)

    async def archive(self, count: int) -> None:
        """Archive up to `count` entries, by an owner that lasts until an epoch begins."""
        for _ in range(2):
            try:
                if self._writer is None:
                    self._writer = self.log.writer()
                    await self._writer.take_over()
                batch = await self._writer.read(Limits(count, 2**30))
                if batch is not None:
                    await self._writer.write(batch)
                return
            except Retry:
                self._writer = None
        raise AssertionError("cannot archive")

    def trim(self) -> None:
        """What trim.lua does at most: drop all entries before the archived one."""
        committed = self.log.state().get("committed")
        if committed:
            self.log.sync.xtrim(keys.events(0), minid=committed, approximate=False)

    async def restart(self) -> None:
        """Redis comes back as another incarnation: a new epoch."""
        self.log.sync.hset(keys.epochs(0), "run", "another incarnation")
        self.log.sync.script_flush()
        await self.log.scripts.ensure()


class Pager:
    """A client that reads page after page."""

    def __init__(self, log: Log, limit: int) -> None:
        self._log = log
        self._limit = limit
        self._after = BEGINNING
        self.seen: list[bytes] = []
        self.places: list[Place] = []

    async def page(self) -> Page:
        page = await self._log.history.page(Asked(self._log.match_id), self._after, limit=self._limit)
        assert len(page.events) <= self._limit
        self.seen += [event.payload for event in page.events]
        self.places += [event.place for event in page.events]
        if page.next is not None:
            self._after = page.next
        elif page.events:
            self._after = page.events[-1].place
        return page

    async def to_the_end(self) -> None:
        while (await self.page()).next is not None:
            pass


@pytest.fixture
async def it(log: ArchiveLog) -> Log:
    await log.scripts.ensure()
    return Log(log)


STEPS = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 4)),
    st.tuples(st.just("other"), st.integers(1, 3)),
    st.tuples(st.just("archive"), st.integers(1, 6)),
    st.tuples(st.just("trim"), st.just(0)),
    st.tuples(st.just("restart"), st.just(0)),
    st.tuples(st.just("page"), st.integers(0, 2)),
)


@hypothesis_settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(STEPS, min_size=6, max_size=20))
async def test_every_event_once_and_in_order_whatever_moves_between_two_pages(
    it: Log, steps: Sequence[tuple[str, int]]
) -> None:
    """One log goes on through all examples, as it does in life; each has a match of its own."""
    log = it
    log.begin(f"m{next(_numbers)}")
    pagers = [Pager(log, limit) for limit in (1, 3, 7)]
    for step, count in steps:
        if step == "append":
            log.append(count, map_id=str(count % 2))
        elif step == "other":
            log.append(count, match_id=f"{log.match_id}1")
            log.log.vote(count)
        elif step == "archive":
            await log.archive(count)
        elif step == "trim":
            log.trim()
        elif step == "restart":
            await log.restart()
        else:
            await pagers[count].page()
    for pager in pagers:
        await pager.to_the_end()
        assert pager.seen == log.expected
        assert pager.places == sorted(set(pager.places))


async def test_events_move_to_clickhouse_and_out_of_redis_in_the_middle_of_a_page(it: Log) -> None:
    """Between asking ClickHouse and asking Redis, everything is archived and trimmed."""
    it.append(5)

    class Moving(History):
        async def _read(self, *args: Any) -> Any:
            if it.log.state().get("committed") is None:
                await it.archive(100)
                it.append()  # so that there is something behind the archived position
                it.trim()
            return await super()._read(*args)

    page = await Moving(it.log.clickhouse, it.log.client, 1).page(M1)
    assert ([event.payload for event in page.events], page.next) == (it.expected, None)


async def test_the_newest_events_are_there_while_the_archive_stands_still(it: Log) -> None:
    it.append(3)
    await it.archive(2)
    it.append(2)
    page = await it.history.page(M1)
    assert [event.payload for event in page.events] == it.expected
    assert page.next is None


async def test_what_is_being_inserted_is_neither_missed_nor_given_twice(it: Log) -> None:
    """A writer died in the middle of its insert: beyond the archived position ClickHouse has some rows, Redis all."""
    it.append(5)
    await it.archive(2)
    await it.archive(3)
    kept = [entry for entry, _ in it.log.sync.xrange(keys.events(0))]
    it.log.sync.hset(keys.archive(0, "events"), "committed", kept[1])
    ms, seq = parse_entry_id(kept[2])
    await it.log.clickhouse.command(
        "DELETE FROM match_events WHERE stream_ms = {ms:UInt64} AND stream_seq = {seq:UInt64}", {"ms": ms, "seq": seq}
    )
    for limit in (1, 3, 4, 100):
        pager = Pager(it, limit)
        await pager.to_the_end()
        assert pager.seen == it.expected


async def test_what_left_redis_before_it_was_archived_is_never_skipped(it: Log) -> None:
    """Spilled to disk, for example: pages end before it, then the answer is to come back, and later it is there."""
    it.append(6)
    await it.archive(2)
    kept = it.log.sync.xrange(keys.events(0))
    it.log.sync.xtrim(keys.events(0), minid=kept[4][0], approximate=False)
    page = await it.history.page(M1)
    assert [event.payload for event in page.events] == it.expected[:2]
    assert page.next == page.events[-1].place
    with pytest.raises(Retry, match="have yet to be archived"):
        await it.history.page(M1, page.next)
    behind = Place(*parse_entry_id(kept[4][0]), 1)
    assert [event.payload for event in (await it.history.page(M1, behind)).events] == it.expected[5:]


async def test_a_stream_that_is_gone_proves_nothing(it: Log) -> None:
    """Somebody deleted it, or Redis lost it: nobody knows what came after the archived entries."""
    it.append(5)
    await it.archive(5)
    it.append(3)
    it.log.sync.delete(keys.events(0))
    first = await it.history.page(M1)
    assert [event.payload for event in first.events] == it.expected[:5]
    assert first.next is not None
    with pytest.raises(Retry, match="have yet to be archived"):
        await it.history.page(M1, first.next)


async def test_without_clickhouse_redis_answers_what_it_provably_has(it: Log, free_port: Any) -> None:
    away = History(ClickHouse(f"http://127.0.0.1:{free_port()}/x"), it.log.client, 1)
    it.append(4)
    assert [event.payload for event in (await away.page(M1)).events] == it.expected
    await it.archive(2)
    it.log.append_garbage()
    it.trim()
    with pytest.raises(Retry, match="ClickHouse does not answer"):
        await away.page(M1)
    second = (await it.history.page(M1, limit=2)).next
    assert second is not None
    assert [event.payload for event in (await away.page(M1, second)).events] == it.expected[2:]


async def test_a_page_looks_through_a_bounded_part_of_a_busy_shard(it: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SCAN_ENTRIES_MAX", 120)
    monkeypatch.setattr(module, "SCAN_ENTRIES", 60)
    monkeypatch.setattr(module, "_FIRST_SCAN", 60)
    it.append()
    it.log.vote(300)
    it.append(2)
    pages, after = [], BEGINNING
    while True:
        page = await it.history.page(M1, after)
        pages.append(len(page.events))
        if page.next is None:
            break
        after = page.next
    assert pages[0] == 1
    assert sum(pages) == 3
    assert len(pages) > 2


async def test_a_page_of_large_events_ends_early(it: Log) -> None:
    it.append(6)
    size = len(it.expected[0])
    for archived in (0, 3):
        if archived:
            await it.archive(archived)
        page = await it.history.page(M1, bytes_max=2 * size)
        assert (len(page.events), page.next) == (2, page.events[-1].place)
        assert len((await it.history.page(M1, bytes_max=1)).events) == 1


async def test_filters_hold_on_both_sides_of_the_seam(it: Log) -> None:
    it.append(2, map_id="1")
    it.append(2, map_id="2")
    await it.archive(3)
    it.append(1, map_id="1")
    page = await it.history.page(Asked("m1", map_id="2"))
    assert [event.payload for event in page.events] == it.expected[2:4]
    everything = await it.history.page(M1)
    moment = everything.events[3].received_ms
    later = await it.history.page(Asked("m1", since_ms=moment))
    assert [event.payload for event in later.events] == [
        e.payload for e in everything.events if e.received_ms >= moment
    ]


async def test_pages_asked_for_at_once_do_not_disturb_each_other(it: Log) -> None:
    it.append(30)
    await it.archive(10)
    pagers = [Pager(it, limit) for limit in range(1, 9)]
    await asyncio.gather(*(pager.to_the_end() for pager in pagers))
    assert all(pager.seen == it.expected for pager in pagers)
