"""The questions of clickhouse/examples, asked of votes and maps that went through log, reducers and archive."""

import time
from typing import Any
from urllib.parse import urlsplit

import pytest

from clickhouse import examples
from clickhouse.examples.dataframe import frame
from consumers.reducers.win_chance import win_probability
from tests.support.archive_log import ArchiveLog
from tests.support.reduced_log import ReducedLog

pytestmark = [pytest.mark.redis, pytest.mark.clickhouse]

MINUTE_US = 60_000_000
NOON_US = int(time.time() // 3600 * 3600 * 1e6)
ROUNDS = "1212" + "1" * 11


class Analyst:
    """Asks questions of a test's database."""

    def __init__(self, database_url: str) -> None:
        self._url = database_url
        self._parts = urlsplit(database_url)

    def ask(self, question: str, **parameters: str) -> list[dict[str, Any]]:
        found = self.frame(question, **parameters)
        rows: list[dict[str, Any]] = found.to_dict("records")
        return rows

    def frame(self, question: str, **parameters: str) -> Any:
        parts = self._parts
        return frame(
            f"{parts.scheme}://{parts.hostname}:{parts.port}", str(parts.username), str(parts.password), question,
            parameters, f"{parts.path[1:]}_an",
        )  # fmt: skip


@pytest.fixture
def analyst(database_url: str, log: ArchiveLog) -> Analyst:
    return Analyst(database_url)


def vote(log: ArchiveLog, number: int, option: str, minute: float, voter: str = "", source: str = "api") -> None:
    body = {
        "event_id": f"e{number}", "poll_id": "p", "option": option, "voter": voter or f"{number + 1:016x}",
        "source": source,
    }  # fmt: skip
    log.log_writer.append("vote", "poll.p", body, received_us=int(NOON_US + minute * MINUTE_US))


async def test_turnout_over_time(log: ArchiveLog, analyst: Analyst) -> None:
    for number, minute in enumerate([0, 0, 1, 5]):
        vote(log, number, "ab"[number % 2], minute)
    await log.archive()
    found = analyst.ask("turnout_over_time", poll="p")
    assert [(row["votes_in_minute"], row["votes_so_far"], row["share"]) for row in found] == [
        (2, 2, 0.5), (1, 3, 0.75), (1, 4, 1.0)
    ]  # fmt: skip
    assert [(row["minute"].value // 1000 - NOON_US) // MINUTE_US for row in found] == [0, 1, 5]
    assert analyst.ask("turnout_over_time", poll="unknown") == []


async def test_late_surge_by_source(log: ArchiveLog, analyst: Analyst) -> None:
    """Eight quiet minutes, then twitch votes b."""
    number = 0
    for minute in range(8):
        for option, source in (("a", "twitch"), ("b", "twitch"), ("a", "api"), ("b", "api")):
            vote(log, number, option, minute, source=source)
            number += 1
    for minute in (8, 9):
        for option, source, count in (("b", "twitch", 20), ("a", "twitch", 1), ("a", "api", 1), ("b", "api", 1)):
            for _ in range(count):
                vote(log, number, option, minute, source=source)
                number += 1
    await log.archive()
    found = analyst.ask("late_surge_by_source", poll="p", minutes="2")
    first = found[0]
    assert (first["source"], first["option_id"], first["before"], first["late"]) == ("twitch", "b", 8, 40)
    assert (first["share_before"], first["share_late"], first["surge"]) == (0.5, round(40 / 42, 4), 20.0)
    assert [row["surge"] for row in found[1:]] == [1.0, 1.0, 1.0]


async def test_swing_after_each_round(log: ArchiveLog, analyst: Analyst) -> None:
    played = ReducedLog(log)
    played.play_map("m1", ROUNDS)
    await played.archive()
    found = analyst.ask("swing_after_each_round", match="m1", map="0")
    score, before = [0, 0], 0.5
    assert len(found) == len(ROUNDS)
    for row, winner in zip(found, ROUNDS, strict=True):
        score[int(winner) - 1] += 1
        after = win_probability(*score)
        assert (row["winner"], row["score_team1"], row["score_team2"]) == (f"team{winner}", *score)
        assert row["p_before"] == pytest.approx(before, abs=6e-5)
        assert row["p_after"] == pytest.approx(after, abs=6e-5)
        assert row["swing"] == pytest.approx(100 * (after - before), abs=0.006)
        before = after


async def test_bot_suspicion(log: ArchiveLog, analyst: Analyst) -> None:
    """One voter like clockwork, one in a hurry, and people."""
    number = 0
    for beat in range(20):
        vote(log, number, "a", beat, "00000000000000aa")
        number += 1
    for beat in range(12):
        vote(log, number, "ab"[beat % 2], beat * beat / 500, "00000000000000bb")
        number += 1
    for person in range(10):
        for minute in (0, 1, 7, 9):
            vote(log, number, "b", minute + person / 100, f"{person + 1:016x}")
            number += 1
    await log.archive()
    found = analyst.ask("bot_suspicion", poll="p", votes="3")
    assert [(row["votes"], row["options"], row["gap_ms"], row["spread"]) for row in found[:1]] == [(20, 1, 60000, 0)]
    assert [(row["votes"], row["options"]) for row in found] == [(20, 1), (12, 2)]
    assert found[1]["votes_a_minute"] == pytest.approx(11 / (121 / 500), abs=0.1)
    assert not {row["voter"] for row in found} & {0xAA, 0xBB}, "pseudonyms"


async def test_latency_by_source(log: ArchiveLog, analyst: Analyst) -> None:
    now_us = int(time.time() * 1e6)
    for number in range(100):
        received_us = now_us - 5_000_000
        sent = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(received_us // 1_000_000 - 2))
        body = {
            "event_id": f"e{number}", "poll_id": "p", "option": "a", "voter": f"{number:016x}", "source": "obs",
            "ts": f"{sent}.{received_us // 1000 % 1000:03d}Z",
        }  # fmt: skip
        log.log_writer.append("vote", "poll.p", body, received_us=received_us)
    await log.archive()
    found = {row["stage"]: row for row in analyst.ask("latency_by_source", hours="2")}
    assert set(found) == {"source", "log", "archive"}
    assert {row["facts"] for row in found.values()} == {100}
    assert found["source"]["p50_ms"] == found["source"]["p99_ms"] == 2000
    assert 5000 <= found["log"]["p50_ms"] <= found["archive"]["p50_ms"] <= found["archive"]["worst_ms"]


async def test_prediction_calibration(log: ArchiveLog, analyst: Analyst) -> None:
    """Two maps, one for each team: the table and the Brier score are those of a calculation by hand."""
    played = ReducedLog(log)
    maps = {"m1": ROUNDS, "m2": "2" * 13}
    for match_id, rounds in maps.items():
        played.play_map(match_id, rounds)
    played.play_map("m3", "11", ends=False)  # no result yet
    await played.archive()
    said: list[tuple[float, float]] = []
    for rounds in maps.values():
        score = [0, 0]
        outcome = 1.0 if rounds.count("1") == 13 else 0.0
        for winner in rounds:
            said.append((win_probability(*score), outcome))
            score[int(winner) - 1] += 1
    found = analyst.ask("prediction_calibration")
    whole = found[-1]
    assert (whole["predicted"], whole["predictions"]) == ("all", len(said))
    assert whole["brier"] == pytest.approx(sum((p - outcome) ** 2 for p, outcome in said) / len(said), abs=6e-5)
    tenths = {min(9, int(p * 10)) for p, _ in said}
    assert len(found) == len(tenths) + 1
    highest = [(p, outcome) for p, outcome in said if p >= 0.9]
    assert found[-2]["predictions"] == len(highest)
    assert found[-2]["observed"] == 1.0
    assert found[-2]["mean_predicted"] == pytest.approx(sum(p for p, _ in highest) / len(highest), abs=6e-5)


def test_every_question_is_asked_here_and_says_what_it_answers() -> None:
    names = examples.names()
    assert len(names) == 6
    for name in names:
        assert f"test_{name}" in globals()
        lines = examples.sql(name).splitlines()
        assert lines[0].startswith("-- ")
        assert lines[0].endswith("?")
