"""How fast is the state consumer? `python -m loadtests.bench_state [--votes N] [--polls N]`

A real Valkey (unix socket, AOF always) gets a backlog of votes, then the real state consumer, a process of its own as
in production, drains it. Prints votes/s and the ratio to merely reading the same log with `XREAD` in the same batches
and the same run, because absolute figures of a shared machine are noise.
"""

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import redis

from consumers import state
from core import keys
from core.events import header
from core.names import poll_topic, shard_of
from core.settings import Settings
from loadtests.servers import embedded_redis

BATCH = 500


def fill(client: redis.Redis, votes: int, polls: int, shards: int) -> None:
    """Append polls and votes the way ingest lays them out."""
    ordinals = dict.fromkeys(range(shards), 0)
    defined = dict.fromkeys(range(shards), 0)
    for number in range(polls):
        poll = {"poll_id": f"p{number}", "title": "t", "options": [{"id": o, "label": o} for o in "ab"]}
        topic = poll_topic(f"p{number}")
        shard = shard_of(topic, shards)
        defined[shard] += 1
        entry = {"h": f"{header('poll', topic, 1, 'bench')} {defined[shard]}", "d": msgspec.json.encode(poll)}
        client.xadd(keys.events(shard), entry)  # type: ignore[arg-type]
    for start in range(0, votes, 5000):
        pipe = client.pipeline(transaction=False)
        for number in range(start, min(votes, start + 5000)):
            poll_id = f"p{number % polls}"
            topic = poll_topic(poll_id)
            shard = shard_of(topic, shards)
            ordinals[shard] += 1
            body = (
                f'{{"event_id":"01JBENCH{number:018d}","poll_id":"{poll_id}","option":"{"ab"[number % 2]}",'
                f'"voter":"{number:016x}","ts":"2026-11-21T18:00:00Z","source":"load"}}'
            )
            pipe.xadd(
                keys.events(shard),
                {"h": f"{header('vote', topic, time.time_ns() // 1000, 'bench')} {ordinals[shard]}", "d": body},
            )
        pipe.execute()


def read_only(client: redis.Redis, shards: int) -> float:
    """Seconds for one client to read every shard's log in batches of `BATCH`."""
    started = time.perf_counter()
    for shard in range(shards):
        last: Any = b"0-0"
        while True:
            reply: Any = client.xread({keys.events(shard): last}, count=BATCH)
            if not reply:
                break
            last = reply[0][1][-1][0]
    return time.perf_counter() - started


def drain(client: redis.Redis, settings: Settings, votes: int, shards: int) -> float:
    """Seconds until the state consumer has applied everything, from its first applied batch on."""
    process = multiprocessing.get_context("spawn").Process(target=state.run, args=(settings,))
    process.start()
    try:
        started = 0.0
        while True:
            done = sum(int(client.hget(keys.progress(shard), "votes") or 0) for shard in range(shards))
            if done and not started:
                started, first = time.perf_counter(), done
            if done == votes:
                return (time.perf_counter() - started) * votes / (votes - first)
            time.sleep(0.005)
    finally:
        process.terminate()
        process.join(10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--votes", type=int, default=200_000)
    parser.add_argument("--polls", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="arenacast-bench-") as directory:
        settings = Settings(data_dir=Path(directory), shards=4, state_metrics_port=0, log_level="warning")
        with embedded_redis(settings):
            client = redis.Redis.from_url(settings.redis_target)
            fill(client, options.votes, options.polls, 4)
            reading_s = read_only(client, 4)
            draining_s = drain(client, settings, options.votes, 4)
    print(f"votes {options.votes} in {options.polls} polls over 4 shards, batches of up to {BATCH}")
    print(f"state consumer   {options.votes / draining_s:10,.0f} votes/s")
    print(f"XREAD alone      {options.votes / reading_s:10,.0f} entries/s")
    print(f"ratio            {reading_s / draining_s:10.3f}")


if __name__ == "__main__":
    main()
