"""A poll id that is used again is another poll: whoever asks is told of the latest one."""

import time
from datetime import UTC, datetime

import pytest

from clickhouse import examples
from core.updates import PollState
from tests.support.archive_log import ArchiveLog

pytestmark = [pytest.mark.redis, pytest.mark.clickhouse]

MINUTE_MS = 60_000
NEVER = 2**64 - 1


def state(poll_id: str, at_ms: int, status: str) -> PollState:
    return PollState(at_ms, 0, 1, poll_id, status, f"of {at_ms}", "first", "", {"a": "A"}, at_ms)


async def lived(log: ArchiveLog) -> int:
    """p1 lives twice, an hour apart, p2 once; when the first began."""
    began = (int(time.time() * 1000) - 120 * MINUTE_MS) // MINUTE_MS * MINUTE_MS
    again = began + 60 * MINUTE_MS
    log.update(
        f"{again + MINUTE_MS}-0",
        state("p1", began, "pending"), state("p1", began + 1, "open"), state("p2", began, "open"),
        state("p1", began + MINUTE_MS, "closed"),
        state("p1", again, "open"), state("p1", again + 1, "open"), state("p1", again + MINUTE_MS, "closed"),
    )  # fmt: skip
    log.vote(5, received_us=(began + 10_000) * 1000)
    log.vote(2, received_us=(began + 5 * MINUTE_MS) * 1000)  # late ones
    log.vote(7, received_us=(again + 10_000) * 1000)
    log.vote(3, "p2", received_us=(began + 10_000) * 1000)
    await log.archive("events")
    await log.archive("updates")
    return began


async def test_lives_begin_with_a_definition_after_a_closing(log: ArchiveLog) -> None:
    began = await lived(log)
    again = began + 60 * MINUTE_MS
    rows = await log.rows(
        "SELECT poll_id, life, began_ms, began_seq, until_ms, until_seq, toUnixTimestamp64Milli(until_at) "
        "FROM poll_lives ORDER BY ALL"
    )
    assert rows == [
        ("p1", 1, began, 0, again, 0, again),
        ("p1", 2, again, 0, NEVER, NEVER, None),
        ("p2", 1, began, 0, NEVER, NEVER, None),
    ]


async def test_totals_and_polls_are_those_of_the_latest_life(log: ArchiveLog) -> None:
    began = await lived(log)
    again = began + 60 * MINUTE_MS
    totals = (
        "SELECT poll_id, sum(votes), sum(voters), min(first_minute) FROM poll_totals {} GROUP BY poll_id ORDER BY 1"
    )
    first, second = (datetime.fromtimestamp(ms / 1000, UTC).replace(tzinfo=None) for ms in (began, again))
    found = [(*row[:3], row[3].replace(tzinfo=None)) for row in await log.rows(totals.format(""))]
    assert found == [("p1", 7, 7, second), ("p2", 3, 3, first)]
    assert (await log.rows(totals.format("WHERE poll_id = 'p1'")))[0][:3] == ("p1", 7, 7)
    polls = await log.rows(
        "SELECT poll_id, status, title, toUnixTimestamp64Milli(created_at), toUnixTimestamp64Milli(opened_at), "
        "toUnixTimestamp64Milli(closed_at) FROM polls ORDER BY 1"
    )
    assert polls == [
        ("p1", "closed", f"of {again + MINUTE_MS}", again, again, again + MINUTE_MS),
        ("p2", "open", f"of {began}", began, began, None),
    ]


async def test_questions_about_a_poll_are_about_its_latest_life(log: ArchiveLog) -> None:
    await lived(log)
    turnout = await log.clickhouse.query(examples.sql("turnout_over_time"), {"poll": "p1"})
    assert [row[1] for row in turnout] == [7]
    surge = await log.clickhouse.query(examples.sql("late_surge_by_source"), {"poll": "p1", "minutes": 1})
    assert sum(row[2] + row[3] for row in surge) == 7
