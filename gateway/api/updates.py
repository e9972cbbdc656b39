"""`GET /api/v1/updates`: long-poll, for clients that have nothing but requests.

A waiting request is a subscriber like any other, whose sink is satisfied by the first write. What it answers is what
the hub wrote to it, and the cursor is where that left it.
"""

import asyncio

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from core.problem import Problem, unavailable
from gateway.api.stream import asked_for, cursor_of
from gateway.hub import State, Subscriber
from gateway.resume import Verdict
from gateway.service import Service

WAIT_DEFAULT_S = 20.0
WAIT_MAX_S = 30.0
COLD_WAIT_S = 5.0
"""A request whose past is still being read gets at least this long, or it would never get anywhere with `wait=0`."""


class Waiting:
    """One request that waits for messages. A `gateway.hub.Sink`."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._size = 0
        self.parts: list[bytes] = []
        self.verdicts: dict[str, Verdict] = {}
        self.news = asyncio.Event()
        self.subscriber: Subscriber | None = None
        self.fd = -1
        self.is_paused = False
        self.is_closing = False
        self.slot = 0

    def greet(self, verdicts: dict[str, Verdict]) -> bytes:
        """Keep the verdicts for the answer; they are no message here."""
        self.verdicts = verdicts
        return b""

    def write(self, data: bytes) -> None:
        """See `gateway.hub.Sink`."""
        if not data:
            return
        self.parts.append(data)
        self._size += len(data)
        self.news.set()
        if self._size > self._service.high_water and not self.is_paused:
            self.is_paused = True  # one answer is full; the next request goes on from its cursor
            if self.subscriber is not None:
                self._service.pause(self.subscriber)

    @property
    def unsent(self) -> int:
        """See `gateway.wheel`."""
        return self._size

    def cut(self) -> None:
        """See `gateway.wheel`: answer at once."""
        self.close(1012, "")

    def close(self, code: int, reason: str) -> None:
        """See `gateway.hub.Sink`: answer with what there is."""
        self.is_closing = True
        self.news.set()

    def dismiss(self) -> None:
        """See `gateway.hub.Sink`."""
        self.close(1012, "")

    def beat(self, now: float) -> None:
        """See `gateway.wheel`: a request is shorter than any silence."""


def routes(service: Service) -> list[Route]:
    """The endpoint."""

    async def updates(request: Request) -> Response:
        wanted = asked_for(request)
        wait_s = _wait(request)
        if service.is_draining:
            raise unavailable("shutting down, repeat the request")
        cursor = cursor_of(request)
        joining = await service.prepare(wanted, "poll", cursor)
        waiting = Waiting(service)
        service.wheel.add(waiting)
        service.meter.opened("poll")
        subscriber = service.start(joining, waiting, waiting.greet)
        waiting.subscriber = subscriber
        try:
            if subscriber.state is State.COLD:
                wait_s = max(wait_s, COLD_WAIT_S)
            if not waiting.parts and cursor is not None:
                await asyncio.wait_for(waiting.news.wait(), wait_s)
        except TimeoutError:
            pass  # an empty answer, with a cursor that has moved on
        finally:
            service.leave(subscriber)
            service.wheel.remove(waiting)
            service.meter.closed("poll")
        position = subscriber.channel.cursor(service.hub.position(subscriber))
        body = b'{"cursor":"%b","resume":%b,"messages":[%b]}' % (
            position,
            msgspec.json.encode(waiting.verdicts),
            b",".join(waiting.parts).replace(b"\n", b","),  # a message has no line break; joined ones are divided by it
        )
        return Response(body, headers={"Cache-Control": "no-store"}, media_type="application/json")

    return [Route("/api/v1/updates", updates)]


def _wait(request: Request) -> float:
    text = request.query_params.get("wait")
    if not text:
        return WAIT_DEFAULT_S
    try:
        wait_s = float(text)
    except ValueError:
        wait_s = -1.0
    if not 0 <= wait_s <= WAIT_MAX_S:
        raise Problem(400, f"wait must be a number of seconds from 0 to {WAIT_MAX_S:g}")
    return wait_s
