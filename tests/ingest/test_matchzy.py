"""What MatchZy and Get5 send, as match events. Fixtures: tests/fixtures/matchzy."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.events import MatchEvent
from core.names import RESERVED_TYPES, is_event_type, is_id
from core.problem import Problem
from ingest.sources import matchzy

FIXTURES = Path(__file__).parent.parent / "fixtures" / "matchzy"
BODIES = sorted(FIXTURES.rglob("*.json"))
AT_US = 1_795_000_000_000_000


def mapped(body: Any, server: str = "srv", headers: dict[str, str] | None = None, at_us: int = AT_US) -> MatchEvent:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return matchzy.match_event(text, server, headers or {}, at_us)[0]


def fixture(name: str) -> Any:
    return json.loads((FIXTURES / name).read_bytes())


def test_the_fixtures_are_there() -> None:
    assert len(BODIES) == 55


@pytest.mark.parametrize("path", BODIES, ids=lambda path: path.name)
def test_every_recorded_body_becomes_an_event_with_its_data(path: Path) -> None:
    body = json.loads(path.read_bytes())
    event = mapped(path.read_bytes())
    assert event.type == body["event"]
    assert event.match_id == f"srv-{body.get('matchid', 'none')}"
    assert is_id(event.map_id)
    assert event.data == {key: value for key, value in body.items() if key != "ip_address"}


def test_a_whole_map_counts_its_rounds_and_keeps_the_series_apart() -> None:
    events = [mapped(path.read_bytes()) for path in sorted((FIXTURES / "constructed_map_13_9").iterdir())]
    assert {event.match_id for event in events} == {"srv-18"}
    assert {event.source for event in events} == {"matchzy"}
    assert [e.round_no for e in events if e.type == "round_end"] == list(range(1, 23))
    series = {"series_start", "series_end", "map_vetoed", "map_picked", "side_picked"}
    assert all(event.map_id == ("series" if event.type in series else "0") for event in events)


@pytest.mark.parametrize(
    ("change", "round_no"),
    [
        ({}, 28),  # 14 + 14, although round_number says 13
        ({"team1": {"score": 3}, "team2": {"score": 2}}, 5),
        ({"team1": {"score": 3}, "team2": {}}, 14),  # Get5 counts rounds from 0
        ({"team1": {"score": 3}, "team2": {}, "matchid": 7}, 13),  # MatchZy sends completed rounds
        ({"team1": None, "team2": None, "round_number": None}, None),
        ({"team1": {"score": -1}, "team2": {"score": 2}, "round_number": "x"}, None),
        ({"team1": {"score": True}, "team2": {"score": 2}, "round_number": 4}, 5),
        ({"team1": {"score": 9_999}, "team2": {"score": 2}}, None),
        ({"team1": {"score": 2**70}, "team2": {"score": 2}}, None),
    ],
)
def test_the_round_number_comes_from_the_score_where_there_is_one(change: Any, round_no: int | None) -> None:
    assert mapped(fixture("get5_events/round_end.json") | change).round_no == round_no


def test_other_round_events_are_numbered_from_one_too() -> None:
    assert mapped(fixture("get5_events/bomb_planted.json")).round_no == 14
    assert mapped(fixture("get5_events/bomb_planted.json") | {"matchid": 1, "round_number": 13}).round_no == 13


@pytest.mark.parametrize(
    ("matchid", "headers", "source"),
    [
        (18, {}, "matchzy"),
        (-1, {}, "matchzy"),
        ("18", {}, "get5"),
        ("", {}, "get5"),
        (None, {}, "get5"),
        (18, {"get5-version": "0.15"}, "get5"),
        (18, {"user-agent": "SourceMod Get5 0.15"}, "get5"),
        (18, {"user-agent": "MatchZy"}, "matchzy"),
    ],
)
def test_the_plugin_is_told_from_headers_or_the_kind_of_matchid(
    matchid: object, headers: dict[str, str], source: str
) -> None:
    assert mapped({"event": "going_live", "matchid": matchid, "map_number": 0}, headers=headers).source == source


@pytest.mark.parametrize(
    ("server", "matchid", "match_id"),
    [
        ("srv", 18, "srv-18"),
        ("srv", -1, "srv--1"),
        ("srv", "14272", "srv-14272"),
        ("srv", 18.0, "srv-18"),
        ("srv", "", "srv-none"),
        ("srv", None, "srv-none"),
        ("srv", {"id": 1}, "srv-none"),
        ("srv", True, "srv-none"),
    ],
)
def test_match_ids(server: str, matchid: object, match_id: str) -> None:
    assert mapped({"event": "series_start", "matchid": matchid}, server).match_id == match_id


@pytest.mark.parametrize("server", ["my server", "a.b", "x" * 100, "снайпер", "a/b", "{s00}", "a\n"])
def test_ids_that_are_none_are_mapped_to_one_and_the_same_and_no_other(server: str) -> None:
    event = mapped({"event": "series_start", "matchid": 5}, server)
    assert is_id(event.match_id)
    assert event.match_id == mapped({"event": "series_end", "matchid": 5}, server).match_id
    others = {mapped({"event": "series_end", "matchid": m}, s).match_id for s, m in ((server, 6), (server + "!", 5))}
    assert event.match_id not in others
    assert len(others) == 2


@pytest.mark.parametrize(
    ("number", "map_id"),
    [(0, "0"), (2, "2"), ("1", "1"), (None, "series"), (True, "series"), ([], "series"), (1.0, "1")],
)
def test_map_ids(number: object, map_id: str) -> None:
    assert mapped({"event": "going_live", "matchid": 1, "map_number": number}).map_id == map_id


def test_strange_map_numbers_still_give_an_id() -> None:
    for number in (1.5, 10**70, "de dust", -(10**30)):
        assert is_id(mapped({"event": "going_live", "matchid": 1, "map_number": number}).map_id)


@pytest.mark.parametrize(
    ("name", "type_"),
    [
        ("round_end", "round_end"),
        ("a_fork_s_own_event2", "a_fork_s_own_event2"),
        ("state", "x_state"),
        ("error", "x_error"),
        ("Round End", "x_round_end"),
        ("round_end\r\ndata: forged", "x_round_end__data__forged"),
        ("2nd", "x_2nd"),
        ("x" * 65, "x_" + "x" * 62),
    ],
)
def test_types(name: str, type_: str) -> None:
    assert mapped({"event": name, "matchid": 1}).type == type_


def test_no_type_is_ever_reserved_or_malformed() -> None:
    names = [*RESERVED_TYPES, "É", " ", "\n", "x" * 200, "A", "_", "😀"]
    assert all(is_event_type(mapped({"event": name, "matchid": 1}).type) for name in names)


def test_ip_addresses_are_dropped_wherever_they_stand() -> None:
    body = fixture("get5_events/player_connect.json") | {"players": [{"ip_address": "1.2.3.4", "name": "n"}]}
    event = mapped(body)
    assert "34.132.182.66" not in repr(event)
    assert event.data["players"] == [{"name": "n"}]
    assert event.data["player"] == body["player"]


def test_an_equal_body_has_the_same_hash_but_at_another_time_another_id() -> None:
    body = b'{"event":"going_live","matchid":1,"map_number":0}'
    first, first_hash = matchzy.match_event(body, "srv", {}, AT_US)
    later, later_hash = matchzy.match_event(body, "srv", {}, AT_US + 1)
    _, other_hash = matchzy.match_event(body, "srv2", {}, AT_US)
    assert first_hash == later_hash != other_hash
    assert first.event_id != later.event_id
    assert first.event_id.startswith(first_hash)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"not json", 400),
        (b'{"event": "going_live"', 400),
        (b'{"event": "\\ud800", "matchid": 1}', 400),
        (b'{"event": "e", "x": "\xff"}', 400),
        (b'{"event": "e", "x": ' + b"[" * 50_000, 400),
        (b"[]", 422),
        (b'"text"', 422),
        (b"{}", 422),
        (b'{"event": ""}', 422),
        (b'{"event": 5}', 422),
        (b'{"event": "e", "x": ' + b"[" * 200 + b"]" * 200 + b"}", 422),
        (b'{"event": "e", "x": ' + b"[" * 800 + b"]" * 800 + b"}", 422),
        (b'{"event": "e", "x": "' + b"x" * 300_000 + b'"}', 422),
    ],
)
def test_what_is_no_event_is_refused(body: bytes, status: int) -> None:
    with pytest.raises(Problem) as caught:
        matchzy.group(body, "srv", {}, AT_US, "c")
    assert caught.value.status == status


def test_the_group_is_one_line_for_the_log_and_carries_the_suppression() -> None:
    body = (FIXTURES / "constructed_map_13_9" / "09.round_end.r01.json").read_bytes()
    group = matchzy.group(body, "srv", {}, AT_US, "corr")
    assert group.topic == "match.srv-18.0"
    assert group.header == f"match match.srv-18.0 {AT_US} corr"
    assert group.suppression
    (event_id, entry) = group.items
    assert isinstance(entry, bytes)
    assert b"\n" not in entry
    assert json.loads(entry)["event_id"] == event_id
