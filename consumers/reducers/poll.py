"""Reducer of one poll. Hot path: `Poll.vote` runs once per vote (budget 5 µs, see loadtests.bench_state).

Whether a vote is early or late is decided by its place in the log, relative to the `open` and `close` entries, never
by a time stamp. Counting rules (CONTRACT "Messages", tally):

    first      the first vote of a voter counts, later ones are rejected as already_voted
    last       a later vote replaces the voter's earlier one (`replaced` counts those)
    unlimited  every vote counts

Invariants, tested with properties: applied = sum(options) + sum(rejected) (+ replaced for `last`); for `last`
sum(options) = voters; the digest covers every applied vote, counted or rejected.
"""

from typing import Literal

import msgspec
from msgspec import Struct

from core.digest import MASK, format_digest, vote_hash
from core.events import PollDefinition, Vote

Status = Literal["pending", "open", "closed"]


class Poll(Struct):
    """State of one poll; `counts` has a key for each option, `rejected` one for each reason that occurred."""

    definition: PollDefinition
    status: Status
    counts: dict[str, int]
    voters: int = 0
    applied: int = 0
    replaced: int = 0
    rejected: dict[str, int] = {}
    digest: int = 0
    received_ms: int = 0

    @property
    def opens_ms(self) -> int | None:
        """When a timer must open the poll; None when it need not."""
        opens_at = self.definition.opens_at
        return int(opens_at.timestamp() * 1000) if opens_at and self.status == "pending" else None

    @property
    def closes_ms(self) -> int | None:
        """When a timer must close the poll; None when it need not."""
        closes_at = self.definition.closes_at
        return int(closes_at.timestamp() * 1000) if closes_at and self.status != "closed" else None

    def redefine(self, definition: PollDefinition, now_ms: int) -> bool:
        """Take a new definition; False when the poll is closed, which nothing changes any more."""
        if self.status == "closed":
            return False
        counts = {option.id: self.counts.get(option.id, 0) for option in definition.options}
        # An option that got votes never goes: ingest forbids it, and a race lost there must not lose votes here.
        counts.update((option, count) for option, count in self.counts.items() if count and option not in counts)
        self.definition, self.counts = definition, counts
        if self.applied == 0 or self.status == "pending":
            self.status = _initial_status(definition, now_ms)
        return True

    def open(self) -> bool:
        """Open a pending poll; False when it is not pending."""
        if self.status != "pending":
            return False
        self.status = "open"
        return True

    def close(self) -> bool:
        """Close; False when it is closed already."""
        if self.status == "closed":
            return False
        self.status = "closed"
        return True

    def vote(self, vote: Vote, prior: str | None) -> bool:
        """Apply one vote; `prior` is the option this voter's counted vote names, if any.

        Returns True when the voter's counted vote now names `vote.option`, so that the caller stores it.
        """
        return self.count(vote.option, vote_hash(vote.event_id, vote.option), prior)

    def count(self, option: str, hashed: int, prior: str | None) -> bool:
        """`vote`, for a vote of which the archive knows the hash only."""
        self.applied += 1
        self.digest = (self.digest + hashed) & MASK
        if self.status != "open":
            return self._reject("late" if self.status == "closed" else "early")
        if option not in self.counts:
            return self._reject("unknown_option")
        voting = self.definition.voting
        if prior is None:
            self.voters += 1
        elif voting == "first":
            return self._reject("already_voted")
        elif voting == "last":
            self.replaced += 1
            self.counts[prior] -= 1
        self.counts[option] += 1
        return True

    def _reject(self, reason: str) -> bool:
        self.rejected[reason] = self.rejected.get(reason, 0) + 1
        return False

    def tally(self) -> dict[str, object]:
        """Data of a `tally` message."""
        data: dict[str, object] = {
            "poll_id": self.definition.poll_id,
            "status": self.status,
            "options": self.counts,
            "total": sum(self.counts.values()),
            "voters": self.voters,
            "applied": self.applied,
            "rejected": self.rejected,
            "digest": format_digest(self.digest),
            "received_ms": self.received_ms,
        }
        if self.definition.voting == "last":
            data["replaced"] = self.replaced
        return data

    def described(self) -> dict[str, object]:
        """Data of a `poll` message: the definition and the status."""
        data: dict[str, object] = msgspec.to_builtins(self.definition)
        return {**data, "status": self.status}

    def snapshot(self) -> dict[str, object]:
        """The whole hot state: definition and tally side by side.

        Both have an `options`; here it is the tally's (id -> votes), and the definition stands whole beside it.
        """
        definition: dict[str, object] = msgspec.to_builtins(self.definition)
        return {**definition, **self.tally(), "definition": definition}


def create(definition: PollDefinition, now_ms: int) -> Poll:
    """A new poll at the log's time `now_ms`."""
    return Poll(definition, _initial_status(definition, now_ms), {option.id: 0 for option in definition.options})


def _initial_status(definition: PollDefinition, now_ms: int) -> Status:
    opens_at = definition.opens_at
    return "pending" if opens_at is not None and opens_at.timestamp() * 1000 > now_ms else "open"
