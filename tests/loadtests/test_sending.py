"""Sending until acknowledged."""

import time

import pytest

from core.events import Vote
from loadtests import sending
from loadtests.plan import Body
from loadtests.sending import Sending, encode

VOTES = [Vote("1", "p", "a", "x"), Vote("2", "p", "b", "y")]


def send(*answers: tuple[int, bytes]) -> tuple[Sending, list[bytes]]:
    """Send one body to an ingest that answers like this, one after another."""
    run, sent, left = Sending("key"), list[bytes](), list(answers)

    def post(path: str, content: bytes, media: str) -> tuple[int, bytes]:
        assert (path, media) == ("/api/v1/votes", "application/json")
        sent.append(content)
        return left.pop(0)

    run.send_votes(post, Body(time.time() - 1, VOTES))
    assert not left
    return run, sent


def test_the_same_body_is_sent_until_it_is_acknowledged() -> None:
    run, sent = send((503, b""), (0, b""), (429, b""), (202, b'{"accepted":1,"duplicates":1}'))
    assert len(sent) == 4
    assert len(set(sent)) == 1
    assert run.ledger.lost_answers == 3
    assert run.ledger.votes == 2
    assert (run.ledger.accepted, run.ledger.duplicates) == (1, 1)


def test_a_body_that_is_refused_is_not_repeated_and_not_counted() -> None:
    run, sent = send((422, b"reason"))
    assert len(sent) == 1
    assert run.ledger.votes == 0
    assert run.refusals == ["/api/v1/votes: 422 b'reason'"]


def test_a_body_without_any_answer_is_given_up_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "GIVE_UP_AFTER_S", 0.0)
    run, _ = send((0, b""))
    assert run.ledger.unresolved == 2


def test_bodies_use_every_form_of_the_contract() -> None:
    assert encode(VOTES[:1])[0].startswith(b"{")
    assert encode(VOTES)[0].startswith(b"[")
    content, media = encode([*VOTES, VOTES[0]])
    assert media == "application/x-ndjson"
    assert len(content.splitlines()) == 3
