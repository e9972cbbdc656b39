"""Log entries: reading what is there, refusing what is not."""

import msgspec
import pytest

from core.errors import Poison
from core.events import Vote, decode_match_event, decode_poll, decode_vote, encode_json, header, parse_entry
from core.position import EntryId


def test_entry_is_read_as_it_was_written() -> None:
    text = header("vote", "poll.p1", 1_700_000_000_000_000, "c0ffee")
    entry = parse_entry(b"17-3", {b"h": f"{text} 42".encode(), b"d": b"{}"})
    assert (entry.id, entry.kind, entry.topic) == (EntryId(17, 3), "vote", "poll.p1")
    assert (entry.received_us, entry.correlation, entry.ordinal) == (1_700_000_000_000_000, "c0ffee", 42)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {b"h": b"vote poll.p1 1 c 1"},
        {b"d": b"{}"},
        {b"h": b"vote poll.p1 1 c", b"d": b"{}"},
        {b"h": b"vote poll.p1 1 c 1 2", b"d": b"{}"},
        {b"h": b"votes poll.p1 1 c 1", b"d": b"{}"},
        {b"h": b"vote poll.p1 x c 1", b"d": b"{}"},
        {b"h": b"vote poll.p1 1 c x", b"d": b"{}"},
        {b"h": b"vote \xff 1 c 1", b"d": b"{}"},
    ],
)
def test_malformed_entry_is_poison(fields: dict[bytes, bytes]) -> None:
    with pytest.raises(Poison):
        parse_entry(b"1-1", fields)


def test_unknown_key_is_ignored_because_readers_are_deployed_before_writers() -> None:
    vote = decode_vote(b'{"event_id":"e","poll_id":"p","option":"a","voter":"v","weight":3}')
    assert vote == Vote("e", "p", "a", "v")


@pytest.mark.parametrize(
    "body",
    [
        b'{"event_id":"","poll_id":"p","option":"a","voter":"v"}',
        b'{"event_id":"e","poll_id":"p.q","option":"a","voter":"v"}',
        b'{"event_id":"e","poll_id":"p","option":"a b","voter":"v"}',
        b'{"event_id":"e","poll_id":"p","option":"a","voter":1}',
        b'{"event_id":"e","poll_id":"p","option":"a","voter":"v","ts":"2026-01-01T00:00:00"}',
        b'{"event_id":"e","poll_id":"p","option":"a","voter":"v","source":"a b"}',
        b'{"event_id":"e","poll_id":"p\\n","option":"a","voter":"v"}',
        b"[]",
    ],
)
def test_vote_outside_the_contract_is_refused(body: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_vote(body)


def test_event_type_with_a_newline_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_match_event(b'{"event_id":"e","match_id":"m","map_id":"1","type":"round_end\\nid: 1"}')


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "a\u2028b", "\x00"])
def test_encoded_json_is_one_line(text: str) -> None:
    assert len(encode_json({"t": text}).splitlines()) == 1


def test_poll_defaults_are_those_of_the_contract() -> None:
    poll = decode_poll(b'{"poll_id":"p","title":"t","options":[{"id":"a","label":"A"}]}')
    assert (poll.voting, poll.match_id, poll.opens_at, poll.closes_at) == ("first", None, None, None)
