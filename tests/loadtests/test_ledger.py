"""The sender's books."""

from pathlib import Path

from core.digest import format_digest, vote_hash
from core.events import Vote
from loadtests import ledger
from loadtests.ledger import Ledger

A, B = Vote("1", "p", "a", "x"), Vote("2", "p", "b", "y")


def test_every_acknowledged_vote_is_in_the_digest_of_its_poll() -> None:
    books = Ledger()
    assert books.add_votes([A, B, Vote("1", "q", "a", "x")], 3, 0) == 3
    assert books.polls["p"].digest == format_digest(vote_hash("1", "a") + vote_hash("2", "b"))
    assert books.polls["q"].digest == format_digest(vote_hash("1", "a"))
    assert books.polls["p"].options == {"a": 1, "b": 1}
    assert books.polls["p"].voters == {"x", "y"}


def test_a_body_that_is_acknowledged_twice_counts_once() -> None:
    books = Ledger()
    books.add_votes([A, B], 2, 0)
    assert books.add_votes([A, B], 0, 2) == 0
    assert (books.votes, books.distinct, books.repeated) == (2, 2, 2)
    assert (books.acknowledged, books.accepted, books.duplicates) == (4, 2, 2)


def test_the_books_do_not_believe_the_answers() -> None:
    books = Ledger()
    books.add_votes([A, B], 1, 1)
    assert (books.distinct, books.accepted) == (2, 1)


def test_events_keep_the_order_in_which_they_were_acknowledged() -> None:
    books = Ledger()
    for event_id in ("e2", "e1", "e2"):
        books.add_events([{"match_id": "m", "event_id": event_id}], 1, 0)
    assert books.events == {"m": ["e2", "e1"]}


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    books = Ledger()
    books.add_votes([A, B], 2, 0)
    books.lost_answer()
    books.give_up(3)
    books.save(tmp_path / "ledger")
    found = ledger.load(tmp_path / "ledger")
    assert found.polls == books.polls
    assert (found.acknowledged, found.lost_answers, found.unresolved) == (2, 1, 3)
