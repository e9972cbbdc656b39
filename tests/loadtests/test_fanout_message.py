"""Every server is given the same message, and it can be told when it was published."""

import json

from core import keys
from core.names import TOPICS_MAX, shard_of
from core.position import EntryId
from core.updates import decode_update
from loadtests.fanout import message
from loadtests.fanout.publish import FloorFeed, HttpFeed, LogFeed, PubSubFeed, UnreadFeed

SENT_US = 1_795_000_000_000_000


def test_data_are_200_bytes_of_json_that_tell_when_they_were_published() -> None:
    data = message.data(7, SENT_US)
    assert len(data) == 200
    assert json.loads(data)["number"] % 1000 == 7
    assert b'"t_us":%d,' % SENT_US in data


def test_an_event_of_the_floor_is_an_event_with_the_same_data() -> None:
    lines = message.sse(7, message.data(7, SENT_US)).decode().split("\n")
    assert [line.partition(":")[0] for line in lines] == ["id", "event", "data", "", ""]
    assert json.loads(lines[2].removeprefix("data: "))["topic"] == message.EVENT_TOPIC


def test_a_frame_of_the_floor_is_one_text_frame_of_the_length_it_says() -> None:
    frame = message.ws(7, message.data(7, SENT_US))
    assert frame[:2] == b"\x81\x7e"
    assert int.from_bytes(frame[2:4], "big") == len(frame) - 4
    assert json.loads(frame[4:])["data"]["t_us"] == SENT_US


def test_the_entries_of_the_log_are_chained_and_ordered_even_when_the_clock_stands_still() -> None:
    feed = LogFeed("/nowhere", "event", shards=4)
    updates = [_update(feed.frame(number, at)) for number, at in ((0, SENT_US), (1, SENT_US), (2, SENT_US - 5000))]
    ids = [EntryId(update.messages[0].ms, update.messages[0].seq) for update in updates]
    assert [update.previous for update in updates] == [(0, 0), *ids[:2]]
    assert ids == sorted(set(ids))
    assert not updates[0].messages[0].is_state


def test_state_messages_are_state() -> None:
    (told,) = _update(LogFeed("/nowhere", "state", shards=4).frame(0, SENT_US)).messages
    assert (told.topic, told.kind, told.is_state) == (message.STATE_TOPIC, message.STATE_KIND, True)


def test_unread_messages_come_in_the_shard_of_the_event_and_are_asked_for_by_nobody() -> None:
    feed = UnreadFeed("/nowhere", shards=4)
    frame = feed.frame(0, SENT_US)
    assert keys.updates(shard_of(message.EVENT_TOPIC, 4)).encode() in frame
    told = _update(frame).messages
    assert len(told) == UnreadFeed.BATCH
    asked = set(message.topics("unread").split(","))
    assert not asked & {each.topic for each in told}
    assert [each.k for each in told] == sorted({each.k for each in told})


def test_many_topics_are_as_many_as_one_may_ask_for_and_fall_into_every_shard() -> None:
    topics = message.topics("many").split(",")
    assert message.EVENT_TOPIC in topics
    assert len(set(topics)) == TOPICS_MAX
    assert {shard_of(topic, 4) for topic in topics} == {0, 1, 2, 3}
    assert message.topics("idle") not in topics


def test_peers_are_given_the_same_200_bytes() -> None:
    data = message.data(3, SENT_US)
    assert HttpFeed(80, "/pub").frame(3, SENT_US).endswith(b"Content-Length: 200\r\n\r\n" + data)
    assert data in PubSubFeed("/nowhere").frame(3, SENT_US)
    framed = FloorFeed(80, message.ws).frame(3, SENT_US)
    assert int.from_bytes(framed[:4], "little") == len(framed) - 4


def _update(frame: bytes):  # type: ignore[no-untyped-def]
    words = frame.split(b"\r\n")
    at = words.index(b"u")
    size = int(words[at + 1][1:])
    start = frame.index(b"\r\n" + words[at + 1] + b"\r\n") + len(words[at + 1]) + 4
    return decode_update({b"u": frame[start : start + size]})
