"""A crowd that votes and remembers: sends through the public API, repeats what was not acknowledged, keeps books."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import httpx

from core.digest import MASK, vote_hash

PAUSE_S = 0.02


class Crowd:
    """Sends votes and match events for as long as it is asked to.

    Every body is repeated until it is acknowledged with 202, however often a server dies in between, so in the end
    each vote must be counted exactly once.
    """

    def __init__(self, ingest_url: str, key: str, polls: Sequence[str], match_id: str, seed: int = 0) -> None:
        self._client = httpx.AsyncClient(
            base_url=ingest_url, headers={"Authorization": f"Bearer {key}"}, timeout=httpx.Timeout(5.0)
        )
        self._random = random.Random(seed)
        self.polls = list(polls)
        self.match_id = match_id
        self.digests: Counter[str] = Counter()
        self.votes: Counter[str] = Counter()
        self.options: Counter[tuple[str, str]] = Counter()
        self.events: list[str] = []
        """Event ids of acknowledged match events, in the order of sending."""
        self.repeats = 0
        """Bodies that had to be sent again."""
        self.duplicates = 0
        """Items that a repeat found stored already: the acknowledgement, not the effect, had been lost."""
        self.in_flight = 0
        """Requests sent and not answered."""
        self._number = 0
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def define_polls(self) -> None:
        """Create the polls."""
        for poll_id in self.polls:
            body = {"title": poll_id, "options": [{"id": o, "label": o.upper()} for o in "ab"], "voting": "unlimited"}
            answer = await self._client.put(f"/api/v1/polls/{poll_id}", json=body)
            assert answer.status_code == 201, answer.text

    def start(self, voters: int = 4) -> None:
        """Start voting, in `voters` concurrent streams of bodies, and sending match events."""
        self._tasks = [asyncio.create_task(self._vote()) for _ in range(voters)]
        self._tasks.append(asyncio.create_task(self._play()))

    async def stop(self) -> None:
        """Send no new body, wait until everything sent is acknowledged."""
        self._stop.set()
        await asyncio.wait_for(asyncio.gather(*self._tasks), 60)
        await self._client.aclose()

    async def _vote(self) -> None:
        while not self._stop.is_set():
            poll_id = self._random.choice(self.polls)
            body = []
            for _ in range(self._random.randint(1, 10)):
                self._number += 1
                option = self._random.choice("ab")
                body.append({
                    "event_id": f"vote-{self._number:08d}", "poll_id": poll_id, "option": option,
                    "voter": f"v{self._number}",
                })  # fmt: skip
            await self._send("/api/v1/votes", body)
            for vote in body:
                self.digests[poll_id] = (self.digests[poll_id] + vote_hash(vote["event_id"], vote["option"])) & MASK
                self.votes[poll_id] += 1
                self.options[poll_id, vote["option"]] += 1
            await asyncio.sleep(PAUSE_S)

    async def _play(self) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            event = {
                "event_id": f"kill-{number:06d}", "match_id": self.match_id, "map_id": "0", "type": "player_death",
                "data": {"number": number},
            }  # fmt: skip
            await self._send("/api/v1/events", event)
            self.events.append(event["event_id"])  # type: ignore[arg-type]
            await asyncio.sleep(PAUSE_S)

    async def _send(self, path: str, body: Any) -> None:
        size = len(body) if isinstance(body, list) else 1
        while True:
            self.in_flight += 1
            try:
                answer = await self._client.post(path, json=body)
            except httpx.TransportError:
                self.repeats += 1
                await asyncio.sleep(0.05)
                continue
            finally:
                self.in_flight -= 1
            if answer.status_code == 202:
                counts = answer.json()
                assert counts["accepted"] + counts["duplicates"] == size, counts
                self.duplicates += counts["duplicates"]
                return
            assert answer.status_code == 503, answer.text
            self.repeats += 1
            await asyncio.sleep(0.05)
