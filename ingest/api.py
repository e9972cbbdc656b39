"""The HTTP calls of the write side (CONTRACT §3): read, check whole, hand to the batcher, answer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from core.clock import Clock
from core.errors import Retry
from core.events import Vote
from core.http import json_response
from core.metrics import INGESTED, STAGE
from core.problem import Problem
from ingest import decode, polls
from ingest.append import Group
from ingest.batcher import Batcher
from ingest.body import BodyReader, media_of
from ingest.decode import invalid_items
from ingest.door import correlation_of
from ingest.intake import event_groups, vote_faults, vote_groups
from ingest.sources import matchzy
from ingest.watch import Watch

_STAGE = STAGE.labels("ingest")
_INVALID = INGESTED.labels("other", "invalid")


class Api:
    """Handlers over the process's one batcher and one poll store."""

    def __init__(self, polls_: polls.Polls, batcher: Batcher, watch: Watch, voter_key: bytes, clock: Clock) -> None:
        """`voter_key` is from `core.digest.voter_key`."""
        self._polls = polls_
        self._batcher = batcher
        self._watch = watch
        self._voter_key = voter_key
        self._clock = clock
        self._bodies = BodyReader()

    def routes(self) -> list[Route]:
        """The calls of the contract."""
        return [
            Route("/api/v1/polls/{poll_id}", self.put_poll, methods=["PUT"]),
            Route("/api/v1/polls/{poll_id}/close", self.close_poll, methods=["POST"]),
            Route("/api/v1/votes", self.post_votes, methods=["POST"]),
            Route("/api/v1/events", self.post_events, methods=["POST"]),
            Route("/hooks/matchzy/{server}", self.post_matchzy, methods=["POST"]),
        ]

    async def put_poll(self, request: Request) -> Response:
        """Create (201) or change (200) a poll."""
        self._watch.admit()
        media_of(request, json_only=True)
        definition = polls.parse(request.path_params["poll_id"], await self._bodies.read(request))
        is_new, view = await self._polls.put(definition, correlation_of(request))
        return json_response(view, 201 if is_new else 200)

    async def close_poll(self, request: Request) -> Response:
        """Close a poll; again is fine."""
        self._watch.admit()
        return json_response(await self._polls.close(request.path_params["poll_id"], correlation_of(request)))

    async def post_votes(self, request: Request) -> Response:
        """One vote, an array or NDJSON."""
        self._watch.admit()
        with _counting_refusals():
            media = media_of(request)
            body = await self._bodies.read(request)
            received_us = self._clock()
            votes, is_list = decode.votes(body, media, _utc(received_us))
            await self._check(votes, is_list)
        groups = vote_groups(votes, self._voter_key, received_us, correlation_of(request))
        outcome = await self._batcher.submit(groups)
        if outcome.gone:
            for vote in votes:
                self._polls.forget(vote.poll_id)
            if not outcome.accepted + outcome.duplicates:
                await self._check(votes, is_list)
            raise Retry("a poll went away between check and append")
        return self._answer(outcome.accepted, outcome.duplicates, received_us, 202)

    async def post_events(self, request: Request) -> Response:
        """One match event, an array or NDJSON."""
        self._watch.admit()
        with _counting_refusals():
            media = media_of(request)
            body = await self._bodies.read(request)
            received_us = self._clock()
            events, _ = decode.match_events(body, media, _utc(received_us))
            groups = event_groups(events, received_us, correlation_of(request))
        return await self._append(groups, received_us, 202)

    async def post_matchzy(self, request: Request) -> Response:
        """One event of a MatchZy or Get5 server. Never retried by the plugin, so almost everything is accepted."""
        self._watch.admit()
        with _counting_refusals():
            media_of(request, json_only=True)
            body = await self._bodies.read(request)
            received_us = self._clock()
            group = matchzy.group(
                body, request.path_params["server"], request.headers, received_us, correlation_of(request)
            )
        return await self._append([group], received_us, 200)

    async def _append(self, groups: Sequence[Group], received_us: int, status: int) -> Response:
        outcome = await self._batcher.submit(groups)
        return self._answer(outcome.accepted, outcome.duplicates, received_us, status)

    def _answer(self, accepted: int, duplicates: int, received_us: int, status: int) -> Response:
        _STAGE.observe_many((self._clock() - received_us) / 1000, accepted + duplicates)
        return json_response({"accepted": accepted, "duplicates": duplicates}, status)

    async def _check(self, votes: Sequence[Vote], is_list: bool) -> None:
        """Every vote's poll and option exist. Raises Problem 404 for a single vote's poll, else 422."""
        options = await self._polls.options({vote.poll_id for vote in votes})
        errors = vote_faults(votes, options)
        if not errors:
            return
        doubtful = {votes[error.index].poll_id for error in errors}
        for poll_id in doubtful:
            options.pop(poll_id, None)
        options |= await self._polls.options(doubtful, fresh=True)
        errors = vote_faults(votes, options)
        if errors and not is_list and errors[0].path == "poll_id":
            raise polls.no_such_poll()
        if errors:
            raise invalid_items(errors)


def _utc(us: int) -> datetime:
    return datetime.fromtimestamp(us / 1e6, UTC)


@contextmanager
def _counting_refusals() -> Iterator[None]:
    """Count items that a client got wrong; at least one per refused body."""
    try:
        yield
    except Problem as problem:
        _INVALID.inc(max(1, len(problem.errors)))
        raise
