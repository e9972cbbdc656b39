"""`arenacast up --demo`: a recorded map and a crowd's votes, from outside, through the public HTTP API.

Each run is a new match (its server's name is drawn from the clock), with one poll for the map, in which minds may
change, and one for each round, which closes with the round. The recorded map is `demo_map.ndjson`: 33 MatchZy bodies
of one best-of-1 with invented teams, see there how a recording looks; its pauses are made for watching.
"""

import asyncio
import random
import signal
import time
from importlib.resources import files
from typing import Any

import msgspec

from core import logs
from core.errors import Fatal
from core.local.crowd import Ballot, Crowd, opinion
from core.local.recording import Request, requests
from core.local.sender import Sender, encode
from core.settings import Settings

PAUSE_BETWEEN_RUNS_S = 15.0
PAUSE_AFTER_FAILURE_S = 5.0
TICK_S = 0.1
_RECORDED_PATH = "/hooks/matchzy/demo"


def run(settings: Settings, url: str) -> None:
    """Play run after run until SIGTERM or SIGINT."""
    logs.configure("demo", settings)
    asyncio.run(_run(settings, url))


def recorded_map() -> list[Request]:
    """The recording that ships with the package."""
    return list(requests((files("core.local") / "demo_map.ndjson").read_bytes().splitlines(keepends=True)))


class Run:
    """One match and its polls."""

    def __init__(self, sender: Sender, run_id: str, source: random.Random) -> None:
        self.server = f"demo-{run_id}"
        self._sender = sender
        self._run_id = run_id
        self._random = source
        self._crowd = Crowd(source)
        self._polls: list[str] = []  # open ones, the map's first
        self._names = ("Team 1", "Team 2")
        self._score = (0, 0)
        self._match_id = ""
        self._votes = 0
        self._round_at = float("-inf")

    async def play(self, recorded: list[Request], *, speed: float = 1.0) -> None:
        """The whole map, with votes while it lasts. Raises Fatal when the ingest refuses us or stays away."""
        async with asyncio.TaskGroup() as group:
            votes = group.create_task(self._vote(speed))
            started = time.monotonic()
            for request in recorded:
                await asyncio.sleep(max(0.0, started + request.due_ms / 1000 / speed - time.monotonic()))
                await self._event(request)
            votes.cancel()

    async def _event(self, request: Request) -> None:
        body: dict[str, Any] = msgspec.json.decode(request.body)
        kind = body["event"]
        if kind == "series_start":
            self._match_id = f"{self.server}-{body['matchid']}"
            self._names = (body["team1"]["name"], body["team2"]["name"])
        if kind == "round_end":
            self._score = (body["team1"]["score"], body["team2"]["score"])
            self._round_at = time.monotonic()
            await self._close(self._polls[1:])
        if kind == "map_result":
            await self._close(self._polls)
        path = request.path.replace(_RECORDED_PATH, f"/hooks/matchzy/{self.server}", 1)
        await self._sender.send(request.method, path, request.body, request.content_type)
        if kind == "going_live":
            await self._open(f"{self.server}-map", f"Who wins {self._names[0]} against {self._names[1]}?", "last")
        if kind in ("going_live", "round_end") and max(self._score) < 13:
            number = sum(self._score) + 1
            await self._open(f"{self.server}-round-{number:02d}", f"Who wins round {number}?", "first")

    async def _open(self, poll_id: str, title: str, voting: str) -> None:
        options = [{"id": f"team{number}", "label": name} for number, name in enumerate(self._names, 1)]
        poll = {"title": title, "options": options, "voting": voting, "match_id": self._match_id}
        await self._sender.send("PUT", f"/api/v1/polls/{poll_id}", encode(poll))
        self._polls.append(poll_id)

    async def _close(self, polls: list[str]) -> None:
        for poll_id in polls:
            self._polls.remove(poll_id)
            await self._sender.send("POST", f"/api/v1/polls/{poll_id}/close", b"")

    async def _vote(self, speed: float) -> None:
        mood = 0.0
        last = time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            elapsed_s, last = min(1.0, now - last), now  # after a stall the crowd does not make up for it
            mood = min(1.0, max(-1.0, mood + self._random.uniform(-0.1, 0.1)))
            share = opinion(*self._score, mood)
            for body in self._crowd.bodies(elapsed_s * speed, (now - self._round_at) * speed, share):
                if self._polls:
                    await self._send_votes(body)

    async def _send_votes(self, body: list[Ballot]) -> None:
        votes = []
        for ballot in body:
            self._votes += 1
            # The newest poll gets most votes: it is the one that people talk about.
            poll_id = self._polls[-1] if self._random.random() < 0.7 else self._polls[0]
            votes.append({
                "event_id": f"{self._run_id}-{self._votes}", "poll_id": poll_id, "option": ballot.option,
                "voter": ballot.voter,
            })  # fmt: skip
        await self._sender.send("POST", "/api/v1/votes", encode(votes))


async def _run(settings: Settings, url: str) -> None:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    recorded = recorded_map()
    try:
        async with Sender(url, settings.secret("ingest_key")) as sender:
            while True:
                await _play_once(sender, recorded)
    except asyncio.CancelledError:
        return


async def _play_once(sender: Sender, recorded: list[Request]) -> None:
    log = logs.get()
    this = Run(sender, f"{int(time.time()):x}", random.Random())  # noqa: S311 - a show, no secret
    log.info("playing", server=this.server)
    try:
        await this.play(recorded)
    except* Fatal as errors:
        log.warning("the run was broken off", error=str(errors.exceptions[0]))
        await asyncio.sleep(PAUSE_AFTER_FAILURE_S)
    else:
        log.info("played", server=this.server, **msgspec.structs.asdict(sender.sums))
        await asyncio.sleep(PAUSE_BETWEEN_RUNS_S)
