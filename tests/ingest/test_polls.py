"""What may be done to a poll, and when; through HTTP and in the log."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from core import keys
from core.clock import now_us
from core.names import shard_of
from core.redis_client import Scripts, connect
from core.settings import Settings
from ingest import polls
from tests.ingest.conftest import POLL, Log, vote

URL = "/api/v1/polls/p1"
VIEW = {**POLL, "poll_id": "p1", "voting": "first", "match_id": None, "opens_at": None, "closes_at": None}
OPTIONS: list[dict[str, str]] = POLL["options"]  # type: ignore[assignment]


def soon(**delta: float) -> str:
    return (datetime.now(UTC) + timedelta(**delta)).isoformat()


async def test_a_poll_is_created_once_and_an_equal_body_writes_nothing(client: httpx.AsyncClient, log: Log) -> None:
    created = await client.put(URL, json=POLL)
    assert (created.status_code, created.json()) == (201, VIEW | {"status": "open"})
    again = await client.put(URL, json=POLL | {"poll_id": "p1", "voting": "first", "unknown": 1})
    assert (again.status_code, again.json()) == (200, created.json())
    [entry] = await log.entries()
    assert (entry.kind, entry.topic, entry.ordinal) == ("poll", "poll.p1", 1)
    assert json.loads(entry.body) == VIEW


async def test_an_equal_time_written_differently_is_equal(client: httpx.AsyncClient, log: Log) -> None:
    await client.put(URL, json=POLL | {"closes_at": "2036-01-01T12:00:00Z"})
    again = await client.put(URL, json=POLL | {"closes_at": "2036-01-01T14:00:00.000+02:00"})
    assert again.status_code == 200
    assert len(await log.entries()) == 1


async def test_before_the_first_vote_anything_may_change(client: httpx.AsyncClient, poll: str, log: Log) -> None:
    other = {"title": "Else?", "options": [{"id": "z", "label": "Z"}], "voting": "last", "match_id": "m1"}
    changed = await client.put(URL, json=other)
    assert changed.status_code == 200
    assert changed.json() == VIEW | other | {"status": "open"}
    assert [e.ordinal for e in await log.entries("poll")] == [1, 2]


async def test_after_the_first_vote_title_labels_end_and_more_options_may_change(
    client: httpx.AsyncClient, poll: str
) -> None:
    await client.post("/api/v1/votes", json=vote("e1"))
    new = {
        "title": "New title",
        "options": [{"id": "c", "label": "New"}, {"id": "a", "label": "Aleph"}, {"id": "b", "label": "Beth"}],
        "closes_at": soon(hours=1),
    }
    changed = await client.put(URL, json=POLL | new)
    assert changed.status_code == 200
    assert changed.json()["options"] == new["options"]
    assert (await client.post("/api/v1/votes", json=vote("e2", option="c"))).status_code == 202


@pytest.mark.parametrize(
    "change",
    [
        {"voting": "last"},
        {"match_id": "m1"},
        {"opens_at": "2026-01-01T00:00:00Z"},
        {"options": OPTIONS[:1]},
        {"options": [{"id": "a2", "label": "Alpha"}, OPTIONS[1]]},
        {"options": OPTIONS[::-1]},
    ],
)
async def test_after_the_first_vote_nothing_else_may_change(
    client: httpx.AsyncClient, poll: str, log: Log, change: dict[str, Any]
) -> None:
    await client.post("/api/v1/votes", json=vote("e1"))
    refused = await client.put(URL, json=POLL | change)
    assert refused.status_code == 409
    assert refused.headers["content-type"] == "application/problem+json"
    assert len(await log.entries("poll")) == 1
    assert (await client.put(URL, json=POLL)).status_code == 200


async def test_closing_twice_is_fine_and_logged_once(client: httpx.AsyncClient, poll: str, log: Log) -> None:
    for _ in range(2):
        closed = await client.post(f"{URL}/close")
        assert (closed.status_code, closed.json()) == (200, VIEW | {"status": "closed"})
    [entry] = await log.entries("close")
    assert (entry.topic, entry.ordinal) == ("poll.p1", 2)
    assert json.loads(entry.body) == {"reason": "request", "due_ms": None}


async def test_a_closed_poll_can_not_change_but_be_repeated(client: httpx.AsyncClient, poll: str, log: Log) -> None:
    await client.post(f"{URL}/close")
    assert (await client.put(URL, json=POLL | {"title": "Other"})).status_code == 409
    again = await client.put(URL, json=POLL)
    assert (again.status_code, again.json()["status"]) == (200, "closed")
    assert len(await log.entries("poll")) == 1


async def test_a_vote_for_a_closed_poll_is_accepted_and_logged_after_the_close(
    client: httpx.AsyncClient, poll: str, log: Log
) -> None:
    await client.post(f"{URL}/close")
    answer = await client.post("/api/v1/votes", json=vote("e1"))
    assert (answer.status_code, answer.json()) == (202, {"accepted": 1, "duplicates": 0})
    assert [e.kind for e in await log.entries()] == ["poll", "close", "vote"]


async def test_closing_what_does_not_exist_is_404(client: httpx.AsyncClient, log: Log) -> None:
    for name in ("p1", "a.b", "{s00}", "%20", "x" * 65):
        assert (await client.post(f"/api/v1/polls/{name}/close")).status_code == 404
    assert await log.entries() == []


@pytest.mark.parametrize(("in_hours", "status"), [(None, "open"), (1, "pending"), (-1, "open")])
async def test_a_poll_is_pending_until_it_opens(client: httpx.AsyncClient, in_hours: int | None, status: str) -> None:
    opens_at = soon(hours=in_hours) if in_hours else None
    assert (await client.put(URL, json=POLL | {"opens_at": opens_at})).json()["status"] == status


async def test_times_are_kept_for_the_owner_of_the_timers(client: httpx.AsyncClient, log: Log) -> None:
    await client.put(URL, json=POLL | {"opens_at": "2036-01-01T00:00:00.5Z", "closes_at": "2036-01-02T00:00:00.009Z"})
    fields: Any = await log.redis.hgetall(keys.definition(shard_of("poll.p1", 4), "poll.p1"))
    assert (fields[b"opens_ms"], fields[b"closes_ms"]) == (b"2082758400500", b"2082844800009")
    assert fields[b"rev"] == b"1"


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"title": ""}, "title"),
        ({"title": "x" * 501}, "title"),
        ({"title": None}, "title"),
        ({"options": []}, "options"),
        ({"options": [{"id": f"o{n}", "label": "x"} for n in range(101)]}, "options"),
        ({"options": {"a": "A"}}, "options"),
        ({"options": [OPTIONS[0], {"id": "b!", "label": "B"}]}, "options[1].id"),
        ({"options": [OPTIONS[0], {"id": "b"}]}, "options[1]"),
        ({"options": [OPTIONS[0], {"id": "b", "label": ""}]}, "options[1].label"),
        ({"options": [OPTIONS[0], {"id": "a", "label": "Again"}]}, "options[1].id"),
        ({"voting": "twice"}, "voting"),
        ({"match_id": "m.1"}, "match_id"),
        ({"opens_at": "soon"}, "opens_at"),
        ({"closes_at": "2036-01-01T00:00:00"}, "closes_at"),
        ({"closes_at": "1960-01-01T00:00:00Z"}, "closes_at"),
        ({"closes_at": "2026-01-01T00:00:00Z"}, "closes_at"),  # has passed: it would be open until a timer noticed
        ({"opens_at": "9999-12-31T23:59:59-23:59"}, "opens_at"),
        ({"opens_at": "2036-01-02T00:00:00Z", "closes_at": "2036-01-01T00:00:00Z"}, "closes_at"),
        ({"opens_at": "2036-01-01T00:00:00Z", "closes_at": "2036-01-01T00:00:00Z"}, "closes_at"),
        ({"poll_id": "p2"}, "poll_id"),
        ({"poll_id": 1}, "poll_id"),
    ],
)
async def test_a_bad_definition_is_422_and_named(
    client: httpx.AsyncClient, log: Log, change: dict[str, Any], path: str
) -> None:
    answer = await client.put(URL, json=POLL | change)
    assert answer.status_code == 422
    assert [error["path"] for error in answer.json()["errors"]] == [path]
    assert await log.entries() == []


@pytest.mark.parametrize("body", [b"[]", b"1", b'"x"', b"null", b"{}"])
async def test_what_is_no_definition_is_422(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.put(URL, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422


@pytest.mark.parametrize("name", ["a.b", "a%20b", "x" * 65, "%7Bs00%7D", "a%0Ab"])
async def test_a_bad_id_in_the_path_is_422(client: httpx.AsyncClient, name: str) -> None:
    assert (await client.put(f"/api/v1/polls/{name}", json=POLL)).status_code == 422


async def test_of_concurrent_equal_puts_one_creates(client: httpx.AsyncClient, log: Log) -> None:
    answers = await asyncio.gather(*(client.put(URL, json=POLL) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
    assert len(await log.entries()) == 1


async def test_concurrent_changes_are_decided_one_after_the_other(client: httpx.AsyncClient, log: Log) -> None:
    answers = await asyncio.gather(*(client.put(URL, json=POLL | {"title": f"t{n}"}) for n in range(6)))
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [201]
    entries = await log.entries()
    assert [e.ordinal for e in entries] == [1, 2, 3, 4, 5, 6]
    fields: Any = await log.redis.hgetall(keys.definition(shard_of("poll.p1", 4), "poll.p1"))
    assert fields[b"rev"] == b"6"
    assert fields[b"def"] == entries[-1].body


async def test_a_vote_between_decision_and_change_is_noticed(
    client: httpx.AsyncClient, poll: str, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vote comes after the poll was read as having none, and before the change is written."""
    read = polls.Polls._read

    async def vote_after_reading(self: polls.Polls, poll_ids: Any) -> Any:
        found = await read(self, poll_ids)
        monkeypatch.setattr(polls.Polls, "_read", read)
        assert (await client.post("/api/v1/votes", json=vote("e1"))).status_code == 202
        return found

    monkeypatch.setattr(polls.Polls, "_read", vote_after_reading)
    assert (await client.put(URL, json=POLL | {"voting": "last"})).status_code == 409


async def test_options_are_cached_only_of_polls_whose_options_stay(client: httpx.AsyncClient, poll: str) -> None:
    """An option removed before the first vote is unknown at once, whoever removed it."""
    assert (await client.post("/api/v1/votes", json=vote("e1", option="x"))).status_code == 422
    await client.put(URL, json=POLL | {"options": OPTIONS[1:]})
    assert (await client.post("/api/v1/votes", json=vote("e1"))).status_code == 422
    assert (await client.post("/api/v1/votes", json=vote("e1", option="b"))).status_code == 202


async def test_an_option_added_elsewhere_is_found_before_saying_no(
    client: httpx.AsyncClient, poll: str, log: Log
) -> None:
    await client.post("/api/v1/votes", json=[vote("e1"), vote("e2")])
    await client.post("/api/v1/votes", json=vote("e3"))  # cached now
    definition = VIEW | {"options": [*OPTIONS, {"id": "c", "label": "Charlie"}]}
    key = keys.definition(shard_of("poll.p1", 4), "poll.p1")
    await log.redis.hset(key, "def", json.dumps(definition))  # what another ingest would have written
    assert (await client.post("/api/v1/votes", json=vote("e4", option="c"))).status_code == 202


async def test_a_poll_that_was_cleaned_up_is_unknown_again(client: httpx.AsyncClient, poll: str, log: Log) -> None:
    for number in range(2):
        assert (await client.post("/api/v1/votes", json=vote(f"e{number}"))).status_code == 202
    await log.redis.delete(keys.definition(shard_of("poll.p1", 4), "poll.p1"))
    assert (await client.post("/api/v1/votes", json=vote("e5"))).status_code == 404
    assert (await client.post("/api/v1/votes", json=[vote("e5")])).status_code == 422
    assert len(await log.entries("vote")) == 2


async def test_a_vanished_poll_beside_a_living_one_is_503_and_then_422(
    client: httpx.AsyncClient, poll: str, log: Log
) -> None:
    await client.put("/api/v1/polls/p2", json=POLL)
    both = [vote("e1"), vote("e2", poll_id="p2")]
    for number in range(2):
        await client.post("/api/v1/votes", json=[item | {"event_id": f"{number}"} for item in both])
    await log.redis.delete(keys.definition(shard_of("poll.p1", 4), "poll.p1"))
    assert (await client.post("/api/v1/votes", json=both)).status_code == 503
    answer = await client.post("/api/v1/votes", json=both)
    assert (answer.status_code, [e["index"] for e in answer.json()["errors"]]) == (422, [0])


async def test_the_cache_is_bounded(
    client: httpx.AsyncClient, log: Log, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polls, "CACHE_MAX", 2)
    names = [f"c{number}" for number in range(5)]
    for name in names:
        await client.put(f"/api/v1/polls/{name}", json=POLL)
        await client.post("/api/v1/votes", json=vote("e1", poll_id=name))
    async with connect(settings) as connection:
        known = polls.Polls(connection, Scripts(connection, 4, {}), 4, now_us)
        for _ in range(2):
            for name in names:
                assert await known.options([name]) == {name: frozenset("ab")}
        assert list(known._cache) == names[-2:]


def test_the_same_moment_in_another_time_zone_is_no_change() -> None:
    one = polls.parse("p1", json.dumps(POLL | {"opens_at": "2036-01-01T12:00:00Z"}).encode())
    two = polls.parse("p1", json.dumps(POLL | {"opens_at": "2036-01-01T13:00:00+01:00"}).encode())
    assert polls.refusal(polls.StoredPoll(one, "1", "1", ""), two) == ""
