"""Stored events come in the order of the log, each once, byte for byte, chunk after chunk."""

import itertools

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from clickhouse.client import ClickHouse
from clickhouse.queries import BEGINNING, Asked, Place, StoredEvent, parse_place, stored_events, stored_lines
from core.errors import Retry
from core.position import EntryId
from tests.support.stored_events import T0, Stored, payload_of

pytestmark = pytest.mark.clickhouse

M1 = Asked("m1")


@pytest.fixture
async def stored(clickhouse: ClickHouse) -> Stored:
    return Stored(clickhouse)


def payloads(events: list[StoredEvent]) -> list[bytes]:
    return [event.payload for event in events]


def expected(*positions: tuple[int, int]) -> list[bytes]:
    return [payload_of(ms, seq) for ms, seq in positions]


async def test_events_of_all_maps_come_in_the_order_of_the_log(stored: Stored) -> None:
    await stored.add((2, 0), (10, 0), (9, 1), map_id="1")
    await stored.add((9, 10), (9, 2), map_id="series")
    await stored.add((1, 0), match_id="m2")
    events, has_more = await stored_events(stored.clickhouse, M1)
    assert payloads(events) == expected((2, 0), (9, 1), (9, 2), (9, 10), (10, 0))
    assert not has_more
    first = events[0]
    assert first == StoredEvent(Place(T0 + 2, 0, 1), "e2.0", "1", "round_end", 1, "", T0 + 2, payload_of(2, 0))


async def test_chunks_follow_the_log_whatever_was_inserted_first(stored: Stored) -> None:
    """Events of several inserts lie in several parts, which are read side by side."""
    for third in (2, 0, 1):
        await stored.add(*[(ms, 0) for ms in range(third, 30, 3)])
    seen, body, after, has_more = [], b"", BEGINNING, True
    while has_more:
        events, has_more = await stored_events(stored.clickhouse, M1, after, rows=4)
        lines = await stored_lines(stored.clickhouse, M1, after, rows=4)
        assert (lines.count, lines.last, lines.has_more) == (len(events), events[-1].place, has_more)
        seen += payloads(events)
        body += lines.body
        after = events[-1].place
    assert seen == expected(*[(ms, 0) for ms in range(30)])
    assert body.splitlines() == seen


async def test_nothing_comes_from_beyond_the_last_position_asked_for(stored: Stored) -> None:
    await stored.add((1, 0), (2, 0), (2, 5), (2, 6), (3, 0))
    found = await stored_events(stored.clickhouse, M1, last=EntryId(T0 + 2, 5))
    assert (payloads(found[0]), found[1]) == (expected((1, 0), (2, 0), (2, 5)), False)
    lines = await stored_lines(stored.clickhouse, M1, last=EntryId(T0 + 2, 5), rows=2)
    assert (lines.count, lines.has_more) == (2, True)


async def test_filters_by_map_and_time(stored: Stored) -> None:
    await stored.add((0, 0), (1000, 0), (2000, 0), map_id="1")
    await stored.add((1500, 0), map_id="2")

    async def asked(**values: object) -> list[bytes]:
        found, _ = await stored_events(stored.clickhouse, Asked("m1", **values))  # type: ignore[arg-type]
        return payloads(found)

    assert await asked(map_id="2") == expected((1500, 0))
    assert await asked(since_ms=T0 + 1000, until_ms=T0 + 2000) == expected((1000, 0), (1500, 0))
    assert await asked(since_ms=T0 + 1000, map_id="1") == expected((1000, 0), (2000, 0))


@pytest.mark.parametrize(
    "text", ["", "x", "1.2", "1.2.3.4", "-1.0.0", "1.2.3' OR 1", "9" * 19 + ".0.0", "1.2.٣", "1.2.3\n"]
)
def test_a_malformed_place_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="after must be"):
        parse_place(text)


def test_a_place_reads_back_from_its_text() -> None:
    assert parse_place(str(Place(T0, 7, 3))) == Place(T0, 7, 3)


async def test_what_a_client_sends_is_never_sql(stored: Stored) -> None:
    await stored.add((1, 0))
    for text in ("' OR 1=1 --", "\\'", "{x:String}", "m1\0", "%s", "m1' UNION ALL SELECT 1,2,3,4,'x',6 --", "\t\n"):
        assert await stored_events(stored.clickhouse, Asked(text)) == ([], False)
        assert await stored_events(stored.clickhouse, Asked("m1", map_id=text)) == ([], False)


async def test_a_chunk_of_large_events_ends_early_and_holds_at_least_one(stored: Stored) -> None:
    await stored.add(*[(ms, 0) for ms in range(7)], payload=b'"' + b"x" * 998 + b'"')
    for bytes_max, sizes in ((2500, [3, 3, 1]), (10, [1] * 7)):
        found, after, has_more = [], BEGINNING, True
        while has_more:
            lines = await stored_lines(stored.clickhouse, M1, after, bytes_max=bytes_max)
            events, _ = await stored_events(stored.clickhouse, M1, after, bytes_max=bytes_max)
            assert len(events) == lines.count
            assert lines.last is not None
            after, has_more = lines.last, lines.has_more
            found.append(lines.count)
        assert found == sizes


@hypothesis_settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.text(st.characters(codec="utf-8"), max_size=50).filter(lambda text: "\n" not in text),
        min_size=1,
        max_size=9,
    )
)
async def test_payloads_come_back_byte_for_byte(stored: Stored, texts: list[str]) -> None:
    asked = Asked(f"h{next(_numbers)}")
    payloads_ = [text.encode() for text in texts]
    await stored.add(*[(n, 0) for n in range(len(texts))], payloads=payloads_, match_id=asked.match_id)
    events, _ = await stored_events(stored.clickhouse, asked)
    assert payloads(events) == payloads_
    lines = await stored_lines(stored.clickhouse, asked)
    assert lines.body == b"".join(payload + b"\n" for payload in payloads_)


_numbers = itertools.count()


async def test_clickhouse_away_is_a_retry(free_port: object) -> None:
    nowhere = ClickHouse(f"http://127.0.0.1:{free_port()}/x")  # type: ignore[operator]
    for ask in (stored_events, stored_lines):
        with pytest.raises(Retry, match="ClickHouse does not answer"):
            await ask(nowhere, M1)
    assert "does not answer" in await nowhere.check()
