"""Stored events come in the order of the log, each once, byte for byte, page after page."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from clickhouse import queries as module
from clickhouse.client import ClickHouse
from clickhouse.queries import Page, events_page, replay
from clickhouse.tables import MATCH_EVENTS
from core.errors import Retry

pytestmark = pytest.mark.clickhouse

T0 = 1_795_300_000_000


class Stored:
    """Puts events into `match_events` as the writer does."""

    def __init__(self, clickhouse: ClickHouse) -> None:
        self.clickhouse = clickhouse
        self._inserts = 0

    async def add(
        self, *positions: tuple[int, int], match_id: str = "m1", map_id: str = "1", payload: bytes | None = None
    ) -> None:
        rows: list[tuple[object, ...]] = [
            (0, 1, T0 + ms, seq, "e", match_id, map_id, 0, "round_end", 1, "api", T0 + ms, T0 + ms,
             payload or f'{{"at":"{ms}.{seq}"}}'.encode())
            for ms, seq in positions
        ]  # fmt: skip
        self._inserts += 1
        settings = {"async_insert": 0, "insert_deduplication_token": f"t{self._inserts}"}
        await self.clickhouse.insert(
            "match_events", MATCH_EVENTS.columns, MATCH_EVENTS.encode(rows), settings, timeout_s=30.0
        )


@pytest.fixture
async def stored(clickhouse: ClickHouse) -> Stored:
    return Stored(clickhouse)


def payloads(page: Page) -> list[str]:
    return [event.payload.decode() for event in page.events]


def expected(positions: Sequence[tuple[int, int]]) -> list[str]:
    return [f'{{"at":"{ms}.{seq}"}}' for ms, seq in positions]


async def test_events_of_all_maps_come_in_the_order_of_the_log(stored: Stored) -> None:
    await stored.add((2, 0), (10, 0), (9, 1), map_id="1")
    await stored.add((9, 10), (9, 2), map_id="series")
    await stored.add((1, 0), match_id="m2")
    page = await events_page(stored.clickhouse, "m1")
    assert payloads(page) == expected([(2, 0), (9, 1), (9, 2), (9, 10), (10, 0)])
    assert page.next is None


async def test_pages_follow_the_log_whatever_was_inserted_first(stored: Stored) -> None:
    """Events of several inserts lie in several parts, which are read side by side."""
    for third in (2, 0, 1):
        await stored.add(*[(ms, 0) for ms in range(third, 30, 3)])
    seen: list[str] = []
    after = None
    while True:
        page = await events_page(stored.clickhouse, "m1", limit=4, after=after)
        seen += payloads(page)
        if page.next is None:
            break
        after = page.next
    assert seen == expected([(ms, 0) for ms in range(30)])


async def test_pages_join_without_gap_or_repeat_while_events_arrive(stored: Stored) -> None:
    await stored.add(*[(ms, 0) for ms in range(7)])
    seen: list[str] = []
    after = None
    arriving = 100
    while True:
        page = await events_page(stored.clickhouse, "m1", limit=3, after=after)
        seen += payloads(page)
        if page.next is None:
            break
        after = page.next
        await stored.add((arriving, 0))
        arriving += 1
    assert seen == expected([(ms, 0) for ms in (*range(7), 100, 101)])


async def test_a_position_stays_good_after_the_last_page(stored: Stored) -> None:
    await stored.add((1, 0))
    page = await events_page(stored.clickhouse, "m1")
    last = page.events[-1].position
    assert (await events_page(stored.clickhouse, "m1", after=last)).events == []
    await stored.add((2, 0))
    assert payloads(await events_page(stored.clickhouse, "m1", after=last)) == expected([(2, 0)])


async def test_filters_by_map_and_time(stored: Stored) -> None:
    await stored.add((0, 0), (1000, 0), (2000, 0), map_id="1")
    await stored.add((1500, 0), map_id="2")
    moment = datetime.fromtimestamp(T0 / 1000, UTC)
    ask = stored.clickhouse, "m1"
    assert payloads(await events_page(*ask, map_id="2")) == expected([(1500, 0)])
    since, until = moment + timedelta(seconds=1), moment + timedelta(seconds=2)
    assert payloads(await events_page(*ask, since=since, until=until)) == expected([(1000, 0), (1500, 0)])
    elsewhere = since.astimezone(timezone(timedelta(hours=5)))
    assert payloads(await events_page(*ask, since=elsewhere, map_id="1")) == expected([(1000, 0), (2000, 0)])
    assert payloads(await events_page(*ask, since=datetime.max.replace(tzinfo=UTC))) == []
    assert len((await events_page(*ask, since=datetime.min.replace(tzinfo=UTC))).events) == 4


@pytest.mark.parametrize(
    "after", ["", "x", "1.2", "1.2.3.4", "-1.0.0", "1.2.3' OR 1", "9" * 20 + ".0.0", "1.2.٣", "1.2.3\n"]
)
async def test_a_malformed_position_is_a_value_error(clickhouse: ClickHouse, after: str) -> None:
    with pytest.raises(ValueError, match="after must be"):
        await events_page(clickhouse, "m1", after=after)


@pytest.mark.parametrize("limit", [0, -1, module.LIMIT_MAX + 1])
async def test_a_limit_out_of_bounds_is_a_value_error(clickhouse: ClickHouse, limit: int) -> None:
    with pytest.raises(ValueError, match="limit must be between 1 and 1000"):
        await events_page(clickhouse, "m1", limit=limit)


async def test_what_a_client_sends_is_never_sql(stored: Stored) -> None:
    await stored.add((1, 0))
    for text in ("' OR 1=1 --", "\\'", "{x:String}", "m1\0", "%s", "m1' UNION ALL SELECT 1,2,3,4,'x',6 --", "\t\n"):
        assert (await events_page(stored.clickhouse, text)).events == []
        assert (await events_page(stored.clickhouse, "m1", map_id=text)).events == []


async def test_a_page_of_large_events_ends_early(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE_BYTES_MAX", 2500)
    await stored.add(*[(ms, 0) for ms in range(7)], payload=b'"' + b"x" * 998 + b'"')
    sizes = []
    after = None
    while True:
        page = await events_page(stored.clickhouse, "m1", after=after)
        sizes.append(len(page.events))
        if page.next is None:
            break
        after = page.next
    assert sizes == [3, 3, 1]


async def test_one_event_larger_than_a_page_is_given(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE_BYTES_MAX", 10)
    await stored.add((1, 0), (2, 0), payload=b'"' + b"x" * 998 + b'"')
    page = await events_page(stored.clickhouse, "m1")
    assert [len(event.payload) for event in page.events] == [1000]
    assert page.next is not None


@hypothesis_settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(codec="utf-8"), max_size=200))
async def test_a_payload_comes_back_byte_for_byte(stored: Stored, text: str) -> None:
    payload = text.encode() or b"{}"
    await stored.clickhouse.command("TRUNCATE TABLE match_events")
    await stored.add((1, 0), payload=payload)
    page = await events_page(stored.clickhouse, "m1")
    assert [event.payload for event in page.events] == [payload]


async def test_a_replay_is_every_event_as_lines(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT_MAX", 4)
    positions = [(ms, seq) for ms in range(5) for seq in range(2)]
    await stored.add(*positions)
    chunks = [chunk async for chunk in replay(stored.clickhouse, "m1")]
    assert len(chunks) == 3
    assert all(chunk.endswith(b"\n") for chunk in chunks)
    assert b"".join(chunks).decode().splitlines() == expected(positions)
    assert [chunk async for chunk in replay(stored.clickhouse, "nobody")] == []


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    async def sleep(self, delay_s: float) -> None:
        self.now_s += delay_s


async def test_a_paced_replay_keeps_the_distances_of_the_match(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    await stored.add((0, 0), (2000, 0), (2000, 1), (6000, 0), (6000 + 48 * 3_600_000, 0))
    clock = FakeTime()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "asyncio", clock)
    arrivals = []
    async for line in replay(stored.clickhouse, "m1", speed=2.0):
        assert line.count(b"\n") == 1
        arrivals.append(clock.now_s)
        clock.now_s += 0.3  # a reader that takes its time does not delay the rest
    assert arrivals == pytest.approx([0.0, 1.0, 1.3, 3.0, 3.0 + module.GAP_MAX_S])


async def test_a_paced_replay_ends_when_its_reader_does(stored: Stored) -> None:
    await stored.add((0, 0), (3_600_000, 0))
    lines = replay(stored.clickhouse, "m1", speed=1.0)
    assert await anext(lines)
    task = asyncio.ensure_future(anext(lines))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("speed", [0.0, -1.0, 1001.0, float("nan"), float("inf")])
async def test_a_speed_out_of_bounds_is_a_value_error(clickhouse: ClickHouse, speed: float) -> None:
    with pytest.raises(ValueError, match="speed must be between"):
        await anext(replay(clickhouse, "m1", speed=speed))


async def test_clickhouse_away_is_a_retry(free_port: object) -> None:
    nowhere = ClickHouse(f"http://127.0.0.1:{free_port()}/x")  # type: ignore[operator]
    with pytest.raises(Retry, match="ClickHouse does not answer"):
        await events_page(nowhere, "m1")
    assert "does not answer" in await nowhere.check()
