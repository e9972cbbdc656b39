"""Locust's users: voters and the match feed over HTTP, and subscribers over SSE and WebSocket.

    python -m loadtests.users SPEC.json     (started by `python -m loadtests`; SPEC: `lines.SenderSpec`)

Votes are sent by locust; subscribers are not, unless asked for (`--subscribers locust`). Measured on two shared cores
at 1000 events/s with 200 SSE and 50 WebSocket subscribers, 18,000 messages/s read, three runs each in turn:

                                     CPU of the generator        bodies sent late, p99
    all in locust (gevent)           26 to 30 % of a core        6 to 22 ms
    subscribers on their own         6 + 8 to 11 %               6 to 10 ms

Locust is not at its limit then, but it takes twice the CPU from the pipeline that shares the machine, and one loop both
keeps the schedule of votes and reads: each makes the other late, and nobody could tell their lateness from latency. So
`loadtests.subscribers` reads, with the same parser and the same memory, and measures its own lag.
"""

import socket
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gevent
import msgspec
from locust import FastHttpUser, User, task
from locust.env import Environment
from locust.exception import StopUser

from loadtests import seen, shapes
from loadtests.lines import Finish, Go, Report, SenderSpec, say
from loadtests.plan import MatchPlan, Plan
from loadtests.reader import Reader
from loadtests.sending import Sending, wait_until
from loadtests.wire import SseStream, WebSocketStream

REQUEST_TIMEOUT_S = 30.0
EVENTS_PER_BODY = 50
_FINISH_POLL_S = 0.05


class Load(Environment):
    """Locust's environment with what our users share."""

    def __init__(self, spec: SenderSpec, **options: Any) -> None:
        super().__init__(**options)
        self.sending = Sending(spec.key)
        self.readers: list[Reader] = []
        self.unclaimed: list[tuple[Reader, str]] = []
        self.failures: list[str] = []


class Sender(FastHttpUser):
    """What voters and the match feed have in common."""

    abstract = True
    network_timeout = REQUEST_TIMEOUT_S
    connection_timeout = REQUEST_TIMEOUT_S
    concurrency = 1
    environment: Load

    def post(self, path: str, content: bytes, media: str) -> tuple[int, bytes]:
        """See `sending.Post`."""
        headers = {"Content-Type": media, **self.environment.sending.headers}
        response = self.client.request("POST", path, data=content, headers=headers)  # type: ignore[arg-type]
        return response.status_code or 0, response.content or b""


class Voter(Sender):
    """Takes the next due body of votes, waits for its time, sends it until it is acknowledged."""

    @task
    def vote(self) -> None:
        """One body."""
        sending = self.environment.sending
        sending.begun.wait()
        body = sending.next_body()
        if body is None:
            raise StopUser
        sending.send_votes(self.post, body)


class MatchFeed(Sender):
    """The one source of match events: strictly one body after another, so that their order is known."""

    fixed_count = 1

    @task
    def report(self) -> None:
        """Everything that is due; when behind, several events in one body."""
        sending = self.environment.sending
        sending.begun.wait()
        plan = sending.match_plan
        if plan is None or plan.due is None:
            sending.match_plan = None
            raise StopUser
        wait_until(plan.due)
        sending.send_events(self.post, plan.take(time.time(), EVENTS_PER_BODY))


class Subscriber(User):
    """One reader with a blocking socket, made cooperative by gevent."""

    abstract = True
    environment: Load

    @task
    def follow(self) -> None:
        """One connection from beginning to end; locust calls again, so a subscriber reconnects."""
        if not hasattr(self, "reader"):
            self.reader, self.url = self.environment.unclaimed.pop(0)
        kind = SseStream if self.reader.name.startswith("sse") else WebSocketStream
        stream = kind(self.url, self.reader.topics, self.reader.cursor)
        url = urlsplit(self.url)
        with socket.create_connection((url.hostname, url.port), REQUEST_TIMEOUT_S) as connection:
            connection.sendall(stream.request())
            while data := connection.recv(65536):
                at = time.time()
                for message in stream.feed(data):
                    self.reader.take(message, at)
                answer = stream.outgoing()
                if answer:
                    connection.sendall(answer)
        self.environment.failures.append(f"{self.reader.name}: connection closed")


class SseSubscriber(Subscriber):
    """Reads Server-Sent Events."""


class WebSocketSubscriber(Subscriber):
    """Reads a WebSocket."""


def _environment(spec: SenderSpec) -> Load:
    classes: list[type[User]] = [Voter, MatchFeed]
    Voter.fixed_count = spec.senders
    for kind, number in ((SseSubscriber, spec.sse), (WebSocketSubscriber, spec.ws)):
        kind.fixed_count = number
        if number:
            classes.append(kind)
    shape = shapes.of(spec.curve(), spec.senders + 1 + spec.sse + spec.ws)
    load = Load(spec, user_classes=classes, shape_class=shape, host=spec.ingest_url)
    for number, topics in enumerate(spec.topics):
        reader = Reader(f"{'sse' if number < spec.sse else 'ws'}-{number}", topics)
        load.readers.append(reader)
        load.unclaimed.append((reader, spec.gateway_urls[number % len(spec.gateway_urls)]))
    return load


def _line() -> bytes:
    """One line of standard input, without stopping the other greenlets."""
    return gevent.get_hub().threadpool.apply(sys.stdin.buffer.readline)  # type: ignore[no-any-return]


def _run(spec: SenderSpec) -> None:
    load = _environment(spec)
    sending, shape = load.sending, load.shape_class
    assert isinstance(shape, shapes.CurveShape)
    runner = load.create_local_runner()
    runner.start_shape()
    with gevent.Timeout(60.0):
        while runner.user_count < shape.users or not all(reader.connections for reader in load.readers):
            gevent.sleep(_FINISH_POLL_S)
    say(Report(ready=runner.user_count))
    line = _line()
    if not line:
        return
    start = msgspec.json.decode(line, type=Go).start
    sending.begin(Plan(shape.curve, spec.scenario, start), MatchPlan(shape.curve, spec.scenario, start))
    while not sending.is_over:
        gevent.sleep(1.0)
        say(Report(acknowledged=sending.ledger.acknowledged, open=sending.open))
    directory = Path(spec.directory)
    sending.ledger.save(directory / "ledger.msgpack")
    sending.recorder.save(directory, start, spec.seconds, spec.senders, sending.open_max)
    (directory / "refusals.json").write_bytes(msgspec.json.encode(sending.refusals))
    say(Report(sent=True))
    if load.readers:
        _finish(load, directory)
    shape.is_over = True
    runner.quit()
    say(Report(done=True))


def _finish(load: Load, directory: Path) -> None:
    line = _line()
    if not line:
        return
    target = msgspec.json.decode(line, type=Finish)
    deadline = time.monotonic() + target.within_s
    while time.monotonic() < deadline and not all(r.has_seen(target.applied, target.events) for r in load.readers):
        gevent.sleep(_FINISH_POLL_S)
    seen.save(directory, load.readers, load.failures, [])


def main() -> None:
    """Entry point; the specification is the only argument."""
    _run(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=SenderSpec))


if __name__ == "__main__":
    main()
