"""The live edge of the log: what is in large entries, and what nobody can read."""

from typing import Any

import msgspec
import pytest

from core import keys
from core.clock import now_us
from core.names import shard_of
from core.position import EntryId
from core.settings import Settings
from core.updates import OUTLINE_BYTES, Message, Update, encode_update
from tests.gateway.output_log import OutputLog
from tests.gateway.readers import read, reading
from tests.gateway.server import Gateway, running_gateway

pytestmark = pytest.mark.redis

TOPIC = "match.m1.1"


def large_batch(log: OutputLog, at: int) -> EntryId:
    """Inputs of one shard, the one at `at` for the topic, the others for topics that nobody follows."""
    shard = shard_of(TOPIC, log.shards)
    others = [topic for n in range(2000) if shard_of(topic := f"poll.other{n}", log.shards) == shard][:200]
    inputs: list[Any] = [(topic, [("tally", True, {"n": 1})], {"n": 1}) for topic in others]
    inputs.insert(at, (TOPIC, [("round_end", False, {"n": 7, "pad": "x" * OUTLINE_BYTES})], {"n": 7}))
    return log.apply(*inputs)[at]


@pytest.mark.parametrize("at", [0, 100, 200])
async def test_a_message_is_found_wherever_in_a_large_entry_it_is(gateway: Gateway, log: OutputLog, at: int) -> None:
    async with reading(gateway, "sse", TOPIC) as reader:
        await read(reader, 2)
        large_batch(log, at)
        (message,) = await read(reader, 1)
        assert (message["event"], message["data"]["n"]) == ("round_end", 7)
        log.event("m1", "1", 8)
        assert (await read(reader, 1))[0]["data"]["n"] == 8


def unreadable(log: OutputLog, size: int) -> tuple[EntryId, dict[str, bytes]]:
    """An entry whose message has a position that is none."""
    entry = log.next_id(shard_of(TOPIC, log.shards))
    told = Message(TOPIC, "round_end", False, entry.ms, entry.seq, 1, b"x" * size, now_us(), "test")
    array = msgspec.msgpack.decode(encode_update(Update(1, entry, EntryId(0, 0), now_us(), [told], [])))
    array[4][0][3] = "no number"
    return entry, {"u": msgspec.msgpack.encode(array)}


@pytest.mark.parametrize("is_large", [False, True])
async def test_readers_of_an_entry_that_nobody_can_read_are_sent_for_a_reset(
    settings: Settings, log: OutputLog, is_large: bool
) -> None:
    with running_gateway(settings) as gateway:
        async with reading(gateway, "sse", TOPIC) as reader:
            *_, snapshot = await read(reader, 2)
            shard = shard_of(TOPIC, log.shards)
            entry, fields = unreadable(log, OUTLINE_BYTES if is_large else 10)
            with log.client.pipeline(transaction=True) as pipe:  # both or neither, as the state consumer's script does
                pipe.xadd(keys.updates(shard), fields, id=str(entry))  # type: ignore[arg-type]
                pipe.hset(keys.progress(shard), mapping={"last_id": str(entry), "updates_id": str(entry)})
                pipe.execute()
            assert (await read(reader, 1))[0]["event"] == "bye"
        async with reading(gateway, "sse", TOPIC, cursor=snapshot["id"]) as reader:
            (welcome,) = await read(reader, 1)
            assert welcome["data"]["topics"][TOPIC]["resume"] == "reset"


async def test_nobody_is_led_past_an_unreadable_entry_that_is_newer_than_the_log_says(
    settings: Settings, log: OutputLog
) -> None:
    """As after a crash between the two, where a script does not write them as one."""
    with running_gateway(settings) as gateway:
        async with reading(gateway, "sse", TOPIC) as reader:
            await read(reader, 2)
            entry, fields = unreadable(log, 10)
            log.client.xadd(keys.updates(shard_of(TOPIC, log.shards)), fields, id=str(entry))  # type: ignore[arg-type]
            assert (await read(reader, 1))[0]["event"] == "bye"
