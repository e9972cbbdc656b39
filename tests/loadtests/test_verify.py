"""The proof holds when everything agrees, and every single disagreement breaks it."""

from collections.abc import Callable

import pytest

from core.events import Vote
from loadtests import verify
from loadtests.ledger import Ledger
from loadtests.observe import ColdPoll, HotPoll
from loadtests.seen import Seen

FIRST, LAST, UNLIMITED = "r-first", "r-last", "r-unlimited"
VOTES = [
    *(Vote(f"f{n}", FIRST, "a", f"v{n % 3}") for n in range(5)),
    *(Vote(f"l{n}", LAST, "ab"[n % 2], f"v{n % 2}") for n in range(4)),
    *(Vote(f"u{n}", UNLIMITED, "abb"[n % 3], "v") for n in range(3)),
]
EVENTS = [{"match_id": "m", "event_id": f"e{n}"} for n in range(3)]


class World:
    """A sender's books and four places that agree with them."""

    def __init__(self) -> None:
        self.books = Ledger()
        self.books.add_votes(VOTES, len(VOTES), 0)
        self.books.add_votes(VOTES[:2], 0, 2)
        self.books.add_events(EVENTS, len(EVENTS), 0)
        digest = {poll_id: books.digest for poll_id, books in self.books.polls.items()}
        self.hot = {
            FIRST: HotPoll(5, digest[FIRST], {"a": 3, "b": 0}, {"already_voted": 2}, 3),
            LAST: HotPoll(4, digest[LAST], {"a": 1, "b": 1}, {}, 2, 2),
            UNLIMITED: HotPoll(3, digest[UNLIMITED], {"a": 1, "b": 2}, {}, 1),
        }
        self.cold = {
            poll_id: ColdPoll(b.votes, b.votes, b.digest, dict(b.options), dict(b.options))
            for poll_id, b in self.books.polls.items()
        }
        self.events = {"m": ["e0", "e1", "e2"]}
        self.seen = [
            Seen(f"sse-{n}", {}, {}, 0, 0, 1, {FIRST: (5, digest[FIRST])}, ["e0", "e1", "e2"]) for n in range(2)
        ]
        self.unaccounted: float | None = 0.0
        self.refusals: list[str] = []

    def differences(self) -> list[str]:
        return verify.differences([
            *verify.sender_checks(self.books, self.refusals),
            *verify.hot_checks(self.books, self.hot),
            *verify.archive_checks(self.books, self.cold),
            *verify.event_checks(self.books, self.events),
            *verify.subscriber_checks(self.books, self.seen),
            *verify.metric_checks(self.unaccounted, None),
        ])  # fmt: skip


def test_everything_agrees() -> None:
    assert World().differences() == []


def _lose_a_row(world: World) -> None:
    world.cold[FIRST].rows -= 1


def _store_an_id_twice(world: World) -> None:
    world.cold[LAST].ids -= 1


def _aggregate_wrongly(world: World) -> None:
    world.cold[UNLIMITED].minutes["a"] += 1


def _change_an_archived_vote(world: World) -> None:
    world.cold[FIRST].digest = "0" * 16


def _forget_a_poll(world: World) -> None:
    del world.hot[FIRST]


def _apply_a_vote_twice(world: World) -> None:
    world.hot[UNLIMITED].applied += 1


def _count_a_voter_twice(world: World) -> None:
    world.hot[FIRST].options["a"] += 1


def _reject_too_few(world: World) -> None:
    world.hot[FIRST].rejected = {"already_voted": 1}


def _replace_too_few(world: World) -> None:
    world.hot[LAST].replaced -= 1


def _count_the_wrong_option(world: World) -> None:
    world.hot[UNLIMITED].options = {"a": 2, "b": 1}


def _archive_events_out_of_order(world: World) -> None:
    world.events["m"] = ["e1", "e0", "e2"]


def _archive_too_few_events(world: World) -> None:
    world.events["m"].pop()


def _miss_an_event(world: World) -> None:
    world.seen[1].events.pop(1)


def _see_an_event_twice(world: World) -> None:
    world.seen[0].events.insert(0, "e0")


def _see_an_old_tally(world: World) -> None:
    world.seen[1].polls[FIRST] = (4, world.books.polls[FIRST].digest)


def _see_another_digest(world: World) -> None:
    world.seen[1].polls[FIRST] = (5, "0" * 16)


def _go_back(world: World) -> None:
    world.seen[0].backwards = 1


def _repeat(world: World) -> None:
    world.seen[0].repeats = 1


def _answer_wrongly(world: World) -> None:
    world.books.accepted -= 1


def _acknowledge_as_duplicates_what_is_new(world: World) -> None:
    world.books.accepted -= 1
    world.books.duplicates += 1


def _refuse(world: World) -> None:
    world.refusals.append("422")


def _leave_a_body_unanswered(world: World) -> None:
    world.books.give_up(3)


def _lose_account(world: World) -> None:
    world.unaccounted = 1.0


def _hide_the_metric(world: World) -> None:
    world.unaccounted = None


FAULTS = [value for name, value in sorted(globals().items()) if name.startswith("_") and callable(value)]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: str(fault.__name__).strip("_"))
def test_a_single_fault_breaks_the_proof(fault: Callable[[World], None]) -> None:
    world = World()
    fault(world)
    assert world.differences()


def test_lost_answers_may_make_accepted_items_look_like_duplicates() -> None:
    world = World()
    world.books.lost_answer()
    _acknowledge_as_duplicates_what_is_new(world)
    assert world.differences() == []
    world.books.accepted, world.books.duplicates = world.books.acknowledged, 0
    assert world.differences()
