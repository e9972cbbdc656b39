"""The benchmark's message: 200 bytes of JSON data, which tell when they were published. Pure."""

from typing import Literal

DATA_BYTES = 200
EVENT_TOPIC = "match.bench.1"
STATE_TOPIC = "poll.bench"
IDLE_TOPIC = "poll.idle"
TOPICS = (EVENT_TOPIC, *(f"poll.quiet{number}" for number in range(63)))
"""What a subscriber of many topics asks for; only the first has news."""

EVENT_KIND = "round_end"
STATE_KIND = "tally"

Variant = Literal["event", "state", "many", "idle", "unread"]
"""What is asked for and published: an event; a state kind, which may be conflated; the event's topic among 64; a topic
without news; and news of topics that nobody asked for, beside the event's that nobody publishes."""

_HEAD = b'{"t_us":%016d,"number":%d,"text":"'
_TAIL = b'"}'
_NUMBER_BASE = 1_000_000_000  # so that all numbers are as long
_TEXT = b"x" * (DATA_BYTES - len(_HEAD % (0, _NUMBER_BASE)) - len(_TAIL))


def data(number: int, sent_us: int) -> bytes:
    """`DATA_BYTES` bytes; `sent_us` is the Unix time in microseconds, behind the mark that `client.c` looks for."""
    return (_HEAD % (sent_us, _NUMBER_BASE + number)) + _TEXT + _TAIL


def sse(number: int, body: bytes) -> bytes:
    """As an SSE message that says as much as ours do: an id of the same length, the kind, the topic in the data."""
    return b'id: 1~0123456789ab~0.1.1700000000000.%d.1\nevent: %b\ndata: {"topic":"%b",%b\n\n' % (
        number,
        EVENT_KIND.encode(),
        EVENT_TOPIC.encode(),
        body[1:],
    )


def ws(number: int, body: bytes) -> bytes:
    """As one WebSocket text frame, likewise."""
    text = b'{"event":"%b","topic":"%b","id":"1~0123456789ab~0.1.1700000000000.%d.1","data":%b}' % (
        EVENT_KIND.encode(),
        EVENT_TOPIC.encode(),
        number,
        body,
    )
    return b"\x81\x7e" + len(text).to_bytes(2, "big") + text


def topics(variant: Variant) -> str:
    """For a request of ours."""
    asked = {"state": (STATE_TOPIC,), "many": TOPICS, "idle": (IDLE_TOPIC,)}
    return ",".join(asked.get(variant, (EVENT_TOPIC,)))
