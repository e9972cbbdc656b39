"""Digests and hashes: part of the contract, so their values are fixed here."""

import random

from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh64_intdigest

from core.digest import event_hash, format_digest, vote_hash, voter_hash, voter_key


def test_vote_hash_is_xxhash64_of_event_id_nul_option() -> None:
    assert vote_hash("01J", "a") == xxh64_intdigest(b"01J\0a", seed=0)
    assert vote_hash("ä", "b") == xxh64_intdigest("ä\0b".encode(), seed=0)
    assert event_hash("01J") == xxh64_intdigest(b"01J", seed=0)
    assert format_digest(vote_hash("e1", "a") + vote_hash("e2", "b")) == "65257a52003c7a61"


@given(st.lists(st.tuples(st.text(max_size=20), st.sampled_from("abc")), max_size=50), st.randoms())
def test_digest_does_not_depend_on_order(votes: list[tuple[str, str]], source: random.Random) -> None:
    shuffled = source.sample(votes, len(votes))
    assert format_digest(sum(vote_hash(*v) for v in votes)) == format_digest(sum(vote_hash(*v) for v in shuffled))


def test_digest_has_16_digits_and_wraps_at_64_bits() -> None:
    assert format_digest(0) == "0" * 16
    assert format_digest(2**64 + 5) == "0" * 15 + "5"


def test_voter_hash_needs_the_secret_and_tells_voters_apart() -> None:
    key = voter_key("s" * 16)
    assert voter_hash(key, "twitch:1") == voter_hash(key, "twitch:1")
    assert voter_hash(key, "twitch:1") != voter_hash(key, "twitch:2")
    assert voter_hash(voter_key("t" * 16), "twitch:1") != voter_hash(key, "twitch:1")
    assert len(voter_hash(key, "x" * 128)) == 16


def test_secret_of_any_length_is_a_key() -> None:
    assert voter_key("x" * 1000) != voter_key("x" * 1001)
