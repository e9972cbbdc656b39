"""What readers get, as structs whose JSON Schemas are the contract. Readers ignore fields they do not know."""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from core.events import Id, Instant, PollDefinition, Voting
from gateway.resume import Verdict

Cursor = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_.~:-]{1,3000}$",
        description="Opaque: a position in the log for one set of topics. Give it back on any transport, to any node, "
        "with the same topics, and continue right after it.",
    ),
]
Topic = Annotated[
    str,
    Meta(
        pattern=r"^(poll\.[A-Za-z0-9_-]{1,64}|match\.[A-Za-z0-9_-]{1,64}\.([A-Za-z0-9_-]{1,64}|\*))$",
        description="`poll.<poll_id>`, `match.<match_id>.<map_id>`, or `match.<match_id>.*` for all maps of a match.",
    ),
]
ReceivedMs = Annotated[int, Meta(description="Unix time in ms at which the newest input behind this was received.")]
Digest = Annotated[
    str,
    Meta(
        pattern="^[0-9a-f]{16}$",
        description="Sum modulo 2^64 of xxHash64 (seed 0) of `event_id` + NUL + `option` over all applied votes.",
    ),
]


class Tally(Struct):
    """Counts of a poll. Absolute: a newer one replaces an older one."""

    poll_id: Id
    status: Literal["pending", "open", "closed"]
    options: Annotated[dict[str, int], Meta(description="Option id -> votes that count.")]
    total: int
    voters: int
    applied: Annotated[int, Meta(description="Votes processed, counted and rejected ones.")]
    rejected: Annotated[dict[str, int], Meta(description="already_voted, late, early, unknown_option -> votes.")]
    digest: Digest
    received_ms: ReceivedMs
    replaced: Annotated[int, Meta(description="Only for `last`: votes that a later one replaced.")] = 0


class PollChanged(PollDefinition, frozen=True, kw_only=True):
    """Definition of a poll, sent when it changes."""

    status: Literal["pending", "open", "closed"]


class Poll(Struct):
    """A poll's definition and the fields of its tally side by side; `options` are the tally's."""

    poll_id: Id
    title: str
    voting: Voting
    match_id: Id | None
    opens_at: Instant | None
    closes_at: Instant | None
    status: Literal["pending", "open", "closed"]
    options: dict[str, int]
    total: int
    voters: int
    applied: int
    rejected: dict[str, int]
    digest: Digest
    received_ms: ReceivedMs
    definition: PollDefinition
    cursor: Cursor
    replaced: int = 0


class Team(Struct):
    """One side of a match."""

    name: str
    score: int


class RoundSummary(Struct):
    """A finished round."""

    round_no: int
    winner: Literal["team1", "team2"] | None
    reason: str


class Prediction(Struct):
    """Win probability of a map after a round."""

    round_no: int
    p_team1: float
    p_team2: float
    model: str


class MapState(Struct):
    """Absolute hot state of one map."""

    match_id: Id
    map_id: Id
    map_name: str
    status: Literal["pending", "live", "finished"]
    round_no: Annotated[int, Meta(description="Completed rounds.")]
    team1: Team
    team2: Team
    winner: Literal["team1", "team2", "draw"] | None
    rounds: list[RoundSummary]
    received_ms: ReceivedMs


class PickedMap(Struct):
    """A map that was picked for the series."""

    map_id: Id
    map_name: str


class Map(MapState, kw_only=True):
    """Hot state of one map with its newest prediction. The map `series` is the match around its maps: its scores are
    maps won, and it alone has `num_maps` and `maps`."""

    prediction: Prediction | None
    cursor: Cursor
    num_maps: int | None = None
    maps: list[PickedMap] = []


class Match(Struct):
    """All maps of a match; `series` is what belongs to none of them."""

    match_id: Id
    maps: list[Map]
    series: Map | None
    cursor: Cursor


class PollList(Struct):
    """One page, the newest change first. `next` is the `after` of the following page."""

    polls: list[Poll]
    next: str | None


class MatchList(Struct):
    """One page, the newest change first. `next` is the `after` of the following page."""

    matches: list[Match]
    next: str | None


class StoredEvent(Struct):
    """A match event as its source sent it."""

    event_id: str
    match_id: Id
    map_id: Id
    type: str
    round_no: int | None = None
    ts: Instant | None = None
    source: str = "api"
    data: dict[str, Any] = {}
    corrects: Annotated[str | UnsetType, Meta(description="Id of the event that this one corrects.")] = UNSET
    revision: Annotated[int | UnsetType, Meta(description="Of a correction: the highest counts; else 2.")] = UNSET


class EventPage(Struct):
    """Stored events in log order, corrections in their own place. `next` is the `after` of the following page, null
    when there was nothing more."""

    events: list[StoredEvent]
    next: str | None


class Message(Struct):
    """One message, the same on every transport. WebSocket text messages hold one or more, separated by newlines."""

    event: Annotated[str, Meta(description="The kind: `snapshot`, `tally`, `round_end`, …")]
    data: dict[str, Any]
    topic: Annotated[Topic | UnsetType, Meta(description="Absent for welcome, heartbeat and bye.")] = UNSET
    id: Annotated[Cursor | UnsetType, Meta(description="Absent for welcome and bye.")] = UNSET


class Updates(Struct):
    """Answer of the long-poll."""

    cursor: Cursor
    resume: Annotated[dict[str, Verdict], Meta(description="Topic -> verdict on the cursor given.")]
    messages: list[Message]


class WelcomeData(Struct):
    """Always the first message, without id."""

    session: str
    topics: Annotated[dict[str, Verdict], Meta(description="Topic -> verdict on the cursor given.")]


class HeartbeatData(Struct):
    """Only moves the cursor of these topics."""

    topics: list[Topic]


class ByeData(Struct):
    """The server asks the client to reconnect."""

    retry_ms: int


class SubscribedData(Struct):
    """Answer to a subscribe request."""

    topics: dict[str, Verdict]


class UnsubscribedData(Struct):
    """Answer to an unsubscribe request: the topics that were subscribed and no longer are."""

    topics: list[Topic]


class SnapshotData(Struct):
    """Full hot state of a topic: the fields of a poll or a map, or only its ids and `status` `unknown`."""

    status: Literal["unknown", "pending", "open", "closed", "live", "finished"]


class Subscribe(Struct, tag_field="op", tag="subscribe"):
    """Start following topics, together at most 64 on a connection."""

    topics: list[Topic]
    cursor: str | None = None
    types: Annotated[list[str], Meta(description="Event types to receive; empty: all. State kinds come always.")] = []
    ref: str | int | None = None


class Unsubscribe(Struct, tag_field="op", tag="unsubscribe"):
    """Stop following topics."""

    topics: list[Topic]
    ref: str | int | None = None


class Accepted(Struct):
    """What became of the items of a body."""

    accepted: int
    duplicates: int


class ItemProblem(Struct):
    """What is wrong with one item of a body."""

    index: int
    path: str
    reason: str


class Problem(Struct):
    """RFC 9457 problem."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[ItemProblem] = []


class Readiness(Struct):
    """State of the service and of each dependency."""

    status: Literal["ready", "unready"]
    checks: dict[str, str]
