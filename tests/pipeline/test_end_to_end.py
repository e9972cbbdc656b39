"""The main job through public interfaces only: a recorded map and votes in, the same facts out on every transport."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets

from core.digest import MASK, format_digest, vote_hash
from tests.support.pipeline import Pipeline, running_pipeline
from tests.support.spectator import Spectator
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.redis, pytest.mark.clickhouse]

BODIES = sorted((Path(__file__).parents[1] / "fixtures" / "matchzy" / "constructed_map_13_9").glob("*.json"))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with running_pipeline(tmp_path_factory.mktemp("p") / "d") as running:
        yield running


@pytest.fixture
async def writer(pipeline: Pipeline) -> Any:
    headers = {"Authorization": f"Bearer {pipeline.settings.ingest_key}"}
    async with httpx.AsyncClient(base_url=pipeline.ingest_url, headers=headers, timeout=10) as client:
        yield client


@pytest.fixture
async def reader(pipeline: Pipeline) -> Any:
    async with httpx.AsyncClient(base_url=pipeline.gateway_url, timeout=10) as client:
        yield client


async def play_map(writer: httpx.AsyncClient, server: str) -> str:
    """Send the recorded map through the MatchZy hook; returns its match id."""
    for path in BODIES:
        answer = await writer.post(f"/hooks/matchzy/{server}", content=path.read_bytes(), headers=JSON)
        assert answer.status_code == 200, answer.text
    return f"{server}-{json.loads(BODIES[-1].read_bytes())['matchid']}"


JSON = {"Content-Type": "application/json"}


async def test_a_recorded_map_ends_with_its_result_on_every_reading_side(
    pipeline: Pipeline, writer: httpx.AsyncClient, reader: httpx.AsyncClient
) -> None:
    match_id = f"srv1-{json.loads(BODIES[-1].read_bytes())['matchid']}"
    spectator = Spectator([pipeline.gateway_url], [f"match.{match_id}.*"], "live")
    spectator.start()
    await wait_until(lambda: bool(spectator.verdicts), 10, "connected before the match exists")
    assert await play_map(writer, "srv1") == match_id
    final: dict[str, Any] = {}

    async def finished() -> bool:
        answer = await reader.get(f"/api/v1/matches/{match_id}/maps/0")
        final.update(answer.json() if answer.status_code == 200 else {})
        return final.get("status") == "finished"

    await wait_until(finished, 20, "the map is finished")
    assert (final["team1"]["score"], final["team2"]["score"], final["winner"]) == (13, 9, "team1")
    assert final["round_no"] == 22
    assert len(final["rounds"]) == 22
    won = [known["winner"] for known in final["rounds"]]
    assert (won.count("team1"), won.count("team2")) == (13, 9)
    assert final["prediction"]["p_team1"] == 1.0
    await wait_until(lambda: len(spectator.events) == len(BODIES), 10, "every event was seen live")
    await spectator.stop()

    lines: list[dict[str, Any]] = []

    async def archived() -> bool:
        answer = await reader.get(f"/api/v1/replay/{match_id}")
        lines[:] = [json.loads(line) for line in answer.text.splitlines()]
        return len(lines) == len(BODIES)

    await wait_until(archived, 20, "the whole match is archived")
    assert [line["event_id"] for line in lines] == spectator.events
    page = (await reader.get(f"/api/v1/events/{match_id}", params={"limit": 5})).json()
    assert page["next"]
    rounds = f"SELECT winner, score_team1, score_team2 FROM round_metrics WHERE match_id='{match_id}' ORDER BY round_no"

    def metrics_archived() -> bool:
        rows = pipeline.query(rounds)
        return [row[0] for row in rows] == won and rows[-1][1:] == ["13", "9"]

    await wait_until(metrics_archived, 10, "every round has its winner in round_metrics")
    result = f"SELECT winner, score_team1, score_team2 FROM map_metrics WHERE match_id='{match_id}' AND map_id='0'"
    await wait_until(lambda: pipeline.query(result) == [["team1", "13", "9"]], 10, "map_metrics has the result")


async def test_the_same_poll_reads_the_same_over_rest_sse_websocket_and_clickhouse(
    pipeline: Pipeline, writer: httpx.AsyncClient, reader: httpx.AsyncClient
) -> None:
    definition = {"title": "Who?", "options": [{"id": "a", "label": "A"}, {"id": "b", "label": "B"}], "voting": "last"}
    assert (await writer.put("/api/v1/polls/e2e", json=definition)).status_code == 201
    votes = [
        {"event_id": f"e{n}", "poll_id": "e2e", "option": "ab"[n % 2], "voter": f"v{n % 30}", "source": "web"}
        for n in range(100)
    ]
    ndjson = "\n".join(map(json.dumps, votes))
    answer = await writer.post("/api/v1/votes", content=ndjson, headers={"Content-Type": "application/x-ndjson"})
    assert (answer.status_code, answer.json()) == (202, {"accepted": 100, "duplicates": 0})
    again = await writer.post("/api/v1/votes", json=votes[:10])
    assert again.json() == {"accepted": 0, "duplicates": 10}
    digest = format_digest(sum(vote_hash(str(v["event_id"]), str(v["option"])) for v in votes) & MASK)

    async def counted() -> bool:
        return bool((await reader.get("/api/v1/polls/e2e")).json()["applied"] == 100)

    await wait_until(counted, 10, "all votes are applied")
    poll = (await reader.get("/api/v1/polls/e2e")).json()
    assert poll["digest"] == digest
    assert (poll["voters"], poll["replaced"], sum(poll["options"].values())) == (30, 70, 30)

    spectator = Spectator([pipeline.second_gateway_url], ["poll.e2e"], "sse")
    spectator.start()
    await wait_until(lambda: "poll.e2e" in spectator.tallies, 10, "snapshot over SSE")
    await spectator.stop()
    assert spectator.tallies["poll.e2e"]["digest"] == digest

    url = pipeline.gateway_url.replace("http", "ws") + "/api/v1/ws?topics=poll.e2e"
    async with websockets.connect(url, subprotocols=[websockets.Subprotocol("arenacast.v1")]) as socket:
        seen: list[dict[str, Any]] = []
        async with asyncio.timeout(10):
            while not any(message["event"] == "snapshot" for message in seen):
                seen.extend(json.loads(part) for part in str(await socket.recv()).split("\n"))
    assert [message["event"] for message in seen][:2] == ["welcome", "snapshot"]
    assert seen[1]["data"]["digest"] == digest

    def archived() -> bool:
        rows = pipeline.query("SELECT count(), sum(vote_hash) FROM votes WHERE poll_id = 'e2e'")
        return [[count, format_digest(int(total))] for count, total in rows] == [["100", digest]]

    await wait_until(archived, 20, "the archive has the digest")
    minutes = "SELECT sum(votes) FROM votes_per_minute WHERE poll_id = 'e2e' AND source = 'web'"
    await wait_until(lambda: pipeline.query(minutes) == [["100"]], 10, "the aggregate has every vote once")


async def test_a_vote_for_a_closed_poll_is_accepted_and_counted_late(
    writer: httpx.AsyncClient, reader: httpx.AsyncClient
) -> None:
    definition = {"title": "Late?", "options": [{"id": "a", "label": "A"}]}
    assert (await writer.put("/api/v1/polls/late", json=definition)).status_code == 201
    closed = await writer.post("/api/v1/polls/late/close")
    assert (closed.status_code, closed.json()["status"]) == (200, "closed")
    vote = {"event_id": "e1", "poll_id": "late", "option": "a", "voter": "v"}
    assert (await writer.post("/api/v1/votes", json=vote)).status_code == 202

    async def rejected() -> bool:
        return bool((await reader.get("/api/v1/polls/late")).json()["rejected"] == {"late": 1})

    await wait_until(rejected, 10, "counted as late")


async def test_no_vote_is_unaccounted_for(pipeline: Pipeline) -> None:
    url = f"http://127.0.0.1:{pipeline.settings.state_metrics_port}/metrics"

    async def gauge() -> list[str]:
        async with httpx.AsyncClient() as client:
            lines = (await client.get(url)).text.splitlines()
        return [line for line in lines if line.startswith("votes_unaccounted ")]

    await wait_until(gauge, 5, "the gauge exists")
    assert await gauge() == ["votes_unaccounted 0.0"]


async def test_no_identity_reaches_the_log_or_the_archive(pipeline: Pipeline, writer: httpx.AsyncClient) -> None:
    definition = {"title": "Private", "options": [{"id": "a", "label": "A"}]}
    await writer.put("/api/v1/polls/private", json=definition)
    vote = {"event_id": "e1", "poll_id": "private", "option": "a", "voter": "twitch:secret-identity-4711"}
    assert (await writer.post("/api/v1/votes", json=vote)).status_code == 202
    client: Any = pipeline.redis
    for name in client.scan_iter("events:*"):
        assert b"secret-identity" not in b"".join(v for _, f in client.xrange(name) for v in f.values())
    assert "secret-identity" not in pipeline.logs()
