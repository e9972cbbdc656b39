"""The proof: does every place that counts agree with what the sender was told? Pure comparisons.

    checks = [*sender_checks(ledger), *hot_checks(ledger, hot), *archive_checks(ledger, cold), …]
    assert not differences(checks)

Every function takes the sender's `Ledger` and what one place believes (`loadtests.observe`, `loadtests.seen`) and
returns what it compared, agreements included, so that a table of them says what the proof consists of.
"""

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from loadtests.ledger import Ledger, PollBooks
from loadtests.observe import ColdPoll, HotPoll
from loadtests.seen import Seen


class Check(Struct, frozen=True):
    """One comparison. `expected` is the sender's side."""

    place: str
    what: str
    expected: str
    found: str

    @property
    def is_met(self) -> bool:
        """Whether both are the same."""
        return self.expected == self.found

    def __str__(self) -> str:
        return f"{self.place}: {self.what}: expected {self.expected}, found {self.found}"


def check(place: str, what: str, expected: object, found: object) -> Check:
    """A comparison of two values by what they look like."""
    return Check(place, what, str(expected), str(found))


def differences(checks: Iterable[Check]) -> list[str]:
    """What does not agree, as text."""
    return [str(one) for one in checks if not one.is_met]


def sender_checks(ledger: Ledger, refusals: Sequence[str] = ()) -> list[Check]:
    """The answers against the sender's own count."""
    answered = ledger.accepted + ledger.duplicates
    checks = [
        check("sender", "acknowledged = accepted + duplicates", ledger.acknowledged, answered),
        check("sender", "bodies refused", 0, len(refusals)),
        check("sender", "votes and events of unknown outcome", 0, ledger.unresolved),
    ]  # fmt: skip
    if ledger.lost_answers:  # what an unanswered attempt stored, its repeat found as duplicates
        checks.append(check("sender", "accepted <= distinct", True, ledger.accepted <= ledger.distinct))
    else:
        checks.append(check("sender", "accepted = distinct", ledger.distinct, ledger.accepted))
    return checks


def hot_checks(ledger: Ledger, hot: Mapping[str, HotPoll]) -> list[Check]:
    """Hot state against the sender, poll by poll. A poll of `loadtests.mix` has its counting rule in its id."""
    checks = []
    for poll_id, books in ledger.polls.items():
        found = hot.get(poll_id, HotPoll())
        checks += [
            check("hot state", f"{poll_id} digest", books.digest, found.digest),
            check("hot state", f"{poll_id} applied", books.votes, found.applied),
            check("hot state", f"{poll_id} voters", len(books.voters), found.voters),
            *_rule_checks(poll_id, books, found),
        ]
    return checks


def _rule_checks(poll_id: str, books: PollBooks, found: HotPoll) -> list[Check]:
    """What the counting rule makes of these votes, as far as it does not depend on their order."""
    voting, voters = poll_id.rpartition("-")[2], len(books.voters)
    counted = sum(found.options.values())
    if voting == "first":
        repeated = {"already_voted": books.votes - voters} if books.votes > voters else {}
        return [
            check("hot state", f"{poll_id} counted = voters", voters, counted),
            check("hot state", f"{poll_id} rejected", repeated, found.rejected),
        ]
    if voting == "last":
        return [
            check("hot state", f"{poll_id} counted = voters", voters, counted),
            check("hot state", f"{poll_id} replaced", books.votes - voters, found.replaced),
        ]
    if voting == "unlimited":
        return [check("hot state", f"{poll_id} options", _sorted(books.options), _sorted(found.options))]
    return [check("hot state", f"{poll_id} options + rejected", books.votes, counted + sum(found.rejected.values()))]


def archive_checks(ledger: Ledger, cold: Mapping[str, ColdPoll]) -> list[Check]:
    """ClickHouse's raw votes and its minutes against the sender."""
    checks = []
    for poll_id, books in ledger.polls.items():
        found, options = cold.get(poll_id, ColdPoll()), _sorted(books.options)
        checks += [
            check("ClickHouse", f"{poll_id} sum(vote_hash)", books.digest, found.digest),
            check("ClickHouse", f"{poll_id} rows", books.votes, found.rows),
            check("ClickHouse", f"{poll_id} distinct ids", books.votes, found.ids),
            check("ClickHouse", f"{poll_id} votes by option", options, _sorted(found.options)),
            check("ClickHouse", f"{poll_id} votes_per_minute", options, _sorted(found.minutes)),
        ]
    return checks


def event_checks(ledger: Ledger, archived: Mapping[str, Sequence[str]]) -> list[Check]:
    """Match events in ClickHouse: each once, in the order in which they were sent."""
    return [
        check("ClickHouse", f"{match_id} events in order", "all", _same(sent, archived.get(match_id, [])))
        for match_id, sent in ledger.events.items()
    ]


def subscriber_checks(ledger: Ledger, seen: Sequence[Seen]) -> list[Check]:
    """What all subscribers of one match and some polls ended up with, and how they got there."""
    sent = [event_id for events in ledger.events.values() for event_id in events]
    checks = [
        check("subscribers", "messages out of order", 0, sum(one.backwards for one in seen)),
        check("subscribers", "messages repeated", 0, sum(one.repeats for one in seen)),
        check("subscribers", "every event once and in order", _of(len(seen), seen), _of(_right(seen, sent), seen)),
    ]
    for poll_id, books in ledger.polls.items():
        watching = [one for one in seen if poll_id in one.polls]
        right = sum(one.polls[poll_id] == (books.votes, books.digest) for one in watching)
        checks.append(
            check("subscribers", f"{poll_id} last digest", _of(len(watching), watching), _of(right, watching))
        )
    return checks


def metric_checks(unaccounted: float | None, dead: float | None) -> list[Check]:
    """The state consumer's own book-keeping; None = it serves no such metric."""
    return [
        check("metrics", "votes_unaccounted", "0", "missing" if unaccounted is None else f"{unaccounted:g}"),
        check("metrics", "dead letters", "0", f"{dead or 0:g}"),
    ]


def _right(seen: Sequence[Seen], sent: list[str]) -> int:
    return sum(one.events == sent for one in seen)


def _of(number: int, seen: Sequence[Seen]) -> str:
    return f"{number} of {len(seen)}"


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    """Without zeros: an option that nobody chose is in some places and not in others."""
    return {option: count for option, count in sorted(counts.items()) if count}


def _same(sent: Sequence[str], found: Sequence[str]) -> str:
    """`all`, or the first difference."""
    if list(sent) == list(found):
        return "all"
    for number, (mine, theirs) in enumerate(zip(sent, found, strict=False)):
        if mine != theirs:
            return f"number {number} is {theirs}, not {mine}"
    return f"{len(found)} of {len(sent)}"
