"""A reader that reconnects with its last id whenever its stream ends, on the next gateway of a list."""

import asyncio
import contextlib
from typing import Any

import httpx
import msgspec


class Spectator:
    """Follows topics over SSE and keeps what it saw: event ids in order, the newest tally of each poll, verdicts."""

    def __init__(self, gateway_urls: list[str], topics: list[str], name: str = "") -> None:
        self.name = name
        self._urls = gateway_urls
        self._topics = topics
        self.events: list[str] = []
        self.tallies: dict[str, dict[str, Any]] = {}
        self.verdicts: list[dict[str, str]] = []
        self.last_id: str | None = None
        self.connections = 0
        self.streams_from: str | None = None
        """URL of the gateway it is reading from right now."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Follow until stopped."""
        self._task = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """Leave. Raises what went wrong on the way."""
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _follow(self) -> None:
        timeout = httpx.Timeout(5.0, read=20.0)
        async with httpx.AsyncClient(timeout=timeout) as client:
            while True:
                url = self._urls[self.connections % len(self._urls)]
                self.connections += 1
                headers = {"Last-Event-ID": self.last_id} if self.last_id else {}
                params = {"topics": ",".join(self._topics), "envelope": "1"}
                try:
                    async with client.stream("GET", f"{url}/api/v1/stream", params=params, headers=headers) as answer:
                        assert answer.status_code == 200, answer.status_code
                        self.streams_from = url
                        async for line in answer.aiter_lines():
                            if line.startswith("data:"):
                                self._take(msgspec.json.decode(line[5:]))
                except httpx.TransportError:
                    pass
                self.streams_from = None
                await asyncio.sleep(0.05)

    def _take(self, message: dict[str, Any]) -> None:
        kind, data = message["event"], message["data"]
        if kind == "welcome":
            self.verdicts.append({topic: verdict["resume"] for topic, verdict in data["topics"].items()})
            return
        self.last_id = message.get("id", self.last_id)
        if kind in ("tally", "snapshot") and message["topic"].startswith("poll."):
            if "digest" in data:
                self.tallies[message["topic"]] = data
        elif "event_id" in data:
            self.events.append(data["event_id"])
