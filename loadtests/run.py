"""One run from beginning to end: polls, subscribers, load, drain, and what every place says afterwards."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from secrets import token_hex
from typing import Literal

import httpx
import msgspec
from msgspec import Struct, field

from loadtests import ledger
from loadtests.helpers import Helper
from loadtests.ledger import Ledger
from loadtests.lines import Finish, Go, SenderSpec, Shape, SubscribersSpec
from loadtests.machine import Sampler, Samples
from loadtests.mix import Scenario
from loadtests.observe import ClickHouse, ColdPoll, Endpoints, Gateway, HotPoll, Metrics, create_polls
from loadtests.seen import Counts

SENDERS = 200
"""Requests open at once. At 900 requests/s a pipeline that stands still for a fifth of a second uses them all; then the
sender falls behind its schedule, catches up as fast as it can, and the wait is in the latencies."""

READY_WITHIN_S = 90.0
SILENCE_MAX_S = 30.0
HOT_DRAINS_WITHIN_S = 60.0
COLD_DRAINS_WITHIN_S = 120.0
SUBSCRIBERS_WITHIN_S = 15.0
START_IN_S = 1.0
RUNNER = "runner"
"""This process, which only waits and samples while the load lasts."""

_POLL_S = 0.1
_PROGRESS_S = 5.0

Say = Callable[[str], None]


class Options(Struct, frozen=True):
    """One run. `rate` is in events per second, for a burst its peak."""

    shape: Shape
    rate: float
    seconds: float
    sse: int
    ws: int
    follow: Literal["one", "all"] = "one"
    """Polls that a subscriber follows beside the match."""
    subscribers: Literal["lean", "locust"] = "lean"
    workers: int = 1
    """Processes over which lean subscribers are spread."""

    def topics(self, scenario: Scenario) -> list[tuple[str, ...]]:
        """Of every subscriber."""
        return [scenario.topics(number, self.follow) for number in range(self.sse + self.ws)]


class Places(Struct):
    """What every place but the subscribers says after the load; seconds until it said so."""

    hot: dict[str, HotPoll] = field(default_factory=dict)
    cold: dict[str, ColdPoll] = field(default_factory=dict)
    orders: dict[str, Counts] = field(default_factory=dict)
    events: dict[str, list[str]] = field(default_factory=dict)
    hot_drained_s: float = 0.0
    cold_drained_s: float = 0.0
    unaccounted: float | None = None
    dead: float | None = None
    e2e_before: dict[float, float] = field(default_factory=dict)
    e2e_after: dict[float, float] = field(default_factory=dict)


class Finished(Struct):
    """A run that was carried out; the rest lies in files: the trace in `sender`, what was seen in `readers`."""

    options: Options
    books: Ledger
    refusals: list[str]
    places: Places
    samples: Samples
    generators: list[str]
    sender: Path
    readers: list[Path]


def carry_out(
    endpoints: Endpoints, supervisor_pid: int | None, options: Options, directory: Path, say: Say
) -> Finished:
    """Carry out one run in an empty `directory`.

    Raises Fatal when the generator itself fails, httpx.HTTPError when a service is not there.
    """
    scenario = Scenario(f"load-{token_hex(3)}")
    create_polls(endpoints, [(poll_id, scenario.definition(poll_id)) for poll_id in scenario.polls])
    places = Places(e2e_before=Metrics(endpoints.gateway_urls[0]).buckets("e2e_latency_ms"))
    with ExitStack() as stack:
        readers = _start_readers(endpoints, options, scenario, directory, stack)
        sender = _start_sender(endpoints, options, scenario, directory, stack)
        pids = {"sender": sender.pid, RUNNER: os.getpid()}
        pids |= {f"subscribers {n}" if n > 1 else "subscribers": h.pid for n, h in enumerate(readers, 1)}
        sampler = Sampler(pids, supervisor_pid)
        sampler.start()
        sender.tell(Go(time.time() + START_IN_S))
        _wait_sent(sender, options, say)
        books = ledger.load(sender.directory / "ledger.msgpack")
        say(f"{books.acknowledged:,} votes and events acknowledged; waiting until every place has them")
        _drain(endpoints, books, places)
        listeners = readers or [sender]
        _finish(listeners, books)
        samples = sampler.finish()
    _ask(endpoints, books, places)
    refusals = msgspec.json.decode((sender.directory / "refusals.json").read_bytes(), type=list[str])
    directories = [helper.directory for helper in listeners]
    return Finished(options, books, refusals, places, samples, list(pids), sender.directory, directories)


def _start_readers(
    endpoints: Endpoints, options: Options, scenario: Scenario, directory: Path, stack: ExitStack
) -> list[Helper]:
    if options.subscribers != "lean":
        return []
    topics, helpers = options.topics(scenario), []
    for worker in range(options.workers):
        own = directory / f"subscribers-{worker}"
        sse = len(range(worker, options.sse, options.workers))
        ws = topics[options.sse :][worker :: options.workers]
        spec = SubscribersSpec(
            endpoints.gateway_urls, sse, [*topics[: options.sse][worker :: options.workers], *ws], str(own)
        )
        helpers.append(Helper("loadtests.subscribers", spec, own))
        stack.callback(helpers[-1].stop)
    for helper in helpers:
        helper.next(READY_WITHIN_S)
    return helpers


def _start_sender(
    endpoints: Endpoints, options: Options, scenario: Scenario, directory: Path, stack: ExitStack
) -> Helper:
    own = directory / "sender"
    spec = SenderSpec(
        endpoints.ingest_url, endpoints.key, options.shape, options.rate, options.seconds, scenario, str(own), SENDERS
    )
    if options.subscribers == "locust":
        spec.gateway_urls, spec.sse, spec.ws = endpoints.gateway_urls, options.sse, options.ws
        spec.topics = options.topics(scenario)
    sender = Helper("loadtests.users", spec, own)
    stack.callback(sender.stop)
    sender.next(READY_WITHIN_S)
    return sender


def _wait_sent(sender: Helper, options: Options, say: Say) -> None:
    started = told = time.monotonic()
    while True:
        report = sender.next(SILENCE_MAX_S)
        if report.sent:
            return
        now = time.monotonic()
        if now - told >= _PROGRESS_S:
            told = now
            elapsed_s = min(now - started - START_IN_S, options.seconds)
            say(
                f"{elapsed_s:4.0f} of {options.seconds:.0f} s: {report.acknowledged:,} acknowledged, {report.open} open"
            )


def _finish(listeners: Sequence[Helper], books: Ledger) -> None:
    """Let the subscribers read what is left, and write their files."""
    applied = {poll_id: poll.votes for poll_id, poll in books.polls.items()}
    for helper in listeners:
        helper.tell(Finish(applied, sum(map(len, books.events.values())), SUBSCRIBERS_WITHIN_S))
    for helper in listeners:
        while not helper.next(SUBSCRIBERS_WITHIN_S + SILENCE_MAX_S).done:
            pass


def _drain(endpoints: Endpoints, books: Ledger, places: Places) -> None:
    """Wait, within bounds, until hot state and archive have as many votes and events as were acknowledged."""
    gateway, archive = Gateway(endpoints.gateway_urls[0]), ClickHouse(endpoints.clickhouse_url)

    def hot() -> bool:
        return all(gateway.poll(poll_id).applied >= poll.votes for poll_id, poll in books.polls.items())

    def cold() -> bool:
        return all(archive.votes(poll_id) >= poll.votes for poll_id, poll in books.polls.items()) and all(
            len(archive.events(match_id)) >= len(events) for match_id, events in books.events.items()
        )

    places.hot_drained_s = _until(hot, HOT_DRAINS_WITHIN_S)
    places.cold_drained_s = places.hot_drained_s + _until(cold, COLD_DRAINS_WITHIN_S)


def _ask(endpoints: Endpoints, books: Ledger, places: Places) -> None:
    """Everything that the proof compares."""
    gateway, archive = Gateway(endpoints.gateway_urls[0]), ClickHouse(endpoints.clickhouse_url)
    for poll_id in books.polls:
        places.hot[poll_id] = gateway.poll(poll_id)
        places.cold[poll_id] = archive.poll(poll_id)
        places.orders[poll_id] = archive.order(poll_id)
    for match_id in books.events:
        places.events[match_id] = archive.events(match_id)
    state = Metrics(endpoints.state_url)
    places.unaccounted, places.dead = state.total("votes_unaccounted"), state.total("dead_letters_total")
    places.e2e_after = Metrics(endpoints.gateway_urls[0]).buckets("e2e_latency_ms")


def _until(condition: Callable[[], bool], within_s: float) -> float:
    """Seconds until `condition` holds; `within_s` when it does not: the comparison will say what is missing."""
    started = time.monotonic()
    while time.monotonic() - started < within_s:
        try:
            if condition():
                return time.monotonic() - started
        except httpx.TransportError:
            pass  # a service that is being restarted
        time.sleep(_POLL_S)
    return within_s
