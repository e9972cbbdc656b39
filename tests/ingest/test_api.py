"""The write side's calls as the contract (§3) gives them."""

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY

from core.digest import voter_hash, voter_key
from core.events import decode_match_event, decode_vote
from core.settings import Settings
from tests.ingest.conftest import POLL, Log, event, vote

VOTES, EVENTS, HOOK = "/api/v1/votes", "/api/v1/events", "/hooks/matchzy/srv"
NDJSON = {"Content-Type": "application/x-ndjson"}
JSON = {"Content-Type": "application/json"}
_DIRECTORY = Path(__file__).parent.parent / "fixtures" / "matchzy"
FIXTURES = {path.name: path.read_bytes() for path in sorted(_DIRECTORY.rglob("*.json"))}


def ndjson(items: list[dict[str, Any]]) -> bytes:
    return b"\n".join(json.dumps(item).encode() for item in items)


def assert_problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The answer is an RFC 9457 problem that says nothing about our insides."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    assert {"type", "title", "detail"} <= body.keys()
    assert not any(word in answer.text for word in ("Traceback", "msgspec", "redis", ".py"))
    return body


async def test_one_vote_an_array_and_ndjson_are_stored(client: httpx.AsyncClient, poll: str, log: Log) -> None:
    one = await client.post(VOTES, json=vote("e1"))
    many = await client.post(VOTES, json=[vote("e2"), vote("e3")])
    lines = await client.post(VOTES, content=ndjson([vote("e4"), vote("e4"), vote("e1")]), headers=NDJSON)
    assert [answer.status_code for answer in (one, many, lines)] == [202] * 3
    assert one.json() == {"accepted": 1, "duplicates": 0}
    assert many.json() == {"accepted": 2, "duplicates": 0}
    assert lines.json() == {"accepted": 1, "duplicates": 2}
    assert [decode_vote(e.body).event_id for e in await log.entries("vote")] == ["e1", "e2", "e3", "e4"]


async def test_a_vote_is_logged_as_sent_but_with_its_voter_hashed(
    client: httpx.AsyncClient, poll: str, log: Log, settings: Settings
) -> None:
    await client.post(
        VOTES,
        json=vote("e1", voter="twitch:secret-name", ts="2026-01-01T12:00:00.5+02:00", source="twitch", extra=1),
        headers={"X-Request-Id": "request-1"},
    )
    [entry] = await log.entries("vote")
    assert (entry.topic, entry.ordinal, entry.correlation) == ("poll.p1", 1, "request-1")
    assert json.loads(entry.body) == {
        "event_id": "e1",
        "poll_id": "p1",
        "option": "a",
        "voter": voter_hash(voter_key(settings.voter_secret), "twitch:secret-name"),
        "ts": "2026-01-01T12:00:00.500000+02:00",
        "source": "twitch",
    }
    assert "secret-name" not in await log.dump()


async def test_a_match_event_is_logged_as_sent_on_one_line(client: httpx.AsyncClient, log: Log) -> None:
    sent = event("e1", round_no=3, source="api", data={"text": "a\nb\u2028c", "n": [1, 2.5, None, {"deep": True}]})
    answer = await client.post(EVENTS, json=sent)
    assert (answer.status_code, answer.json()) == (202, {"accepted": 1, "duplicates": 0})
    [entry] = await log.entries("match")
    assert entry.topic == "match.m1.1"
    assert json.loads(entry.body) == sent | {"ts": None}
    assert len(entry.body.decode().splitlines()) == 1


async def test_the_events_of_a_match_keep_the_order_of_their_body(client: httpx.AsyncClient, log: Log) -> None:
    """Over several calls of the script (500 entries each), on maps that share the shard of their match."""
    sent = [event(f"e{n}", map_id=str(n % 3)) for n in range(1700)]
    answer = await client.post(EVENTS, content=ndjson(sent), headers=NDJSON)
    assert answer.json() == {"accepted": 1700, "duplicates": 0}
    entries = await log.entries("match")
    for map_id in ("0", "1", "2"):
        stored = [decode_match_event(e.body).event_id for e in entries if e.topic == f"match.m1.{map_id}"]
        assert stored == [item["event_id"] for item in sent if item["map_id"] == map_id]
    assert [e.ordinal for e in entries] == list(range(1, 1701))


async def test_event_ids_count_within_their_topic(client: httpx.AsyncClient, poll: str) -> None:
    await client.put("/api/v1/polls/p2", json=POLL)
    votes = [vote("same"), vote("same", poll_id="p2")]
    assert (await client.post(VOTES, json=votes)).json() == {"accepted": 2, "duplicates": 0}
    events = [event("same"), event("same", map_id="2"), event("same", match_id="m2"), event("same")]
    assert (await client.post(EVENTS, json=events)).json() == {"accepted": 3, "duplicates": 1}


async def test_the_same_ids_from_many_requests_at_once_are_accepted_once(
    client: httpx.AsyncClient, poll: str, log: Log
) -> None:
    bodies = [[vote(f"e{n}") for n in range(start, start + 60)] for start in range(0, 100, 5) for _ in range(3)]
    answers = await asyncio.gather(*(client.post(VOTES, json=body) for body in bodies))
    distinct = {item["event_id"] for body in bodies for item in body}
    assert sum(answer.json()["accepted"] for answer in answers) == len(distinct)
    assert sum(sum(answer.json().values()) for answer in answers) == sum(map(len, bodies))
    stored = [decode_vote(e.body).event_id for e in await log.entries("vote")]
    assert Counter(stored) == Counter(distinct)
    assert [e.ordinal for e in await log.entries("vote")] == list(range(1, len(distinct) + 1))


async def test_a_body_with_one_bad_item_stores_nothing(client: httpx.AsyncClient, poll: str, log: Log) -> None:
    for bad in (vote("e2", option="no"), vote("e2", poll_id="no"), vote("e2", voter="\n"), {}):
        body = assert_problem(await client.post(VOTES, json=[vote("e1"), bad, vote("e3")]), 422)
        assert [error["index"] for error in body["errors"]] == [1]
        assert all(error["reason"] for error in body["errors"])
    for wrong in (event("e2", type="state"), event("e2", data={"x": "y" * 300_000}), event("e2", map_id="*"), {}):
        body = assert_problem(await client.post(EVENTS, json=[event("e1"), wrong]), 422)
        assert [error["index"] for error in body["errors"]] == [1]
    assert [e.kind for e in await log.entries()] == ["poll"]


async def test_an_unknown_poll_is_404_alone_and_422_in_a_list(client: httpx.AsyncClient, poll: str) -> None:
    assert_problem(await client.post(VOTES, json=vote("e1", poll_id="nope")), 404)
    for answer in (
        await client.post(VOTES, json=[vote("e1", poll_id="nope")]),
        await client.post(VOTES, content=ndjson([vote("e1", poll_id="nope")]), headers=NDJSON),
    ):
        assert assert_problem(answer, 422)["errors"] == [
            {"index": 0, "path": "poll_id", "reason": "there is no such poll"}
        ]
    body = assert_problem(await client.post(VOTES, json=vote("e1", option="nope")), 422)
    assert [(error["index"], error["path"]) for error in body["errors"]] == [(0, "option")]


async def test_votes_for_very_many_polls_are_judged_in_one_go(client: httpx.AsyncClient, log: Log) -> None:
    votes = [vote("e", poll_id=f"q{n}") for n in range(3000)]
    body = assert_problem(await client.post(VOTES, content=ndjson(votes), headers=NDJSON), 422)
    assert body["detail"].startswith("3000 ")
    assert len(body["errors"]) == 100


@pytest.mark.parametrize("body", [b"", b"{", b'{"event_id": NaN}', b'{"event_id": "\\ud800"}', b"\xff", b"[" * 99_999])
@pytest.mark.parametrize("url", [VOTES, EVENTS, HOOK])
async def test_an_unparseable_body_is_400(client: httpx.AsyncClient, url: str, body: bytes, log: Log) -> None:
    assert_problem(await client.post(url, content=body, headers=JSON), 400)
    assert await log.entries() == []


@pytest.mark.parametrize("url", [VOTES, EVENTS, HOOK, "/api/v1/polls/p1"])
@pytest.mark.parametrize(
    "headers", [{}, {"Content-Type": "text/plain"}, {"Content-Type": "application/json", "Content-Encoding": "gzip"}]
)
async def test_other_kinds_of_content_are_415(client: httpx.AsyncClient, url: str, headers: dict[str, str]) -> None:
    method = "PUT" if "polls" in url else "POST"
    assert_problem(await client.request(method, url, content=b"{}", headers=headers), 415)


async def test_ndjson_is_for_lists_only(client: httpx.AsyncClient) -> None:
    assert_problem(await client.put("/api/v1/polls/p1", content=b"{}", headers=NDJSON), 415)
    assert_problem(await client.post(HOOK, content=b"{}", headers=NDJSON), 415)


async def test_more_than_10000_items_are_413(client: httpx.AsyncClient, poll: str, log: Log) -> None:
    items = [event(f"e{n}") for n in range(10_001)]
    assert_problem(await client.post(EVENTS, content=ndjson(items), headers=NDJSON), 413)
    assert await log.entries("match") == []
    answer = await client.post(EVENTS, content=ndjson(items[1:]), headers=NDJSON)
    assert answer.json() == {"accepted": 10_000, "duplicates": 0}


async def test_empty_lists_are_accepted(client: httpx.AsyncClient) -> None:
    assert (await client.post(VOTES, json=[])).json() == {"accepted": 0, "duplicates": 0}
    assert (await client.post(EVENTS, content=b"\n", headers=NDJSON)).json() == {"accepted": 0, "duplicates": 0}


async def test_unknown_paths_and_methods_are_problems(client: httpx.AsyncClient, stranger: httpx.AsyncClient) -> None:
    for url in ("/", "/api/v1/nothing", "/api/v1/votes/", "/hooks/cs2/gsi", "/hooks/twitch/eventsub", "/hooks/matchzy"):
        assert_problem(await client.post(url), 404)
    assert_problem(await client.get(VOTES), 405)
    assert (await client.get(VOTES)).headers["allow"] == "POST"
    assert_problem(await stranger.post("/hooks/telegram/bot"), 404)
    assert_problem(await stranger.post("/api/v1/nothing"), 401)


async def test_no_origin_may_write_from_a_browser(client: httpx.AsyncClient) -> None:
    headers = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    answer = await client.options(VOTES, headers=headers)
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("name", FIXTURES)
async def test_every_recorded_body_goes_through_the_hook(client: httpx.AsyncClient, log: Log, name: str) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    answer = await client.post(HOOK, content=FIXTURES[name], headers=headers)
    assert (answer.status_code, answer.json()) == (200, {"accepted": 1, "duplicates": 0})
    [entry] = await log.entries()
    stored = decode_match_event(entry.body)
    assert (entry.kind, entry.topic) == ("match", f"match.{stored.match_id}.{stored.map_id}")


async def test_equal_hook_bodies_are_suppressed_and_equal_ones_of_another_server_are_not(
    client: httpx.AsyncClient, log: Log
) -> None:
    body = {"event": "going_live", "matchid": 7, "map_number": 0}
    assert (await client.post(HOOK, json=body)).json() == {"accepted": 1, "duplicates": 0}
    assert (await client.post(HOOK, json=body)).json() == {"accepted": 0, "duplicates": 1}
    assert (await client.post("/hooks/matchzy/other", json=body)).json() == {"accepted": 1, "duplicates": 0}
    await log.redis.delete(*[key async for key in log.redis.scan_iter("hook:*srv-7*")])  # as if 30 s had passed
    assert (await client.post(HOOK, json=body)).json() == {"accepted": 1, "duplicates": 0}
    stored = [decode_match_event(e.body) for e in await log.entries() if e.topic == "match.srv-7.0"]
    assert len({item.event_id for item in stored}) == 2
    assert stored[0].data == stored[1].data == body


async def test_an_ip_address_reaches_neither_log_nor_redis(client: httpx.AsyncClient, log: Log) -> None:
    await client.post(HOOK, content=FIXTURES["player_connect.json"], headers=JSON)
    assert len(await log.entries()) == 1
    assert "34.132.182.66" not in await log.dump()


def counted(source: str, result: str) -> float:
    return REGISTRY.get_sample_value("ingest_events_total", {"source": source, "result": result}) or 0.0


async def test_what_became_of_items_is_counted_by_source(client: httpx.AsyncClient, poll: str) -> None:
    labels = [("twitch", "accepted"), ("twitch", "duplicate"), ("api", "accepted"), ("other", "accepted")]
    before = {label: counted(*label) for label in [*labels, ("other", "invalid")]}
    observed = REGISTRY.get_sample_value("stage_latency_ms_count", {"stage": "ingest"}) or 0.0
    votes = [vote("e1", source="twitch"), vote("e1", source="twitch"), vote("e2"), vote("e3", source="strange")]
    await client.post(VOTES, json=votes)
    await client.post(VOTES, json=[{}, {}])
    assert {label: counted(*label) - count for label, count in before.items()} == {
        ("twitch", "accepted"): 1,
        ("twitch", "duplicate"): 1,
        ("api", "accepted"): 1,
        ("other", "accepted"): 1,
        ("other", "invalid"): 2,
    }
    assert REGISTRY.get_sample_value("stage_latency_ms_count", {"stage": "ingest"}) == observed + 4


async def test_health_readiness_and_metrics_need_no_key(stranger: httpx.AsyncClient) -> None:
    assert (await stranger.get("/healthz")).json() == {"status": "ok"}
    assert (await stranger.get("/readyz")).json() == {"status": "ready", "checks": {"redis": "ok"}}
    assert 'ingest_events_total{result="accepted",source="api"}' in (await stranger.get("/metrics")).text
