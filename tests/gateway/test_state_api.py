"""REST: hot state with a cursor that continues right there, lists in pages, refusals, headers."""

import httpx
import pytest

from core import keys
from core.names import shard_of
from core.settings import Settings
from tests.gateway.output_log import SHARDS, OutputLog
from tests.gateway.readers import read, reading, verdicts
from tests.gateway.server import Gateway, running_gateway
from tests.support.waiting import wait_until

pytestmark = pytest.mark.redis


@pytest.fixture
def sink() -> str:
    """Ordinary requests on either."""
    return "takeover"


@pytest.fixture
def client(gateway: Gateway) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=gateway.url)


async def test_poll_shows_its_state_with_a_cursor(gateway: Gateway, log: OutputLog, client: httpx.AsyncClient) -> None:
    log.tally("p1", 3, title="Who?")
    body = (await client.get("/api/v1/polls/p1")).json()
    assert (body["poll_id"], body["total"], body["status"]) == ("p1", 3, "open")
    log.tally("p1", 4)
    async with reading(gateway, "sse", "poll.p1", cursor=body["cursor"]) as reader:
        welcome, tally = await read(reader, 2)
        assert verdicts(welcome) == {"poll.p1": "complete"}
        assert tally["data"]["total"] == 4


async def test_match_shows_its_maps_and_series(gateway: Gateway, log: OutputLog, client: httpx.AsyncClient) -> None:
    for map_id in ("2", "10", "1", "series"):
        log.event("m1", map_id, 5)
    body = (await client.get("/api/v1/matches/m1")).json()
    assert [item["map_id"] for item in body["maps"]] == ["1", "2", "10"]
    assert body["series"]["map_id"] == "series"
    one = (await client.get("/api/v1/matches/m1/maps/10")).json()
    assert (one["round_no"], one["map_id"]) == (5, "10")
    log.event("m1", "3", 1)
    for topic, cursor in (("match.m1.*", body["cursor"]), ("match.m1.10", one["cursor"])):
        async with reading(gateway, "sse", topic, cursor=cursor) as reader:
            assert verdicts((await read(reader, 1))[0]) == {topic: "complete"}


async def test_unknown_is_a_404_problem(log: OutputLog, client: httpx.AsyncClient) -> None:
    paths = ("polls/none", "polls/a.b", "polls/%2e%2e", "matches/none", "matches/none/maps/1", "matches/m/maps/a%0ab")
    for path in paths:
        answer = await client.get(f"/api/v1/{path}")
        assert answer.status_code == 404, path
        assert answer.headers["content-type"] == "application/problem+json"


async def test_lists_come_newest_first_in_pages_that_do_not_overlap(
    gateway: Gateway, log: OutputLog, client: httpx.AsyncClient
) -> None:
    for n in range(25):
        log.tally(f"p{n}", n)
        log.event(f"m{n}", "1", n)
        log.event(f"m{n}", "2", n)
    for kind, name in (("polls", "poll_id"), ("matches", "match_id")):
        found: list[str] = []
        after = ""
        while True:
            body = (await client.get(f"/api/v1/{kind}?limit=10&after={after}")).json()
            assert all(item["cursor"] for item in body[kind])
            found += [item[name] for item in body[kind]]
            after = body["next"]
            if after is None:
                break
        assert len(found) == len(set(found)) == 25
        newest_first = [int(item[1:]) for item in found]
        assert newest_first[0] > newest_first[-1]


async def test_malformed_page_is_a_400(log: OutputLog, client: httpx.AsyncClient) -> None:
    for query in ("limit=0", "limit=x", "limit=201", "limit=-1", "after=x", "after=1.a%0a", "limit=٣"):
        for kind in ("polls", "matches"):
            assert (await client.get(f"/api/v1/{kind}?{query}")).status_code == 400, query


async def test_list_shows_a_new_poll_within_a_second_or_two(log: OutputLog, client: httpx.AsyncClient) -> None:
    assert (await client.get("/api/v1/polls")).json() == {"polls": [], "next": None}
    log.tally("p1", 1)

    async def is_listed() -> bool:
        return len((await client.get("/api/v1/polls")).json()["polls"]) == 1

    await wait_until(is_listed, 5)


async def test_list_skips_what_expired(log: OutputLog, client: httpx.AsyncClient) -> None:
    log.tally("p1", 1)
    log.tally("p2", 1)
    log.client.delete(f"state:{{s{shard_of('poll.p1', SHARDS):02d}}}:poll.p1")
    assert [item["poll_id"] for item in (await client.get("/api/v1/polls")).json()["polls"]] == ["p2"]


async def test_preflight_allows_reading_with_last_event_id(client: httpx.AsyncClient) -> None:
    answer = await client.options(
        "/api/v1/stream?topics=poll.p1",
        headers={
            "Origin": "https://a.example",
            "Access-Control-Request-Method": "GET",
            "Access-Control-Request-Headers": "last-event-id",
        },
    )
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "last-event-id" in answer.headers["access-control-allow-headers"].lower()
    assert "POST" not in answer.headers["access-control-allow-methods"]


async def test_origins_can_be_limited(settings: Settings, log: OutputLog) -> None:
    with running_gateway(settings, cors_origins="https://a.example") as gateway:
        async with httpx.AsyncClient(base_url=gateway.url) as client:
            for origin, allowed in (("https://a.example", "https://a.example"), ("https://b.example", None)):
                answer = await client.get("/api/v1/polls", headers={"Origin": origin})
                assert answer.headers.get("access-control-allow-origin") == allowed
                assert answer.headers["vary"].lower() == "origin"


async def test_every_answer_has_security_headers_and_only_the_overlay_may_be_framed(client: httpx.AsyncClient) -> None:
    for path in ("/", "/docs", "/static/style.css", "/api/v1/polls", "/api/v1/polls/none", "/nowhere"):
        headers = (await client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff", path
        assert "default-src 'self'" in headers["content-security-policy"]
        assert headers["x-frame-options"] == "DENY"
    overlay = (await client.get("/overlay/p1")).headers
    assert "x-frame-options" not in overlay
    assert "frame-ancestors *" in overlay["content-security-policy"]


async def test_static_files_stay_in_their_directory(client: httpx.AsyncClient) -> None:
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static/none.js"):
        assert (await client.get(path)).status_code == 404, path


async def test_pages_are_there(client: httpx.AsyncClient) -> None:
    for path in ("/", "/docs", "/overlay/p1"):
        answer = await client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/html")
    assert (await client.get("/overlay/a.b")).status_code == 404


async def test_writing_is_not_done_here(client: httpx.AsyncClient) -> None:
    for path in ("/api/v1/polls", "/api/v1/stream?topics=poll.a", "/api/v1/updates?topics=poll.a"):
        answer = await client.post(path)
        assert answer.status_code == 405
        assert answer.headers["content-type"] == "application/problem+json"


async def test_readiness_warns_without_clickhouse_and_history_is_503_beyond_what_redis_has(
    log: OutputLog, client: httpx.AsyncClient
) -> None:
    """Live goes on without it."""
    stream = keys.events(shard_of("match.m1.*", SHARDS))
    log.client.xadd(stream, {"h": "", "d": ""})
    log.client.xtrim(stream, maxlen=0)
    body = (await client.get("/readyz")).json()
    assert body["status"] == "ready"
    assert body["checks"]["redis"] == "ok"
    assert body["checks"]["clickhouse"].startswith("warning:")
    for path in ("events/m1", "replay/m1"):
        answer = await client.get(f"/api/v1/{path}")
        assert answer.status_code == 503, path
        assert answer.headers["retry-after"]


async def test_malformed_history_query_is_a_400(client: httpx.AsyncClient) -> None:
    for path in (
        "events/m1?limit=0", "events/m1?limit=x", "events/m1?from=yesterday", "events/m1?map_id=a.b",
        "events/m1?from=2026-01-01T00:00:00", "replay/m1?speed=0", "replay/m1?speed=x", "replay/m1?map_id=%0a",
    ):  # fmt: skip
        assert (await client.get(f"/api/v1/{path}")).status_code == 400, path


async def test_metrics_count_what_was_delivered(gateway: Gateway, log: OutputLog, client: httpx.AsyncClient) -> None:
    async with reading(gateway, "ws", "poll.p1") as reader:
        await read(reader, 2)
        log.tally("p1", 1)
        await read(reader, 1)
        text = (await client.get("/metrics")).text
    for name in (
        'gateway_connections{transport="ws"}', 'gateway_deliveries_total{class="state",transport="ws"}',
        'gateway_resumes_total{verdict="snapshot"}', 'e2e_latency_ms_bucket{event_type="tally",le="300.0"}',
        'stage_latency_ms_count{stage="push"}', 'latency_slo_violations_total{slo="300ms"}', "gateway_conflated_total",
    ):  # fmt: skip
        assert name in text, name
