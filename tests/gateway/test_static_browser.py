"""The browser side in a real browser: the client keeps its promises, the pages show what the messages say.

The gateway here is scripted (see tests.support.scripted_gateway), so that every way of losing a connection can be had
at will; the pages against the real gateway are part of the pipeline's tests.
"""

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.browser import Page, find_browser, running_browser
from tests.support.scripted_gateway import STATIC, ScriptedGateway, scripted_gateway
from tests.support.waiting import wait_until

BROWSER = find_browser()
in_browser = [pytest.mark.browser, pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")]

FOLLOW = """(async (options) => {
  const { connect } = await import("/static/arenacast.js");
  window.seen = [];
  window.states = [];
  window.live = connect({
    topics: ["poll.p1"],
    onMessage: (message) => seen.push(message.id),
    onStatus: ({ state, transport, verdicts, reason }) => states.push({ state, transport, verdicts, reason }),
    ...options,
  });
})"""


@pytest.fixture
async def gateway() -> AsyncIterator[ScriptedGateway]:
    async with scripted_gateway() as running:
        yield running


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    assert BROWSER is not None
    async with running_browser(BROWSER) as browser:
        yield await browser.new_page()


async def follow(page: Page, gateway: ScriptedGateway, **options: Any) -> None:
    """Use the client on a page that does nothing else."""
    await page.open(f"{gateway.url}/static/logo.svg")
    await page.run(f"{FOLLOW}({json.dumps(options)})")


async def gives(page: Page, expression: str, expected: Any) -> None:
    """Wait until a JavaScript expression has this value."""

    async def check() -> Any:
        value = await page.run(expression)
        assert value == expected
        return True

    await wait_until(check)


async def is_live(page: Page, times: int = 1) -> None:
    await wait_until(lambda: page.run(f"states.filter(({{ state }}) => state === 'live').length >= {times}"), 10.0)


async def has_seen(page: Page, count: int) -> None:
    await gives(page, "seen", [f"n.{number + 1}" for number in range(count)])


# --- The client ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transport", "fault"),
    [("sse", "end"), ("sse", "bye"), ("sse", "refuse"), ("sse", "overload"), ("sse", "mute")]
    + [("ws", fault) for fault in ("end", "bye", "1012", "1013", "4008")],
)
class TestLostConnection:
    pytestmark = in_browser

    async def test_every_message_arrives_once_and_in_order(
        self, page: Page, gateway: ScriptedGateway, transport: str, fault: str
    ) -> None:
        """What is emitted while the client is away follows after it came back, with its cursor, to a `complete`."""
        await follow(page, gateway, transport=transport, welcomeTimeoutMs=400)
        await is_live(page)
        for number in range(5):
            await gateway.emit("tally", "poll.p1", {"total": number})
        await has_seen(page, 5)
        attempts = len(gateway.connections)
        await gateway.set_fault(fault)
        if fault in ("refuse", "overload", "mute"):
            await wait_until(lambda: len(gateway.connections) >= attempts + 2, 10.0)
        for number in range(5, 10):
            await gateway.emit("tally", "poll.p1", {"total": number})
        await wait_until(lambda: page.run("states.at(-1).state !== 'live'"), 10.0)
        await gateway.set_fault("")
        await is_live(page, 2)
        await gateway.emit("tally", "poll.p1", {"total": 10})
        await has_seen(page, 11)
        assert gateway.connections[-1][1] == "n.5"
        assert await page.run("states.at(-1).verdicts") == {"poll.p1": {"resume": "complete"}}


class TestClient:
    pytestmark = in_browser

    async def test_mute_stream_falls_back_to_websocket(self, page: Page, gateway: ScriptedGateway) -> None:
        """A proxy that buffers event streams must not keep a viewer from seeing anything."""
        await gateway.set_fault("mute")
        await follow(page, gateway, transport="auto", welcomeTimeoutMs=200)
        await wait_until(lambda: page.run("states.some(({ transport }) => transport === 'ws')"), 10.0)
        await gateway.set_fault("")
        await is_live(page)
        assert await page.run("live.status.transport") == "ws"

    async def test_silent_connection_is_given_up(self, page: Page, gateway: ScriptedGateway) -> None:
        """A dead peer sends nothing, not even an end: without heartbeats the client comes back by itself."""
        await follow(page, gateway, transport="sse", silenceMs=300)
        await is_live(page, 2)
        assert await page.run("states.some(({ reason }) => reason === 'silence')")

    async def test_paused_client_keeps_its_cursor(self, page: Page, gateway: ScriptedGateway) -> None:
        await follow(page, gateway)
        await is_live(page)
        await gateway.emit("tally", "poll.p1", {})
        await has_seen(page, 1)
        await page.run("live.pause()")
        await gateway.emit("tally", "poll.p1", {})
        assert await page.run("[live.status.state, live.cursor]") == ["paused", "n.1"]
        await page.run("live.resume()")
        await has_seen(page, 2)

    async def test_handler_may_close_in_the_middle_of_a_batch(self, page: Page, gateway: ScriptedGateway) -> None:
        """Then the cursor names the message it closed at, and the rest of the batch stays unseen."""
        for _ in range(5):
            await gateway.emit("tally", "poll.p1", {})
        await page.open(f"{gateway.url}/static/logo.svg")
        await page.run(
            f"""{FOLLOW}({{ transport: "ws", cursor: "n.1",
                  onMessage: ({{ id }}) => {{ seen.push(id); if (id === "n.3") live.close(); }} }})"""
        )
        await wait_until(lambda: page.run("states.at(-1)?.state === 'closed'"))
        assert await page.run("[seen, live.cursor]") == [["n.2", "n.3"], "n.3"]

    async def test_throwing_handler_does_not_stop_the_stream(self, page: Page, gateway: ScriptedGateway) -> None:
        await page.open(f"{gateway.url}/static/logo.svg")
        await page.run(f"{FOLLOW}({{ onMessage: ({{ id }}) => {{ seen.push(id); throw new Error('handler'); }} }})")
        await is_live(page)
        await gateway.emit("tally", "poll.p1", {})
        await gateway.emit("tally", "poll.p1", {})
        await has_seen(page, 2)
        await wait_until(lambda: len([error for error in page.complaints if "Error: handler" in error]) == 2)

    @pytest.mark.parametrize("fault", ["4000", "4001", "4003"])
    async def test_incurable_close_code_is_final(self, page: Page, gateway: ScriptedGateway, fault: str) -> None:
        await gateway.set_fault(fault)
        await follow(page, gateway, transport="ws")
        await wait_until(lambda: page.run("states.at(-1).state === 'failed'"))

    async def test_malformed_topic_is_final_and_says_why(self, page: Page, gateway: ScriptedGateway) -> None:
        """EventSource hides the 400, so the client asks the long-poll."""
        await follow(page, gateway, topics=["a b"])
        await wait_until(lambda: page.run("states.at(-1).state === 'failed'"))
        assert await page.run("states.at(-1).reason") == "malformed topic"


# --- The pages -------------------------------------------------------------------------------------------------------

HOSTILE = "<img src=x onerror=window.hacked=1><b>Bravo</b>"
DEFINITION = {
    "poll_id": "p1",
    "title": f"Who wins? {HOSTILE}",
    "options": [{"id": "a", "label": "Alpha"}, {"id": "b", "label": HOSTILE}, {"id": "c", "label": "Gamma"}],
    "match_id": "m1",
}


def tally(a: int, b: int, c: int) -> dict[str, Any]:
    total = a + b + c
    counts = {"a": a, "b": b, "c": c}
    return {
        "poll_id": "p1",
        "status": "open",
        "options": counts,
        "total": total,
        "voters": total,
        "applied": total + 2,
    } | {
        "rejected": {"late": 2},
        "digest": "00000000000000ff",
        "received_ms": 1,
    }


def map_state(score1: int, score2: int, status: str = "live") -> dict[str, Any]:
    rounds = [
        {"round_no": n + 1, "winner": "team1" if n < score1 else "team2", "reason": "bomb_defused"}
        for n in range(score1 + score2)
    ]
    return {
        "match_id": "m1",
        "map_id": "0",
        "map_name": "de_mirage",
        "status": status,
        "round_no": score1 + score2,
        "team1": {"name": "Alpha", "score": score1},
        "team2": {"name": HOSTILE, "score": score2},
        "winner": None,
        "rounds": rounds,
    }


def fill(gateway: ScriptedGateway) -> None:
    poll = {**DEFINITION, **tally(1, 1, 1), "definition": DEFINITION}
    gateway.snapshots = {"poll.p1": poll, "match.m1.0": {**map_state(3, 2), "prediction": None}}
    gateway.lists = {
        "polls": [{**poll, "cursor": "n.0"}],
        "matches": [{"match_id": "m1", "status": "live", "cursor": "n.0"}],
    }


async def text(page: Page, selector: str) -> str:
    found: str = await page.run(f"document.querySelector({json.dumps(selector)})?.textContent ?? ''")
    return found


async def shows(page: Page, selector: str, expected: str) -> None:
    await gives(page, f"document.querySelector({json.dumps(selector)})?.textContent ?? ''", expected)


class TestPages:
    pytestmark = in_browser

    async def test_live_page_follows_score_and_votes(self, page: Page, gateway: ScriptedGateway) -> None:
        fill(gateway)
        await page.open(gateway.url)
        await shows(page, "#score1", "3")
        await shows(page, ".bar-share", "34 %")
        await gateway.emit("state", "match.m1.0", map_state(4, 2))
        await gateway.emit("prediction", "match.m1.0", {"round_no": 6, "p_team1": 0.75, "p_team2": 0.25, "model": "m"})
        await gateway.emit("tally", "poll.p1", tally(8, 1, 1))
        await gateway.emit("round_end", "match.m1.0", {"type": "round_end", "round_no": 6, "data": {}})
        await shows(page, "#score1", "4")
        await shows(page, "#p1", "75 %")
        await shows(page, ".bar-share", "80 %")
        await shows(page, "[data-f=votes]", "10")
        await shows(page, "[data-f=rejected]", "2")
        await shows(page, "#log li b", "round end")
        assert await page.run("document.querySelectorAll('#rounds [data-winner=team1]').length") == 4
        assert page.complaints == []

    async def test_pulled_plug_comes_back_complete(self, page: Page, gateway: ScriptedGateway) -> None:
        fill(gateway)
        await page.open(gateway.url)
        await wait_until(lambda: page.run("!document.getElementById('plug').disabled"))
        await gateway.emit("tally", "poll.p1", tally(2, 1, 1))
        await shows(page, "[data-f=votes]", "4")
        await page.run("document.getElementById('plug').click()")
        await gateway.emit("tally", "poll.p1", tally(3, 1, 1))
        await shows(page, "#link-text", "Unplugged")
        await wait_until(lambda: page.run("document.getElementById('resume').dataset.verdict === 'complete'"), 15.0)
        await shows(page, "[data-f=votes]", "5")

    async def test_names_from_the_network_are_text(self, page: Page, gateway: ScriptedGateway) -> None:
        fill(gateway)
        for path in ("/", "/overlay/p1"):
            await page.open(gateway.url + path)
            await wait_until(lambda: page.run("document.body.textContent.includes('<b>Bravo</b>')"))
            assert await page.run("[document.querySelectorAll('main img, main b b').length, window.hacked ?? 0]") == [
                0,
                0,
            ]

    @pytest.mark.parametrize("width", [360, 390, 820, 1280, 1920])
    async def test_nothing_runs_out_of_the_window(self, page: Page, gateway: ScriptedGateway, width: int) -> None:
        fill(gateway)
        for path in ("/", "/docs", "/overlay/p1"):
            await page.open(gateway.url + path, width=width)
            await wait_until(lambda: page.run("document.querySelector('main') !== null"))
            assert await page.run("document.documentElement.scrollWidth") <= width, path

    async def test_page_without_anything_to_show_waits(self, page: Page, gateway: ScriptedGateway) -> None:
        """A match that starts later appears by itself."""
        await page.open(gateway.url)
        await shows(page, "#link-text", "Waiting")
        fill(gateway)
        await wait_until(lambda: page.run("document.getElementById('score1').textContent === '3'"), 15.0)

    async def test_page_chooses_the_live_match_that_was_heard_of_last(
        self, page: Page, gateway: ScriptedGateway
    ) -> None:
        """A match says when it was heard of in its maps and its series only, as the list of matches has it."""
        await page.open(gateway.url)
        one = {"status": "live", "received_ms": 2}
        silent = {"match_id": "silent", "maps": [{"status": "live", "received_ms": 1}]}
        between = {"match_id": "between", "maps": [one | {"received_ms": 0}], "series": {"received_ms": 3}}
        matches = [silent, {"match_id": "playing", "maps": [one]}, {"match_id": "as_new", "maps": [one]}, between]
        order = "import('/static/model.js').then((m) => m.byInterest(%s).map((item) => item.match_id))"
        assert await page.run(order % json.dumps(matches)) == ["between", "playing", "as_new", "silent"]

    async def test_overlay_shows_nothing_before_its_poll_exists(self, page: Page, gateway: ScriptedGateway) -> None:
        gateway.snapshots = {"poll.p1": {"status": "unknown"}}
        await page.open(f"{gateway.url}/overlay/p1?max=2&align=right")
        await wait_until(lambda: bool(gateway.connections))
        assert await page.run("getComputedStyle(document.body).backgroundColor") == "rgba(0, 0, 0, 0)"
        assert await page.run("document.getElementById('card').hidden") is True
        await gateway.emit("poll", "poll.p1", {**DEFINITION, "status": "open"})
        await gateway.emit("tally", "poll.p1", tally(1, 2, 3))
        await shows(page, "#total", "6")
        assert await page.run("[...document.querySelectorAll('.share')].map((node) => node.textContent)") == [
            "33 %",
            "50 %",
        ]

    async def test_docs_draw_operations_and_survive_circles(self, page: Page, gateway: ScriptedGateway) -> None:
        node = {"type": "object", "properties": {"next": {"$ref": "#/components/schemas/Node"}}, "description": HOSTILE}
        answer = {
            "200": {"description": "ok", "content": {"application/json": {"schema": {"$ref": "/schemas/x.json"}}}}
        }
        gateway.documents = {
            "/openapi.json": {
                "paths": {
                    "/api/v1/polls": {"get": {"summary": "All polls", "responses": answer}},
                    "/api/v1/votes": {"post": {"servers": [{"url": "https://in.test"}], "responses": answer}},
                },
                "components": {"schemas": {"Node": node}},
            },
            "/asyncapi.json": {"channels": {"stream": {"messages": {"tally": {"payload": {"type": "object"}}}}}},
            "/schemas/x.json": {"type": "object", "properties": {"from_another_file": {"type": "string"}}},
        }
        await page.open(f"{gateway.url}/docs#get-api-v1-polls")
        await wait_until(lambda: page.run("document.querySelector('#get-api-v1-polls')?.open"))
        assert "from_another_file" in await text(page, "#get-api-v1-polls")
        assert await text(page, ".ingest") == "https://in.test"
        assert "again Node" in await text(page, "#schemas-node")
        await wait_until(lambda: page.run("document.querySelector('[data-method=message]') !== null"))
        assert page.complaints == []


# --- The files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(STATIC.iterdir()), ids=lambda path: path.name)
def test_static_file_works_under_a_strict_policy(path: Any) -> None:
    """Nothing from other hosts, nothing inline, no way to turn text into markup."""
    source = path.read_text()
    known = r"https?://(www\.w3\.org/2000/svg|127\.0\.0\.1)"
    assert not re.search(r"https?://", re.sub(known, "", source))
    if path.suffix == ".html":
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)", source)
    if path.suffix == ".js":
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", source)
