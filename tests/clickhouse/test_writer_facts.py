"""What the state consumer derives reaches its tables, and views show the newest of it."""

import pytest

from core.updates import MapState, PollState, Prediction
from tests.support.archive_log import ArchiveLog
from tests.support.rounds import a_round

pytestmark = [pytest.mark.redis, pytest.mark.clickhouse]


async def test_derived_facts_reach_their_tables_and_views_show_the_newest(log: ArchiveLog) -> None:
    log.update(
        "30-0",
        PollState(10, 0, 1, "p", "open", "T", "first", "m", {"a": "A", "b": "B"}, 10),
        a_round(20, 1, "team1"),
        MapState(20, 0, 2, "m", "1", "de_dust2", "live", "", 1, "A", "B", 1, 0, 20),
        Prediction(20, 0, 3, "m", "1", 1, 0.625, "mr12", 20),
        a_round(30, 2, "team1"),
    )
    log.update(
        "60-0",
        a_round(40, 1, "team2"),  # corrects round 1
        a_round(50, 2, "team1", is_void=True),  # takes round 2 back
        MapState(50, 0, 2, "m", "1", "de_dust2", "finished", "team2", 1, "A", "B", 0, 13, 50),
        a_round(60, 3, "team1", is_void=True),  # one event withdraws round 3 and announces it anew
        a_round(60, 3, "team2"),
    )
    await log.archive("updates")
    assert await log.rows("SELECT round_no, winner, score_team1 FROM round_metrics ORDER BY round_no") == [
        (1, "team2", 40),
        (3, "team2", 60),
    ]
    assert await log.rows("SELECT map_name, status, winner, score_team1, score_team2 FROM map_metrics") == [
        ("de_dust2", "finished", "team2", 0, 13)
    ]
    assert await log.rows("SELECT round_no, p_team1, model FROM predictions") == [(1, 0.625, "mr12")]
    assert await log.rows("SELECT poll_id, status, options FROM poll_states") == [("p", "open", {"a": "A", "b": "B"})]
    assert await log.rows("SELECT count() FROM rounds") == [(6,)]


async def test_a_late_insert_of_an_older_result_does_not_win(log: ArchiveLog) -> None:
    """Order of the log decides, not order of arrival."""
    log.update("20-0", a_round(20, 1, "team1"))
    await log.archive("updates")
    await log.clickhouse.command(
        "INSERT INTO rounds SELECT * REPLACE (toUInt64(10) AS stream_ms, 'team2' AS winner) FROM rounds",
        settings={"async_insert": 0, "insert_deduplication_token": "late"},
    )
    assert await log.rows("SELECT winner FROM round_metrics") == [("team1",)]


async def test_voters_are_counted_exactly_and_once_in_a_minute(log: ArchiveLog) -> None:
    for option in "aab":
        body = {"event_id": f"x{option}{log.votes}", "poll_id": "p", "option": option, "voter": "00" * 8}
        log.log_writer.append("vote", "poll.p", body)
        log.votes += 1
    await log.archive()
    assert await log.rows("SELECT option_id, sum(votes), max(voters) FROM votes_per_minute GROUP BY 1 ORDER BY 1") == [
        ("a", 2, 1),
        ("b", 1, 1),
    ]
