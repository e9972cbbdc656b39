"""Reducing in batches: however the log is cut, the states, facts and last messages are the same."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from consumers.batch import BatchReducer, Decoded, Limits, Outcome, State, decode, topics_needed, voters_needed
from consumers.reducers.poll import Poll
from core import keys
from core.events import Entry, EntryKind
from core.names import match_topic, poll_topic
from core.position import EntryId

LIMITS = Limits(map_idle_ms=6 * 3600 * 1000, final_retention_s=3600)


class Script:
    """Builds a log in memory."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.ordinals = {"vote": 0, "other": 0}

    def add(self, kind: EntryKind, topic: str, body: dict[str, Any]) -> None:
        group = "vote" if kind == "vote" else "other"
        self.ordinals[group] += 1
        position = EntryId(1000 + len(self.entries) // 3, len(self.entries) % 3)
        self.entries.append(
            Entry(position, kind, topic, 5_000_000 + len(self.entries), "c", self.ordinals[group], _json(body))
        )


def _json(body: dict[str, Any]) -> bytes:
    return msgspec.json.encode(body)


def run(entries: list[Entry], cuts: set[int]) -> tuple[dict[str, State], list[Outcome]]:
    """Reduce a log cut after the given indexes, with priors kept as the voters' hash would."""
    states: dict[str, State] = {}
    stored: dict[str, dict[str, str]] = {}
    outcomes: list[Outcome] = []
    batch: list[Decoded] = []
    ordinals = (0, 0)
    for index, entry in enumerate(entries):
        batch.append(decode(entry))
        if index not in cuts and index != len(entries) - 1:
            continue
        assert set(topics_needed(batch)) >= {item.entry.topic for item in batch}
        priors = {
            topic: {voter: stored[topic][voter] for voter in voters if voter in stored.get(topic, {})}
            for topic, voters in voters_needed(batch).items()
        }
        outcome = BatchReducer(0, 1, states, priors, LIMITS, ordinals).reduce(batch)
        for topic in priors.keys() | stored.keys():
            store(outcome, topic, stored.setdefault(topic, {}))
        ordinals = (outcome.vote_ordinal, outcome.event_ordinal)
        outcomes.append(outcome)
        batch = []
    return states, outcomes


def store(outcome: Outcome, topic: str, voters: dict[str, str]) -> None:
    """What the commands of a batch make of a poll's voters."""
    for name, key, *words in outcome.commands:
        if key != keys.voters(0, topic):
            continue
        if name == "UNLINK":
            voters.clear()
        else:
            assert name == "HSET"
            pairs = zip(words[::2], words[1::2], strict=True)
            voters.update((voter.hex(), str(option)) for voter, option in pairs if isinstance(voter, bytes))


actions = st.lists(
    st.one_of(
        st.tuples(
            st.just("vote"), st.sampled_from(["p1", "p2", "nope"]), st.sampled_from("abz"), st.sampled_from("wxyz")
        ),
        st.tuples(st.just("define"), st.sampled_from(["p1", "p2"]), st.sampled_from(["first", "last", "unlimited"])),
        st.tuples(st.just("close"), st.sampled_from(["p1", "p2"])),
        st.tuples(st.just("round"), st.integers(0, 13), st.integers(0, 13)),
        st.tuples(st.just("result"), st.integers(0, 13), st.integers(0, 13)),
        st.tuples(st.just("live")),
    ),
    min_size=1,
    max_size=40,
)


def script(steps: list[tuple[Any, ...]]) -> list[Entry]:
    log = Script()
    for number, step in enumerate(steps):
        match step:
            case "vote", poll_id, option, voter:
                body = {"event_id": f"e{number}", "poll_id": poll_id, "option": option, "voter": f"{ord(voter):016x}"}
                log.add("vote", poll_topic(poll_id), body)
            case "define", poll_id, voting:
                options = [{"id": "a", "label": "A"}, {"id": "b", "label": "B"}]
                body = {"poll_id": poll_id, "title": "t", "options": options, "voting": voting}
                log.add("poll", poll_topic(poll_id), body)
            case "close", poll_id:
                log.add("close", poll_topic(poll_id), {"reason": "request"})
            case kind, *scores:
                type_ = {"round": "round_end", "result": "map_result", "live": "going_live"}[kind]
                data = {f"team{i}": {"name": f"T{i}", "score": score} for i, score in enumerate(scores, 1)}
                body = {"event_id": f"e{number}", "match_id": "m", "map_id": "0", "type": type_, "data": data}
                log.add("match", match_topic("m", "0"), body)
    return log.entries


def final_messages(outcomes: list[Outcome]) -> dict[tuple[str, str], bytes]:
    return {(m.topic, m.kind): m.data for outcome in outcomes for m in outcome.messages if m.is_state}


def events(outcomes: list[Outcome]) -> list[tuple[int, int, int, str]]:
    return [(m.ms, m.seq, m.k, m.kind) for outcome in outcomes for m in outcome.messages if not m.is_state]


@given(actions, st.sets(st.integers(0, 40)))
def test_the_cut_into_batches_changes_nothing(steps: list[tuple[Any, ...]], cuts: set[int]) -> None:
    entries = script(steps)
    whole, whole_out = run(entries, set())
    pieces, pieces_out = run(entries, cuts)
    assert pieces == whole
    assert final_messages(pieces_out) == final_messages(whole_out)
    assert events(pieces_out) == events(whole_out)
    assert [f for o in pieces_out for f in o.facts] == [f for o in whole_out for f in o.facts]
    assert sum(o.votes for o in pieces_out) == sum(o.votes for o in whole_out)
    assert sum(o.dead for o in pieces_out) == sum(o.dead for o in whole_out)


@given(actions)
def test_every_vote_is_applied_or_dead_and_positions_never_repeat(steps: list[tuple[Any, ...]]) -> None:
    entries = script(steps)
    _, outcomes = run(entries, set(range(0, 40, 3)))
    votes = sum(entry.kind == "vote" for entry in entries)
    assert sum(o.votes + o.dead_votes for o in outcomes) == votes
    assert sum(o.gaps for o in outcomes) == 0
    places = [(m.ms, m.seq, m.k) for o in outcomes for m in o.messages]
    assert places == sorted(set(places))


def test_the_tally_of_a_batch_carries_the_oldest_receipt_and_the_last_votes_position() -> None:
    entries = script([("define", "p1", "first"), ("vote", "p1", "a", "w"), ("vote", "p1", "b", "x")])
    _, outcomes = run(entries, {0})
    tally = outcomes[1].messages[-1]
    assert (tally.kind, tally.k) == ("tally", 1)
    assert tally.received_us == entries[1].received_us
    assert (tally.ms, tally.seq) == entries[2].id


def test_a_correction_reaches_readers_and_leaves_the_live_state_alone() -> None:
    """A correction of round 1 after round 3 would otherwise be taken for a restore to round 1."""
    script = Script()
    topic = match_topic("m", "1")

    def event(number: int, data: dict[str, Any], **more: Any) -> None:
        body = {"event_id": f"e{number}", "match_id": "m", "map_id": "1", "type": "round_end", "data": data, **more}
        script.add("match", topic, body)

    for rounds in (1, 2, 3):
        event(rounds, {"team1": {"score": rounds}, "team2": {"score": 0}})
    before, _ = run(list(script.entries), set())
    event(4, {"team1": {"score": 0}, "team2": {"score": 1}}, corrects="e1")
    after, outcomes = run(script.entries, {2})
    assert _json(after[topic].view()) == _json(before[topic].view())  # type: ignore[union-attr]
    [message] = outcomes[1].messages
    assert (message.kind, message.is_state, message.data) == ("round_end", False, script.entries[3].body)
    assert outcomes[1].facts == []
    stored = [command for command in outcomes[1].commands if command[0] == "HSET"]
    assert stored[0][3] == f"1.{script.entries[3].id.ms}.{script.entries[3].id.seq}", "the topic has a new event"


def test_a_correction_of_a_match_that_nobody_knows_any_more_creates_no_state() -> None:
    script = Script()
    body = {"event_id": "e2", "match_id": "m", "map_id": "1", "type": "round_end", "corrects": "e1"}
    script.add("match", match_topic("m", "1"), body)
    states, [outcome] = run(script.entries, set())
    assert (states, len(outcome.messages), outcome.commands) == ({}, 1, [])


def test_entries_that_ingest_would_not_write_are_dead_and_stop_nothing() -> None:
    log = Script()
    entries = script([("define", "p1", "first"), ("vote", "p1", "a", "w"), ("round", 1, 0)])
    log.entries, log.ordinals = entries, {"vote": 1, "other": 2}
    vote = {"event_id": "e", "poll_id": "p1", "option": "a", "voter": "twitch:12345"}
    log.add("vote", poll_topic("p1"), vote)
    log.add("vote", poll_topic("p2"), {**vote, "voter": "0" * 16})
    log.add("match", "match.m", {"event_id": "e", "match_id": "m", "map_id": "0", "type": "round_end"})
    deep = b'{"data":' + b"[" * 100_000
    log.entries.append(Entry(EntryId(9000, 0), "match", match_topic("m", "0"), 1, "c", 4, deep))
    states, [outcome] = run(log.entries, set())
    assert (outcome.votes, outcome.dead, outcome.dead_votes) == (1, 4, 2)
    assert set(states) == {"poll.p1", "match.m.0", "match.m.series"}
    assert all("MAXLEN" in command for command in outcome.commands if command[0] == "XADD")


def test_an_event_long_after_the_end_does_not_keep_the_ids_of_a_map_for_ever() -> None:
    entries = script([("round", 13, 0), ("result", 13, 0), ("round", 13, 1)])
    _, outcomes = run(entries, {0, 1, 2})
    expiring = [[c[1] for c in o.commands if c[0] == "EXPIRE" and str(c[1]).startswith("seen:")] for o in outcomes]
    assert expiring == [[], ["seen:{s00}:match.m.0"], ["seen:{s00}:match.m.0"]]


def test_what_a_prediction_took_is_told() -> None:
    entries = script([("round", 1, 0), ("vote", "nope", "a", "w"), ("round", 2, 0)])
    _, [outcome] = run(entries, set())
    assert len(outcome.predictions_s) == 2
    assert all(took > 0 for took in outcome.predictions_s)


def test_a_poll_defined_after_its_closing_begins_another_life() -> None:
    """Whoever voted before may vote again, also where both lives are one batch."""
    steps: list[tuple[Any, ...]] = [
        ("define", "p1", "first"), ("vote", "p1", "a", "x"), ("close", "p1"), ("vote", "p1", "a", "y"),
        ("define", "p1", "first"), ("vote", "p1", "b", "x"),
    ]  # fmt: skip
    entries = script(steps)
    for cuts in (set(), {3}, {2, 4}, set(range(len(entries)))):
        states, outcomes = run(entries, cuts)
        poll = states[poll_topic("p1")]
        assert isinstance(poll, Poll)
        assert (poll.status, poll.applied, poll.voters, poll.rejected) == ("open", 1, 1, {})
        assert sum(outcome.dead for outcome in outcomes) == 0
