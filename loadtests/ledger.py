"""What a sender knows: every acknowledged vote and event, counted on its own side of the wire. Pure.

    ledger = Ledger()
    ledger.add_votes(votes, accepted=7, duplicates=3)      # a body was answered with 202
    ledger.add_events(events, accepted=1, duplicates=0)
    ledger.lost_answer()                                   # an attempt without an answer; the same body is sent again

A body is added once for each 202 it got. The ledger itself recognises ids it has seen, so it knows what *should* have
been counted, whatever the answers say; `loadtests.verify` compares the two, and both with every other place.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from core.digest import MASK, event_hash, format_digest, vote_hash
from core.events import Vote


class PollBooks(Struct):
    """One poll's distinct votes."""

    votes: int = 0
    digest_sum: int = 0
    options: dict[str, int] = field(default_factory=dict)
    voters: set[str] = field(default_factory=set)

    @property
    def digest(self) -> str:
        """As the contract shows it."""
        return format_digest(self.digest_sum)


class Ledger(Struct):
    """The books of one sender. `events` maps match to its events' ids in the order of their acknowledgement."""

    polls: dict[str, PollBooks] = field(default_factory=dict)
    events: dict[str, list[str]] = field(default_factory=dict)
    acknowledged: int = 0
    """Items in bodies that were answered with 202, repeats included."""
    accepted: int = 0
    duplicates: int = 0
    """As the answers said."""
    lost_answers: int = 0
    """Attempts without an answer: what they stored, a repeat of the body found as duplicates."""
    unresolved: int = 0
    """Items of bodies given up on: nobody knows whether they were stored."""
    repeated: int = 0
    """Items that the ledger had seen acknowledged before: the deliberate repeats."""
    seen: set[int] = field(default_factory=set)

    def add_votes(self, votes: Sequence[Vote], accepted: int, duplicates: int) -> int:
        """A body of votes was acknowledged; returns how many of its votes are new to the ledger."""
        new = 0
        for vote in votes:
            if not self._is_new(vote.poll_id, vote.event_id):
                continue
            new += 1
            books = self.polls.get(vote.poll_id)
            if books is None:
                books = self.polls[vote.poll_id] = PollBooks()
            books.votes += 1
            books.digest_sum = (books.digest_sum + vote_hash(vote.event_id, vote.option)) & MASK
            books.options[vote.option] = books.options.get(vote.option, 0) + 1
            books.voters.add(vote.voter)
        self._answered(len(votes), new, accepted, duplicates)
        return new

    def add_events(self, events: Sequence[Mapping[str, Any]], accepted: int, duplicates: int) -> int:
        """A body of match events was acknowledged; returns how many are new to the ledger."""
        new = 0
        for event in events:
            match_id, event_id = event["match_id"], event["event_id"]
            # The dedup scope of the contract is the topic; here ids are unique within a match, which is stricter.
            if self._is_new(match_id, event_id):
                new += 1
                self.events.setdefault(match_id, []).append(event_id)
        self._answered(len(events), new, accepted, duplicates)
        return new

    def lost_answer(self) -> None:
        """An attempt got no answer, or one that does not say what was stored."""
        self.lost_answers += 1

    def give_up(self, items: int) -> None:
        """Stop repeating a body of which nobody knows what became."""
        self.unresolved += items

    @property
    def distinct(self) -> int:
        """Distinct items acknowledged: what must have been stored, once."""
        return sum(books.votes for books in self.polls.values()) + sum(map(len, self.events.values()))

    @property
    def votes(self) -> int:
        """Distinct votes acknowledged."""
        return sum(books.votes for books in self.polls.values())

    def save(self, path: Path) -> None:
        """Write everything but `seen`, which only a running sender needs."""
        path.write_bytes(msgspec.msgpack.encode(msgspec.structs.replace(self, seen=set())))

    def _is_new(self, scope: str, event_id: str) -> bool:
        key = event_hash(f"{scope}\0{event_id}")
        if key in self.seen:
            return False
        self.seen.add(key)
        return True

    def _answered(self, items: int, new: int, accepted: int, duplicates: int) -> None:
        self.acknowledged += items
        self.repeated += items - new
        self.accepted += accepted
        self.duplicates += duplicates


def load(path: Path) -> Ledger:
    """Read what `Ledger.save` wrote."""
    return msgspec.msgpack.decode(path.read_bytes(), type=Ledger)
