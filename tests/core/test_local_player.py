"""Playing a recording over real HTTP: order, pace, repeats, and what is told at the end."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from core.errors import Fatal
from core.http import Server, config
from core.local.player import play
from core.local.recording import requests
from core.local.sender import Sender
from tests.support.ports import free_port
from tests.support.waiting import wait_until

KEY = "k" * 20


class Ingest:
    """A server that answers as it is told, to see how a sender behaves; the real one is in the tests of `up`."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self.seen: list[tuple[float, str, bytes]] = []
        self.answers: list[Response] = []

    async def endpoint(self, request: HttpRequest) -> Response:
        body = await request.body()
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return Response(status_code=401)
        self.seen.append((time.monotonic(), f"{request.method} {request.url.path}", body))
        if self.answers:
            return self.answers.pop(0)
        return JSONResponse({"accepted": body.count(b"\n"), "duplicates": 1}, 202)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        app = Starlette(routes=[Route("/{path:path}", self.endpoint, methods=["POST", "PUT"])])
        server = Server(config(app, "127.0.0.1", self.port))
        serving = asyncio.create_task(server.serve())
        try:
            await wait_until(lambda: server.started)
            yield
        finally:
            server.should_exit = True
            await serving


def recording(*lines: dict[str, object]) -> list[bytes]:
    return [json.dumps(line).encode() + b"\n" for line in lines]


def vote(number: int, **fields: object) -> dict[str, object]:
    return {"event_id": f"e{number}", "poll_id": "p", "option": "a", "voter": "v", **fields}


async def test_recording_is_sent_in_order_and_summed_up() -> None:
    ingest = Ingest()
    lines = recording({"method": "PUT", "path": "/api/v1/polls/p", "body": {"title": "t"}}, vote(1), vote(2))
    sent: list[int] = []
    async with ingest.running(), Sender(ingest.url, KEY) as sender:
        await play(sender, requests(lines), on_sent=lambda request, _: sent.append(request.read_bytes))
    assert [(what, body.count(b"\n")) for _, what, body in ingest.seen] == [
        ("PUT /api/v1/polls/p", 0),
        ("POST /api/v1/votes", 2),
    ]
    assert (sender.sums.requests, sender.sums.accepted, sender.sums.duplicates) == (2, 2, 2)
    assert sum(sent) == sum(map(len, lines))


async def test_pace_is_that_of_the_recording_divided_by_the_speed() -> None:
    ingest = Ingest()
    lines = recording(vote(1, at_ms=0), vote(2, at_ms=1000), vote(3, at_ms=2000))
    async with ingest.running(), Sender(ingest.url, KEY) as sender:
        started = time.monotonic()
        await play(sender, requests(lines), speed=20)
        quick = time.monotonic()
        await play(sender, requests(lines), speed=0)
        quick = time.monotonic() - quick
    moments = [moment for moment, _, _ in ingest.seen]
    assert moments[1] - started >= 0.05, "never before its moment"
    assert moments[2] - started >= 0.1, "never before its moment"
    assert quick < 1.0


async def test_overload_and_a_lost_connection_are_repeated_with_the_same_body() -> None:
    ingest = Ingest()
    ingest.answers = [Response(status_code=503, headers={"Retry-After": "0"}), Response(status_code=429)]
    async with ingest.running(), Sender(ingest.url, KEY) as sender:
        await play(sender, requests(recording(vote(1))))
    assert len({body for _, _, body in ingest.seen}) == 1
    assert (len(ingest.seen), sender.sums.repeats, sender.sums.accepted) == (3, 2, 1)


async def test_ingest_that_comes_back_is_sent_what_waited() -> None:
    ingest = Ingest()
    async with Sender(ingest.url, KEY) as sender:
        playing = asyncio.create_task(play(sender, requests(recording(vote(1)))))
        await wait_until(lambda: sender.sums.repeats)
        async with ingest.running():
            await asyncio.wait_for(playing, 10)
    assert sender.sums.accepted == 1


async def test_ingest_that_stays_away_is_given_up() -> None:
    async with Sender(Ingest().url, KEY, give_up_after_s=0.2) as sender:
        with pytest.raises(Fatal, match="does not take what is sent to it"):
            await play(sender, requests(recording(vote(1))))


async def test_wrong_key_ends_it_at_once() -> None:
    ingest = Ingest()
    async with ingest.running(), Sender(ingest.url, "wrong") as sender:
        with pytest.raises(Fatal, match="refuses the key"):
            await play(sender, requests(recording(vote(1))))


async def test_refusal_is_counted_and_the_rest_goes_on() -> None:
    ingest = Ingest()
    ingest.answers = [Response(b'{"detail":"closed"}', 409)]
    async with ingest.running(), Sender(ingest.url, KEY) as sender:
        await play(sender, requests(recording({"path": "/api/v1/polls/p/close"}, vote(1))))
    assert (sender.sums.refused, sender.sums.accepted) == (1, 1)
    assert sender.sums.first_refusal == '/api/v1/polls/p/close: 409 {"detail":"closed"}'


@pytest.mark.parametrize("url", ["", "127.0.0.1:8081", "ftp://x", "http://", "http://[", "not a url"])
def test_what_is_no_url_is_said(url: str) -> None:
    with pytest.raises(Fatal, match="is not the URL of an ingest"):
        Sender(url, KEY)
