"""From checked items to groups for the log: voters hashed, each item encoded once. Pure. Hot path (votes).

About 1.3 µs a vote, most of it the keyed hash and the encoding; `loadtests.bench_ingest` measures the whole way.
"""

from collections.abc import Iterable, Mapping

from core.digest import voter_hash
from core.events import MatchEvent, Vote, encode_json, header
from core.names import match_topic, poll_topic
from core.problem import ItemError
from ingest.append import Group
from ingest.decode import event_entry, invalid_items


def vote_faults(votes: Iterable[Vote], options: Mapping[str, frozenset[str]]) -> list[ItemError]:
    """Votes for polls or options that are not among `options` (poll id -> option ids)."""
    errors = []
    for index, vote in enumerate(votes):
        known = options.get(vote.poll_id)
        if known is None:
            errors.append(ItemError(index, "poll_id", "there is no such poll"))
        elif vote.option not in known:
            errors.append(ItemError(index, "option", "the poll has no such option"))
    return errors


def vote_groups(votes: Iterable[Vote], voter_key: bytes, received_us: int, correlation: str) -> list[Group]:
    """One group per poll, in the order of the body. From here on nobody knows who voted."""
    groups: dict[str, Group] = {}
    for vote in votes:
        poll_id = vote.poll_id
        group = groups.get(poll_id)
        if group is None:
            topic = poll_topic(poll_id)
            group = groups[poll_id] = Group("vote", topic, header("vote", topic, received_us, correlation))
        voter = voter_hash(voter_key, vote.voter)
        entry = encode_json(Vote(vote.event_id, poll_id, vote.option, voter, vote.ts, vote.source))
        group.items += (vote.event_id, entry)
        group.sources.append(vote.source)
    return list(groups.values())


def event_groups(events: Iterable[MatchEvent], received_us: int, correlation: str) -> list[Group]:
    """One group per topic, in the order of the body. Raises Problem 422 for events too large or too deep."""
    groups: dict[str, Group] = {}
    errors: list[ItemError] = []
    for index, event in enumerate(events):
        entry, fault = event_entry(event)
        if fault is not None:
            errors.append(ItemError(index, *fault))
            continue
        topic = match_topic(event.match_id, event.map_id)
        group = groups.get(topic)
        if group is None:
            group = groups[topic] = Group("match", topic, header("match", topic, received_us, correlation))
        group.items += (event.event_id, entry)
        group.sources.append(event.source)
    if errors:
        raise invalid_items(errors)
    return list(groups.values())
