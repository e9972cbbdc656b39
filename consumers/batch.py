"""One batch of log entries → what to write: pure, no I/O, no clock of its own.

`reduce_batch` changes the given states in place and returns an `Outcome`: the messages and facts of the output entry
and the Redis commands that store the states. The caller applies all of it in one script or throws the states away.

Hot path: per vote one dict look-up for the prior vote, `Poll.vote`, and one list append (loadtests.bench_state).
"""

import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence

import msgspec
from msgspec import UNSET, Struct

from consumers.reducers import poll as poll_reducer
from consumers.reducers.cs2_map import Cs2Map, RoundResult
from consumers.reducers.poll import Poll
from consumers.reducers.series import Series
from core import keys
from core.errors import Poison
from core.events import (
    Entry,
    MatchEvent,
    PollDefinition,
    Vote,
    decode_change,
    decode_match_event,
    decode_poll,
    decode_vote,
)
from core.names import SERIES, match_topic, parse_topic
from core.updates import Fact, MapState, Message, PollState, Prediction, Round, SeriesState

State = Poll | Cs2Map | Series
Argument = str | bytes | int
Command = list[Argument]

DEDUP_GRACE_S = 3600
"""How long after its end a match still recognises repeated events."""

VOTER_BYTES = 8
"""Of a voter's keyed hash (`core.digest.voter_hash`), which the log carries as hex digits."""

DEAD_MAX = 100_000
"""Dead letters kept per shard. An operator is alarmed by the first; a hundred thousand are no better evidence."""

_encode = msgspec.json.Encoder().encode
_pack = msgspec.msgpack.Encoder().encode
_unpack_poll = msgspec.msgpack.Decoder(Poll).decode
_unpack_map = msgspec.msgpack.Decoder(Cs2Map).decode
_unpack_series = msgspec.msgpack.Decoder(Series).decode


def is_ended(state: State | None) -> bool:
    """Whether this is the final state of a topic, which Redis keeps for the retention only."""
    return state is not None and state.status in ("closed", "finished")


class Limits(Struct, frozen=True):
    """Settings that reducing needs."""

    map_idle_ms: int
    final_retention_s: int


class Decoded(Struct, frozen=True, gc=False):
    """An entry with its body read, or with the reason why it cannot be (`poison`)."""

    entry: Entry
    body: Vote | MatchEvent | PollDefinition | None
    due_ms: int | None = None
    poison: str = ""


class Outcome(Struct):
    """What a batch gives. `votes` and `dead_votes` count votes by what became of them."""

    messages: list[Message] = []
    facts: list[Fact] = []
    commands: list[Command] = []
    votes: int = 0
    dead: int = 0
    dead_votes: int = 0
    vote_ordinal: int = 0
    event_ordinal: int = 0
    predictions_s: list[float] = []
    """What each prediction took: reducing the event that changed it, and its message."""
    gaps: int = 0
    """Entries the ordinals show to be missing from the log."""


def decode(entry: Entry) -> Decoded:
    """Read the body of an entry; a body that is not what its header says becomes `poison`."""
    try:
        match entry.kind:
            case "vote":
                return _checked(entry, decode_vote(entry.body))
            case "match":
                return _checked(entry, decode_match_event(entry.body))
            case "poll":
                return _checked(entry, decode_poll(entry.body))
            case _:
                return Decoded(entry, None, decode_change(entry.body).due_ms)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        return Decoded(entry, None, poison=f"body: {error}"[:300])


def _checked(entry: Entry, body: Vote | MatchEvent | PollDefinition) -> Decoded:
    """What the types leave open. Ingest writes no such entries; one by somebody else must not stop the shard."""
    match body:
        case Vote():
            topic, is_sound = f"poll.{body.poll_id}", len(bytes.fromhex(body.voter)) == VOTER_BYTES
        case MatchEvent():
            topic, is_sound = match_topic(body.match_id, body.map_id), True
        case _:
            topic, is_sound = f"poll.{body.poll_id}", True
    if topic != entry.topic:
        return Decoded(entry, None, poison=f"body of {topic} under another topic")
    return Decoded(entry, body) if is_sound else Decoded(entry, None, poison="voter is no hash of 8 bytes")


def dead_letter(shard: int, entry_id: str | bytes, reason: str, kept: Sequence[Argument]) -> Command:
    """Put what is `kept` of an entry (field, value, …) aside, with the reason."""
    return [
        "XADD", keys.dead(shard), "MAXLEN", "~", DEAD_MAX, "*", "group", keys.STATE_GROUP, "id", entry_id,
        "reason", reason, *kept,
    ]  # fmt: skip


def topics_needed(batch: Sequence[Decoded]) -> set[str]:
    """Topics whose state `reduce_batch` may touch."""
    needed: set[str] = set()
    for item in batch:
        needed.add(item.entry.topic)
        if isinstance(item.body, MatchEvent):
            needed.add(match_topic(item.body.match_id, SERIES))
            picked = _picked_map(item.body)
            if picked:
                needed.add(picked)
    return needed


def _picked_map(event: MatchEvent) -> str | None:
    """Topic of the map that a `map_picked` names (its map_number counts from 1)."""
    number = event.data.get("map_number")
    if event.map_id != SERIES or event.type != "map_picked" or not isinstance(number, int) or not 0 < number <= 20:
        return None
    return match_topic(event.match_id, str(number - 1))


def voters_needed(batch: Sequence[Decoded]) -> dict[str, set[str]]:
    """Topic → voters whose prior vote `reduce_batch` must know."""
    needed: dict[str, set[str]] = {}
    for item in batch:
        if type(item.body) is Vote:
            needed.setdefault(item.entry.topic, set()).add(item.body.voter)
    return needed


def unpack_state(topic: str, packed: bytes) -> State:
    """State of a topic from its `priv` field. Raises Poison when it cannot be read."""
    try:
        if topic.startswith("poll."):
            return _unpack_poll(packed)
        return _unpack_series(packed) if topic.endswith(f".{SERIES}") else _unpack_map(packed)
    except msgspec.DecodeError as error:
        raise Poison(f"state of {topic} cannot be read") from error


class BatchReducer:
    """Reduces one batch of one shard. `states` is the owner's cache: present topics only, changed in place."""

    def __init__(
        self,
        shard: int,
        epoch: int,
        states: MutableMapping[str, State],
        priors: Mapping[str, dict[str, str]],
        limits: Limits,
        ordinals: tuple[int, int] = (0, 0),
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`priors`: topic → voter → option of the counted vote. `ordinals`: last vote's and last other entry's."""
        self._shard = shard
        self._epoch = epoch
        self._states = states
        self._priors = priors
        self._limits = limits
        self._timer = timer  # for the metrics; no outcome depends on it
        self._out = Outcome(vote_ordinal=ordinals[0], event_ordinal=ordinals[1])
        self._voted: dict[str, Entry] = {}  # topic → last vote's entry of this batch
        self._oldest_us: dict[str, int] = {}  # topic → receipt of the oldest vote behind the coming tally
        self._chosen: dict[str, dict[str, str]] = {}  # topic → voter → option to store
        self._touched: dict[str, Entry] = {}

    def reduce(self, batch: Sequence[Decoded]) -> Outcome:
        """Reduce a batch, in the order of the log."""
        for item in batch:
            self._count_ordinal(item.entry)
            if type(item.body) is Vote and not item.poison:
                self._vote(item.entry, item.body)
                continue
            try:
                self._other(item)
            except Poison as error:
                self._bury(item.entry, str(error))
        for topic, entry in self._voted.items():
            self._tally(topic, entry, 1, self._oldest_us[topic])
        self._store()
        self._out.messages.sort(key=lambda message: (message.ms, message.seq, message.k))
        return self._out

    def _count_ordinal(self, entry: Entry) -> None:
        out = self._out
        if entry.kind == "vote":
            out.gaps += max(0, entry.ordinal - out.vote_ordinal - 1)
            out.vote_ordinal = entry.ordinal
        else:
            out.gaps += max(0, entry.ordinal - out.event_ordinal - 1)
            out.event_ordinal = entry.ordinal

    # -- votes

    def _vote(self, entry: Entry, vote: Vote) -> None:
        topic = entry.topic
        state = self._states.get(topic)
        if type(state) is not Poll:
            self._bury(entry, "vote for a poll that the log does not know")
            return
        priors = self._priors[topic]
        if state.vote(vote, priors.get(vote.voter)):
            priors[vote.voter] = vote.option
            self._chosen.setdefault(topic, {})[vote.voter] = vote.option
        state.received_ms = entry.received_us // 1000
        self._out.votes += 1
        if topic not in self._voted:
            self._oldest_us[topic] = entry.received_us
        self._voted[topic] = self._touched[topic] = entry

    def _tally(self, topic: str, entry: Entry, k: int, received_us: int) -> None:
        state = self._states[topic]
        assert isinstance(state, Poll)
        self._emit(entry, k, topic, "tally", True, _encode(state.tally()), received_us)

    # -- everything else

    def _other(self, item: Decoded) -> None:
        if item.poison:
            raise Poison(item.poison)
        body, entry = item.body, item.entry
        if isinstance(body, MatchEvent):
            self._match_event(entry, body)
        elif isinstance(body, PollDefinition):
            self._define(entry, body)
        elif entry.kind == "idle":
            self._end_idle(entry, item.due_ms)
        else:
            self._open_or_close(entry)

    def _define(self, entry: Entry, definition: PollDefinition) -> None:
        state = self._states.get(entry.topic)
        if state is None:
            self._states[entry.topic] = state = poll_reducer.create(definition, entry.id.ms)
        elif not isinstance(state, Poll):
            raise Poison("definition for a topic that is no poll")
        elif not state.redefine(definition, entry.id.ms):
            # Ingest defines a closed poll only once its definition has expired: the id begins another life. The final
            # state may outlive the definition, as late votes renew its retention.
            self._states[entry.topic] = state = poll_reducer.create(definition, entry.id.ms)
            self._priors.get(entry.topic, {}).clear()
            self._add("PERSIST", keys.state(self._shard, entry.topic))
            self._add("PERSIST", keys.definition(self._shard, entry.topic))
        self._poll_changed(entry, state, is_definition=True)

    def _open_or_close(self, entry: Entry) -> None:
        state = self._states.get(entry.topic)
        if not isinstance(state, Poll):
            raise Poison(f"{entry.kind} for a poll that the log does not know")
        if state.open() if entry.kind == "open" else state.close():
            self._poll_changed(entry, state, is_definition=False)

    def _poll_changed(self, entry: Entry, state: Poll, *, is_definition: bool) -> None:
        topic = entry.topic
        state.received_ms = entry.received_us // 1000
        # The tally of this change is absolute, so it also tells of the batch's votes before it.
        received_us = entry.received_us
        if self._voted.pop(topic, None) is not None:
            received_us = min(received_us, self._oldest_us.pop(topic))
        if is_definition:
            self._emit(entry, 1, topic, "poll", True, _encode(state.described()), entry.received_us)
        self._tally(topic, entry, 2, received_us)
        self._touched[topic] = entry
        definition = state.definition
        self._out.facts.append(
            PollState(
                entry.id.ms, entry.id.seq, 1, definition.poll_id, state.status, definition.title, definition.voting,
                definition.match_id or "", {option.id: option.label for option in definition.options}, entry.id.ms,
            )
        )  # fmt: skip
        self._set_timer("open", topic, state.opens_ms)
        self._set_timer("close", topic, state.closes_ms)
        if state.status == "closed":
            self._end(topic)

    def _match_event(self, entry: Entry, event: MatchEvent) -> None:
        topic = entry.topic
        self._emit(entry, 1, topic, event.type, False, entry.body, entry.received_us)
        if event.corrects is not UNSET:
            self._corrected(entry, topic)
            return
        series = self._series(event.match_id)
        if event.map_id == SERIES:
            before = series.status
            changed = series.apply(event)
            self._match_touched(entry, topic, series, before, changed, 2)
            picked = _picked_map(event)
            if picked:
                self._name_picked(entry, picked, series)
            return
        state = self._states.get(topic)
        if not isinstance(state, Cs2Map):
            name = series.picks.get(int(event.map_id), "") if event.map_id.isdecimal() else ""
            state = Cs2Map(event.match_id, event.map_id, name, name1=series.name1, name2=series.name2)
            self._states[topic] = state
        before, started_s = state.status, self._timer()
        change = state.apply(event)
        applied_s = self._timer()
        self._match_touched(entry, topic, state, before, change.state, 2)
        self._rounds(entry, event, change.rounds, change.void)
        if change.prediction:
            predicting_s = self._timer()
            self._predict(entry, topic, state)
            self._out.predictions_s.append(applied_s - started_s + self._timer() - predicting_s)
        if event.type == "map_result" and change.state and series.map_finished(event):
            self._match_touched(entry, match_topic(event.match_id, SERIES), series, series.status, True, 4)

    def _corrected(self, entry: Entry, topic: str) -> None:
        """A correction is an event like any other to readers, and changes no state: it may be of a round long past,
        which the reducers would take for a restore. The topic's position moves all the same: it has a new event."""
        state = self._states.get(topic)
        if isinstance(state, Cs2Map | Series):
            self._match_touched(entry, topic, state, state.status, False, 2)

    def _series(self, match_id: str) -> Series:
        topic = match_topic(match_id, SERIES)
        state = self._states.get(topic)
        if not isinstance(state, Series):
            self._states[topic] = state = Series(match_id)
        return state

    def _name_picked(self, entry: Entry, topic: str, series: Series) -> None:
        """A picked map appears at once, pending, with its name and the teams."""
        map_id = parse_topic(topic).map_id
        name = series.picks.get(int(map_id), "")
        state = self._states.get(topic)
        if not isinstance(state, Cs2Map):
            state = Cs2Map(series.match_id, map_id)
            self._states[topic] = state
        elif state.status != "pending" or state.map_name == name:
            return
        state.map_name, state.name1, state.name2 = name, series.name1, series.name2
        self._match_touched(entry, topic, state, "pending", True, 3)

    def _match_touched(
        self, entry: Entry, topic: str, state: Cs2Map | Series, before: str, changed: bool, k: int
    ) -> None:
        """Book-keeping common to every event of a map or series; `changed` = its visible state did."""
        if not state.touched_ms:  # the first time that this topic is stored
            changed = True
            map_id = SERIES if isinstance(state, Series) else state.map_id
            self._add("SADD", keys.maps(self._shard, state.match_id), map_id)
        state.touched_ms = entry.id.ms
        self._touched[topic] = entry
        if changed:
            state.received_ms = entry.received_us // 1000
            self._emit(entry, k, topic, "state", True, _encode(state.view()), entry.received_us)
            if isinstance(state, Cs2Map):
                self._out.facts.append(_map_fact(entry, k, state))
            else:
                self._out.facts.append(_series_fact(entry, k, state))
        if state.status == "finished":
            if before != "finished":
                self._set_timer("idle", topic, None)
            self._end(topic)  # each time: an event long after the end brings the dedup set back
        else:
            if before == "finished":
                self._reopen(topic)
            self._set_timer("idle", topic, entry.id.ms + self._limits.map_idle_ms)

    def _rounds(self, entry: Entry, event: MatchEvent, rounds: list[RoundResult], void: list[RoundResult]) -> None:
        for is_void, results in ((True, void), (False, rounds)):
            for result in results:
                self._out.facts.append(
                    Round(
                        entry.id.ms, entry.id.seq, 2, event.match_id, event.map_id, result.round_no,
                        result.winner or "", result.reason, result.score1, result.score2, is_void, entry.id.ms,
                    )
                )  # fmt: skip

    def _predict(self, entry: Entry, topic: str, state: Cs2Map) -> None:
        data = state.prediction()
        if data is None or state.p_team1 is None:
            return
        self._emit(entry, 3, topic, "prediction", True, _encode(data), entry.received_us)
        round_no = state.score1 + state.score2
        self._out.facts.append(
            Prediction(
                entry.id.ms,
                entry.id.seq,
                3,
                state.match_id,
                state.map_id,
                round_no,
                state.p_team1,
                state.model,
                entry.id.ms,
            )
        )

    def _end_idle(self, entry: Entry, due_ms: int | None) -> None:
        state = self._states.get(entry.topic)
        if not isinstance(state, Cs2Map | Series):
            raise Poison("idle end of a map that the log does not know")
        # An event that reached the log before this entry keeps the map alive; its own timer is set already.
        if due_ms is not None and state.touched_ms + self._limits.map_idle_ms > due_ms:
            return
        before, touched_ms = state.status, state.touched_ms
        self._match_touched(entry, entry.topic, state, before, state.end_idle(), 1)
        state.touched_ms = touched_ms

    # -- output

    def _emit(self, entry: Entry, k: int, topic: str, kind: str, is_state: bool, data: bytes, received_us: int) -> None:
        self._out.messages.append(
            Message(topic, kind, is_state, entry.id.ms, entry.id.seq, k, data, received_us, entry.correlation)
        )

    def _bury(self, entry: Entry, reason: str) -> None:
        self._out.dead += 1
        self._out.dead_votes += entry.kind == "vote"
        kept: list[Argument] = ["kind", entry.kind, "topic", entry.topic, "d", entry.body]
        self._out.commands.append(dead_letter(self._shard, str(entry.id), reason, kept))

    def _add(self, *command: Argument) -> None:
        self._out.commands.append(list(command))

    def _set_timer(self, action: str, topic: str, due_ms: int | None) -> None:
        timers, member = keys.timers(self._shard), f"{action} {topic}"
        if due_ms is None:
            self._add("ZREM", timers, member)
        else:
            self._add("ZADD", timers, due_ms, member)

    def _end(self, topic: str) -> None:
        """Clean up after the end: the final state stays for its retention, what only served counting goes."""
        retention_s = self._limits.final_retention_s
        if topic.startswith("poll."):
            self._chosen.pop(topic, None)
            self._add("UNLINK", keys.voters(self._shard, topic))
            self._add("EXPIRE", keys.definition(self._shard, topic), retention_s)
        else:
            self._add("EXPIRE", keys.seen(self._shard, topic), DEDUP_GRACE_S)

    def _reopen(self, topic: str) -> None:
        self._add("PERSIST", keys.seen(self._shard, topic))
        self._add("PERSIST", keys.state(self._shard, topic))

    def _store(self) -> None:
        retention_s = self._limits.final_retention_s
        for topic, entry in self._touched.items():
            state = self._states[topic]
            name = keys.state(self._shard, topic)
            position = f"{self._epoch}.{entry.id.ms}.{entry.id.seq}"
            self._add("HSET", name, "pos", position, "data", _encode(state.snapshot()), "priv", _pack(state))
            self._add("ZADD", keys.topics(self._shard), entry.id.ms, topic)
            if is_ended(state):
                self._add("EXPIRE", name, retention_s)
        for topic, chosen in self._chosen.items():
            name = keys.voters(self._shard, topic)
            pairs: list[Argument] = [
                part for voter, option in chosen.items() for part in (bytes.fromhex(voter), option)
            ]
            for start in range(0, len(pairs), _HSET_WORDS_MAX):
                self._add("HSET", name, *pairs[start : start + _HSET_WORDS_MAX])


_HSET_WORDS_MAX = 4000
"""Words of one command: Lua's unpack takes fewer than 8000."""


def _map_fact(entry: Entry, k: int, state: Cs2Map) -> MapState:
    return MapState(
        entry.id.ms, entry.id.seq, k, state.match_id, state.map_id, state.map_name, state.status, state.winner or "",
        state.score1 + state.score2, state.name1, state.name2, state.score1, state.score2, entry.id.ms,
    )  # fmt: skip


def _series_fact(entry: Entry, k: int, state: Series) -> SeriesState:
    return SeriesState(
        entry.id.ms, entry.id.seq, k, state.match_id, state.status, state.winner or "", state.num_maps or 0,
        state.name1, state.name2, state.score1, state.score2, entry.id.ms,
    )  # fmt: skip
