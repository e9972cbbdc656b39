"""What a WebSocket client may ask for, whatever carries the connection: subscribe, unsubscribe, resume by cursor.

A connection holds any number of subscriptions, together at most `TOPICS_MAX` topics. Each has its own topic set, so
each message's id is a cursor for the topics of the request it came from (a heartbeat lists them). A topic belongs to
one subscription at a time: subscribing again moves it to the new one, with the position or snapshot that this one
asks for. Only a map and the pattern that covers it can stand in two subscriptions; then its messages come in both.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from core.errors import Retry
from core.names import TOPICS_MAX
from core.problem import Problem
from gateway.frames import Wire, control
from gateway.hub import Sink, Subscriber
from gateway.policy import is_origin_allowed, parse_origins
from gateway.resume import Verdict
from gateway.service import Service, welcome
from gateway.subscription import split, subscription

SUBPROTOCOL = "arenacast.v1"
MESSAGE_BYTES_MAX = 64 * 1024
"""A request of 64 topics and a cursor has 12 KB at most."""

REQUESTS_MAX = 128
"""Requests waiting to be answered; a client that sends more at once is closed."""

BAD_REQUEST, FORBIDDEN, OVERLOADED, RECONNECT = 4000, 4003, 1013, 1012


class Ask(Struct):
    """A request of a client."""

    op: str
    topics: list[str] = []
    cursor: str | None = None
    types: list[str] = []
    ref: str | int | None = None


class Carrier(Sink, Protocol):
    """A connection that can hold several subscribers."""

    subscribers: list[Subscriber]


_decode = msgspec.json.Decoder(Ask).decode
_decode_ref = msgspec.json.Decoder(dict[str, Any]).decode


class Session:
    """The requests of one connection, handled one after the other."""

    __slots__ = ("_carrier", "_service", "_wire")

    def __init__(self, service: Service, carrier: Carrier, wire: Wire) -> None:
        self._service = service
        self._carrier = carrier
        self._wire: Wire = wire

    async def open(self, query: Callable[[str], Sequence[str]], origin: str | None) -> None:
        """Greet, with the subscription in the query string if there is one. `query`: name -> values given."""
        carrier = self._carrier
        if not is_origin_allowed(parse_origins(self._service.settings.cors_origins), origin):
            carrier.close(FORBIDDEN, "origin not allowed")
            return
        if self._service.is_draining:
            carrier.dismiss()
            return
        topics = split(query("topics"))
        if not topics:
            carrier.write(welcome(self._wire)({}))
            return
        cursor = next((value for value in query("cursor") if value), None)
        try:
            await self._subscribe(topics, split(query("types")), cursor, welcome(self._wire))
        except Problem as problem:
            self._refuse(problem, None)
            carrier.close(BAD_REQUEST, problem.detail)
        except Retry as error:
            self._service.turned_away(error)
            carrier.close(OVERLOADED, "cannot serve you now, come back later")

    async def handle(self, message: bytes) -> None:
        """Carry out one request and answer it."""
        ref: Any = None
        try:
            try:
                ask = _decode(message)
            except msgspec.ValidationError as error:
                ref = _ref_of(message)
                raise Problem(400, str(error)) from None
            except (msgspec.DecodeError, UnicodeDecodeError):
                raise Problem(400, "not a JSON object") from None
            ref = ask.ref
            if ask.op == "subscribe":
                await self._subscribe(ask.topics, ask.types, ask.cursor, self._answer(ask.ref))
            elif ask.op == "unsubscribe":
                gone = self._take_away(ask.topics)
                self._carrier.write(control(self._wire, "unsubscribed", {"topics": gone}, ref=ref))
            else:
                raise Problem(400, "op must be subscribe or unsubscribe")
        except Problem as problem:
            self._refuse(problem, ref)
        except Retry as error:
            self._service.turned_away(error)
            self._refuse(Problem(503, "cannot serve this now, repeat it"), ref)

    def refuse_binary(self) -> None:
        """Answer a binary message."""
        self._refuse(Problem(400, "requests are text messages"), None)

    async def _subscribe(
        self,
        topics: Sequence[str],
        types: Sequence[str],
        cursor: str | None,
        greet: Callable[[dict[str, Verdict]], bytes],
    ) -> None:
        try:
            wanted = subscription(topics, types)
        except ValueError as error:
            raise Problem(400, str(error)) from None
        held = {topic for subscriber in self._carrier.subscribers for topic in subscriber.channel.subscription.topics}
        if len(held | set(wanted.topics)) > TOPICS_MAX:
            raise Problem(400, f"more than {TOPICS_MAX} topics on one connection")
        joining = await self._service.prepare(wanted, self._wire, cursor)
        if self._carrier.is_closing:
            self._service.abandon(joining)
            return
        self._take_away(wanted.topics)
        self._carrier.subscribers.append(self._service.start(joining, self._carrier, greet))

    def _take_away(self, topics: Sequence[str]) -> list[str]:
        """End what is subscribed of `topics`; what else these subscriptions have goes on. Returns what was ended."""
        carrier, service = self._carrier, self._service
        gone: set[str] = set()
        for subscriber in list(carrier.subscribers):
            before = subscriber.channel.subscription
            after = before.without(topics)
            if after == before:
                continue
            gone.update(set(before.topics) & set(topics))
            carrier.subscribers.remove(subscriber)
            if after is not None:
                carrier.subscribers.append(service.narrow(subscriber, after))
            service.leave(subscriber)
        return sorted(gone)

    def _answer(self, ref: str | int | None) -> Callable[[dict[str, Verdict]], bytes]:
        return lambda verdicts: control(self._wire, "subscribed", {"topics": verdicts}, ref=ref)

    def _refuse(self, problem: Problem, ref: Any) -> None:
        self._carrier.write(control(self._wire, "error", msgspec.Raw(problem.body), ref=ref))


def _ref_of(message: bytes) -> str | int | None:
    """The `ref` of a request that is wrong otherwise, so that the client can tell which one was."""
    try:
        ref = _decode_ref(message).get("ref")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return ref if isinstance(ref, str | int) else None
