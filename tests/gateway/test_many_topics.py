"""64 topics on one connection, spread over 64 shards: the largest cursor there is, and it resumes like any other."""

import httpx
import pytest

from core.cursor import LENGTH_MAX, encode, fingerprint
from core.names import TOPICS_MAX, shard_of
from core.position import K_ALL, Position
from core.settings import Settings
from tests.gateway.output_log import OutputLog
from tests.gateway.readers import Message, Transport, read, reading, verdicts
from tests.gateway.server import running_gateway

SHARDS = 64


def polls() -> list[str]:
    """A poll for each shard."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < SHARDS:
        found.setdefault(shard_of(f"poll.p{number}", SHARDS), f"p{number}")
        number += 1
    return [found[shard] for shard in range(SHARDS)]


def test_cursor_of_64_shards_fits_with_numbers_that_a_log_never_reaches() -> None:
    """Ten thousand restarts, a million inputs within a millisecond, the year 2286."""
    topics = [f"poll.{poll}" for poll in polls()]
    place = Position(10_000, 9_999_999_999_999, 999_999, K_ALL)
    assert len(encode(fingerprint("log", topics), dict.fromkeys(range(SHARDS), place))) <= LENGTH_MAX


@pytest.mark.redis
@pytest.mark.parametrize("transport", ["sse", "ws", "poll"])
async def test_reader_of_64_topics_resumes_where_it_was_in_each(
    settings: Settings, redis_url: str, transport: Transport
) -> None:
    log = OutputLog(redis_url, shards=SHARDS)
    names = polls()
    topics = [f"poll.{name}" for name in names]
    assert len(topics) == TOPICS_MAX
    for name in names:
        log.tally(name, 1)
    with running_gateway(settings) as gateway:
        async with reading(gateway, transport, topics) as reader:
            welcome, *snapshots = await read(reader, 1 + TOPICS_MAX)
            assert set(verdicts(welcome).values()) == {"snapshot"}
            assert {message["topic"] for message in snapshots} == set(topics)
            for name in names[:20]:
                log.tally(name, 2)
            first = await read(reader, 20)
        cursor = first[-1]["id"]
        assert len(cursor) <= LENGTH_MAX
        for name in names[10:]:
            log.tally(name, 3)
        log.event("m1", "1", 1)  # of nobody's interest here
        async with reading(gateway, transport, topics, cursor=cursor) as reader:
            welcome, *missed = await read(reader, 1 + 54)
            assert set(verdicts(welcome).values()) == {"complete"}
            assert totals(missed) == {f"poll.{name}": [3] for name in names[10:]}
            log.tally(names[0], 4)
            assert totals(await read(reader, 1)) == {topics[0]: [4]}
        # A cursor from the middle of it covers what was sent up to there, in every shard.
        async with reading(gateway, transport, topics, cursor=missed[29]["id"]) as reader:
            welcome, *rest = await read(reader, 1 + 25)
            assert set(verdicts(welcome).values()) == {"complete"}
            again = totals(rest)
            assert again.pop(topics[0]) == [4]
            assert again == totals(missed[30:])
    log.close()


def totals(messages: list[Message]) -> dict[str, list[int]]:
    """Topic -> totals told of it, in order."""
    found: dict[str, list[int]] = {}
    for message in messages:
        found.setdefault(message["topic"], []).append(message["data"]["total"])
    return found


@pytest.mark.redis
async def test_65_topics_are_refused(settings: Settings, log: OutputLog) -> None:
    with running_gateway(settings) as gateway:
        topics = ",".join(f"poll.p{number}" for number in range(TOPICS_MAX + 1))
        async with httpx.AsyncClient(base_url=gateway.url) as client:
            assert (await client.get("/api/v1/stream", params={"topics": topics})).status_code == 400
