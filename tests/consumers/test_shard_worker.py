"""The state consumer against a real Valkey: exactly once whatever dies, timers, trimming, dead letters."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from consumers.lease import Leases, Ownership, lease_sources
from consumers.shard_worker import ShardWorker, state_sources
from core import epochs, keys, redis_client
from core.clock import now_us
from core.digest import MASK, vote_hash
from core.errors import Fenced
from core.names import poll_topic, shard_of
from core.position import parse_entry_id
from core.rdb_copy import copy_rdb
from core.redis_client import Redis, Scripts
from core.settings import Settings
from core.updates import Message, Update, decode_update
from tests.support.log_writer import LogWriter
from tests.support.redis_server import running_redis
from tests.support.waiting import wait_until

pytestmark = pytest.mark.redis

SHARDS = 4


@pytest.fixture
def log(settings: Settings) -> LogWriter:
    return LogWriter(redis.Redis.from_url(settings.redis_url), SHARDS)


class Owner:
    """One state consumer that owns given shards, as a lease would give them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.client: Redis = redis_client.connect(settings)
        self.scripts = Scripts(self.client, SHARDS, {**lease_sources(), **state_sources()})
        self.stop = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []
        self.workers: dict[int, ShardWorker] = {}

    async def take(self, *shards: int) -> "Owner":
        for shard in shards:
            token = await self.client.incr(keys.fence(shard, "state"))
            ownership = Ownership(shard, token, self.stop)
            self.workers[shard] = ShardWorker(self.client, self.scripts, self.settings, ownership)
            self.tasks.append(asyncio.create_task(self.workers[shard].run()))
        return self

    async def end(self) -> None:
        self.stop.set()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.client.aclose()


@asynccontextmanager
async def owner(settings: Settings, *shards: int) -> AsyncIterator[Owner]:
    running = await Owner(settings).take(*(shards or range(SHARDS)))
    try:
        yield running
    finally:
        await running.end()


def state(log: LogWriter, topic: str) -> dict[str, Any]:
    raw: Any = log.client.hget(keys.state(shard_of(topic, SHARDS), topic), "data")
    found: dict[str, Any] = msgspec.json.decode(raw) if raw else {}
    return found


def updates(log: LogWriter, shard: int) -> list[tuple[str, Update]]:
    entries: Any = log.client.xrange(keys.updates(shard))
    return [(entry_id.decode(), decode_update(fields)) for entry_id, fields in entries]


def messages(log: LogWriter, topic: str) -> list[Message]:
    return [m for _, update in updates(log, shard_of(topic, SHARDS)) for m in update.messages if m.topic == topic]


async def applied(log: LogWriter, topic: str, count: int) -> None:
    await wait_until(lambda: state(log, topic).get("applied") == count, 10, f"{topic} has applied {count}")


async def test_votes_become_a_tally_with_a_digest_the_sender_can_compute(settings: Settings, log: LogWriter) -> None:
    log.poll("p1")
    for number in range(50):
        log.vote("p1", f"e{number}", "ab"[number % 2], f"voter{number % 40}")
    async with owner(settings):
        await applied(log, "poll.p1", 50)
    data = state(log, "poll.p1")
    expected = sum(vote_hash(f"e{n}", "ab"[n % 2]) for n in range(50)) & MASK
    assert data["digest"] == f"{expected:016x}"
    assert data["options"] == {"a": 20, "b": 20}
    assert data["rejected"] == {"already_voted": 10}
    last = messages(log, "poll.p1")[-1]
    assert last.kind == "tally"
    assert msgspec.json.decode(last.data)["applied"] == 50


async def test_a_late_vote_is_decided_by_its_place_in_the_log(settings: Settings, log: LogWriter) -> None:
    log.poll("p1")
    log.vote("p1", "e1", "a", "v1")
    log.close("p1")
    log.vote("p1", "e2", "a", "v2")
    async with owner(settings):
        await applied(log, "poll.p1", 2)
    data = state(log, "poll.p1")
    assert (data["status"], data["options"], data["rejected"]) == ("closed", {"a": 1, "b": 0}, {"late": 1})
    shard = shard_of("poll.p1", SHARDS)
    assert not log.client.exists(keys.voters(shard, "poll.p1")), "voters are not kept after the end"


async def test_output_entries_chain_and_carry_their_inputs_positions(settings: Settings, log: LogWriter) -> None:
    async with owner(settings):
        log.poll("p1")
        for number in range(5):
            last = log.vote("p1", f"e{number}", "a", f"v{number}")
            await applied(log, "poll.p1", number + 1)
    chain = updates(log, shard_of("poll.p1", SHARDS))
    previous = "0-0"
    for entry_id, update in chain:
        assert str(parse_entry_id(f"{update.previous[0]}-{update.previous[1]}")) == previous
        assert update.messages == sorted(update.messages, key=lambda m: (m.ms, m.seq, m.k))
        previous = entry_id
    assert previous == last


async def test_a_restarted_consumer_continues_where_the_last_batch_was_committed(
    settings: Settings, log: LogWriter
) -> None:
    log.poll("p1", voting="last")
    total = 0
    for _ in range(4):
        for _ in range(25):
            log.vote("p1", f"e{total}", "ab"[total % 2], f"v{total % 10}")
            total += 1
        async with owner(settings) as running:
            await wait_until(lambda t=total: state(log, "poll.p1").get("applied", 0) == t, 10, "applied")  # type: ignore[misc]
            for task in running.tasks:
                task.cancel()
    data = state(log, "poll.p1")
    assert sum(data["options"].values()) == data["voters"] == 10
    assert data["replaced"] == 90


async def test_a_batch_that_was_applied_without_an_answer_is_not_applied_again(
    settings: Settings, log: LogWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks between the effect and its acknowledgement."""
    from core.errors import Retry

    log.poll("p1")
    for number in range(30):
        log.vote("p1", f"e{number}", "a", f"v{number}")
    original = Scripts.run
    broken = 0

    async def run(self: Scripts, name: str, names: Any, args: Any) -> Any:
        nonlocal broken
        reply = await original(self, name, names, args)
        if name == "apply_batch" and broken < 2:
            broken += 1
            raise Retry("connection lost after the effect")
        return reply

    monkeypatch.setattr(Scripts, "run", run)
    async with owner(settings):
        await applied(log, "poll.p1", 30)
        log.vote("p1", "e30", "b", "v30")
        await applied(log, "poll.p1", 31)
    assert broken == 2
    assert state(log, "poll.p1")["options"] == {"a": 30, "b": 1}


async def test_a_zombie_owner_writes_nothing(settings: Settings, log: LogWriter) -> None:
    shard = shard_of("poll.p1", SHARDS)
    log.poll("p1")
    async with owner(settings, shard) as zombie:
        await wait_until(lambda: bool(state(log, "poll.p1")), 10, "poll known")
        async with owner(settings, shard):
            for number in range(20):
                log.vote("p1", f"e{number}", "a", f"v{number}")
            await applied(log, "poll.p1", 20)
            results = await asyncio.wait_for(asyncio.gather(*zombie.tasks, return_exceptions=True), 10)
        assert isinstance(results[0], Fenced)
    assert state(log, "poll.p1")["options"]["a"] == 20


async def test_an_epoch_that_begins_while_the_consumer_runs_is_the_epoch_of_what_follows(
    settings: Settings, log: LogWriter, tmp_path: Path
) -> None:
    """A replica comes, the server takes a new replication id, the next process to start begins an epoch."""
    shard = shard_of("poll.p1", SHARDS)
    log.poll("p1")
    async with owner(settings, shard) as running:
        await wait_until(lambda: bool(state(log, "poll.p1")), 10, "poll known")
        before = (await epochs.load(running.client, shard)).current
        await asyncio.to_thread(copy_rdb, settings.redis_url, tmp_path / "as-a-replica.rdb")
        await Scripts(running.client, SHARDS, lease_sources()).load()
        now = (await epochs.load(running.client, shard)).current
        assert now > before, "the scenario takes place"
        log.vote("p1", "e1", "a", "v1")
        await applied(log, "poll.p1", 1)
    assert [update.epoch for _, update in updates(log, shard)][1:] == [now]
    position: Any = log.client.hget(keys.state(shard, "poll.p1"), "pos")
    assert position.startswith(f"{now}.".encode())


async def test_the_consumer_group_shows_the_committed_position_and_no_lag(settings: Settings, log: LogWriter) -> None:
    log.poll("p1")
    for number in range(10):
        last = log.vote("p1", f"e{number}", "a", f"v{number}")
    async with owner(settings):
        await applied(log, "poll.p1", 10)
    groups: Any = log.client.xinfo_groups(keys.events(shard_of("poll.p1", SHARDS)))
    group = groups[0]
    assert group["name"] == b"state"
    assert group["last-delivered-id"].decode() == last
    assert (group["lag"], group["pending"]) == (0, 0)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"h": "vote poll.p1 1 c 1", "d": "{"}, "body"),
        ({"h": "nonsense", "d": "{}"}, "malformed"),
        ({"x": "y"}, "malformed"),
        (
            {
                "h": "vote poll.none 1 c 1",
                "d": '{"event_id":"e","poll_id":"none","option":"a","voter":"0000000000000000"}',
            },
            "not know",
        ),
        ({"h": "open poll.none 1 c 1", "d": '{"reason":"timer"}'}, "not know"),
    ],
)
async def test_a_poisonous_entry_goes_to_the_dead_letters_and_blocks_nothing(
    settings: Settings, log: LogWriter, fields: dict[str, str], reason: str
) -> None:
    shard = shard_of("poll.p1", SHARDS)
    log.poll("p1")
    log.client.xadd(keys.events(shard), fields)  # type: ignore[arg-type]
    log.vote("p1", "e1", "a", "v1")
    async with owner(settings):
        await applied(log, "poll.p1", 1)
    dead: Any = log.client.xrange(keys.dead(shard))
    assert len(dead) == 1
    assert reason in dead[0][1][b"reason"].decode()


async def test_a_jump_in_the_ordinals_is_noticed(settings: Settings, log: LogWriter) -> None:
    shard = shard_of("poll.p1", SHARDS)
    log.poll("p1")
    log.vote("p1", "e1", "a", "v1")
    log.client.xdel(keys.events(shard), log.vote("p1", "lost", "a", "v2"))
    log.vote("p1", "e3", "a", "v3")
    async with owner(settings) as running:
        await applied(log, "poll.p1", 2)
        await wait_until(lambda: running.workers[shard].progress.gaps == 1, 5, "gap noticed")
        assert running.workers[shard].progress.unaccounted == 1


async def test_polls_open_and_close_by_log_entries_when_their_time_comes(settings: Settings, log: LogWriter) -> None:
    shard = shard_of("poll.p1", SHARDS)
    now_ms = now_us() // 1000
    opens, closes = now_ms + 400, now_ms + 900
    times = {"opens_at": _rfc3339(opens), "closes_at": _rfc3339(closes)}
    log.client.hset(keys.definition(shard, "poll.p1"), mapping={"def": "{}", "opens_ms": opens, "closes_ms": closes})
    log.poll("p1", **times)
    log.vote("p1", "e1", "a", "v1")
    async with owner(settings):
        await wait_until(lambda: state(log, "poll.p1").get("status") == "open", 5, "opened")
        log.vote("p1", "e2", "a", "v1")
        await wait_until(lambda: state(log, "poll.p1").get("status") == "closed", 5, "closed")
        log.vote("p1", "e3", "a", "v2")
        await applied(log, "poll.p1", 3)
    assert state(log, "poll.p1")["rejected"] == {"early": 1, "late": 1}
    assert log.client.hget(keys.definition(shard, "poll.p1"), "closed") == b"1"
    entries: Any = log.client.xrange(keys.events(shard))
    kinds = [fields[b"h"].split(b" ")[0] for _, fields in entries]
    assert kinds.count(b"open") == kinds.count(b"close") == 1


def _rfc3339(ms: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(ms / 1000, UTC).isoformat()


async def test_a_silent_map_ends_after_its_idle_time(settings: Settings, log: LogWriter) -> None:
    quick = msgspec.structs.replace(settings, map_idle_s=0.5)
    log.event("m1", "0", "going_live", {})
    async with owner(quick):
        await wait_until(lambda: state(log, "match.m1.0").get("status") == "finished", 10, "ended")
    assert state(log, "match.m1.0")["winner"] is None


async def test_a_round_gives_event_state_and_prediction_in_this_order(settings: Settings, log: LogWriter) -> None:
    log.event("m1", "0", "going_live", {"map_name": "de_mirage"})
    log.event("m1", "0", "round_end", {"team1": {"name": "A", "score": 1}, "team2": {"name": "B", "score": 0}})
    async with owner(settings):
        await wait_until(lambda: state(log, "match.m1.0").get("round_no") == 1, 10, "round counted")
    got = messages(log, "match.m1.0")
    assert [(m.kind, m.k) for m in got] == [
        ("going_live", 1), ("state", 2), ("prediction", 3), ("round_end", 1), ("state", 2), ("prediction", 3),
    ]  # fmt: skip
    assert not got[0].is_state
    assert got[1].is_state
    snapshot = state(log, "match.m1.0")
    assert snapshot["prediction"]["p_team1"] > 0.5
    assert snapshot["map_name"] == "de_mirage"


async def test_a_picked_map_appears_pending_before_it_is_played(settings: Settings, log: LogWriter) -> None:
    log.event("m1", "series", "series_start", {"num_maps": 1, "team1": {"name": "A"}, "team2": {"name": "B"}})
    log.event("m1", "series", "map_picked", {"map_number": 1, "map_name": "de_nuke", "team": "team1"})
    async with owner(settings):
        await wait_until(lambda: bool(state(log, "match.m1.0")), 10, "map appeared")
    shown = state(log, "match.m1.0")
    assert (shown["status"], shown["map_name"], shown["team1"]["name"]) == ("pending", "de_nuke", "A")
    assert log.client.smembers(keys.maps(shard_of("match.m1.0", SHARDS), "m1")) == {b"series", b"0"}


@pytest.mark.parametrize("first", ["player_death", "map_result"])
async def test_a_series_is_listed_whatever_came_first(settings: Settings, log: LogWriter, first: str) -> None:
    log.event("m1", "1", first, {"team1": {"series_score": 1, "score": 13}, "team2": {"series_score": 0, "score": 2}})
    if first != "map_result":
        log.event("m1", "series", "series_start", {"num_maps": 1})
    async with owner(settings):
        await wait_until(lambda: bool(state(log, "match.m1.series")), 10, "the series has a state")
    assert log.client.smembers(keys.maps(shard_of("match.m1.1", SHARDS), "m1")) == {b"series", b"1"}


async def test_trimming_never_passes_a_reader(settings: Settings, log: LogWriter) -> None:
    eager = msgspec.structs.replace(settings, events_retention_s=0.001, updates_retention_s=0.001)
    shard = shard_of("poll.p1", SHARDS)
    log.poll("p1")
    ids = [log.vote("p1", f"e{n}", "a", f"v{n}") for n in range(1000)]
    async with owner(eager, shard) as running:
        await applied(log, "poll.p1", 1000)
        await running.workers[shard]._housekeeping()
        assert log.client.xlen(keys.events(shard)) == 1001, "no archive position: nothing may go"
        log.client.hset(keys.archive(shard, "events"), "committed", ids[499])
        before = log.client.xlen(keys.updates(shard))
        await running.workers[shard]._housekeeping()
        assert log.client.xlen(keys.updates(shard)) == before, "nor of the output log, before both are archived"
    left: Any = log.client.xrange(keys.events(shard))
    assert parse_entry_id(left[0][0]) <= parse_entry_id(ids[500])
    assert len(left) < 1000


async def test_the_id_of_a_poll_whose_final_state_expired_can_be_used_anew(settings: Settings, log: LogWriter) -> None:
    """The owner has run since then and must not answer from its memory."""
    shard = shard_of("poll.p1", SHARDS)
    async with owner(settings, shard):
        log.poll("p1")
        log.close("p1")
        await wait_until(lambda: state(log, "poll.p1").get("status") == "closed", 10, "closed")
        log.client.delete(keys.state(shard, "poll.p1"))
        log.poll("p1")
        log.vote("p1", "e1", "a", "v1")
        await applied(log, "poll.p1", 1)
    assert state(log, "poll.p1")["status"] == "open"
    assert not log.client.exists(keys.dead(shard))


async def test_polls_that_are_never_closed_do_not_keep_expired_topics_in_the_listings(
    settings: Settings, log: LogWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consumers.shard_worker.FORGET_MAX", 2)
    shard = 0
    for number in range(5):
        log.client.zadd(keys.topics(shard), {f"poll.open{number}": number})
        log.client.hset(keys.state(shard, f"poll.open{number}"), "pos", "1.1.1")
    log.client.zadd(keys.topics(shard), {f"poll.gone{number}": 10 + number for number in range(3)})
    async with owner(settings, shard) as running:
        for _ in range(6):
            await running.workers[shard]._housekeeping()
    left: Any = log.client.zrange(keys.topics(shard), 0, -1)
    assert sorted(left) == [b"poll.open%d" % number for number in range(5)]


async def test_large_events_are_applied_in_batches_of_bounded_size(
    settings: Settings, log: LogWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consumers.shard_worker.BATCH_MAX_BYTES", 10_000)
    for number in range(12):
        log.event("m1", "1", "noise", {"number": number, "text": "x" * 4000})
    log.event("m1", "1", "noise", {"number": 12, "text": "x" * 30_000})
    shard = shard_of("match.m1.1", SHARDS)
    async with owner(settings, shard):
        await wait_until(lambda: len([m for m in messages(log, "match.m1.1") if m.kind == "noise"]) == 13, 10, "all")
    noise = [[m for m in update.messages if m.kind == "noise"] for _, update in updates(log, shard)]
    assert [len(batch) for batch in noise] == [2, 2, 2, 2, 2, 2, 1]
    numbers = [msgspec.json.decode(m.data)["data"]["number"] for batch in noise for m in batch]
    assert numbers == list(range(13))


async def test_a_new_incarnation_of_the_server_starts_an_epoch_and_loses_nothing(
    settings: Settings, tmp_path: Path
) -> None:
    with running_redis(tmp_path / "own") as server:
        own = msgspec.structs.replace(settings, redis_url=server.url)
        log = LogWriter(redis.Redis.from_url(server.url), SHARDS)
        log.poll("p1")
        log.vote("p1", "e1", "a", "v1")
        shard = shard_of("poll.p1", SHARDS)
        async with owner(own):
            await applied(log, "poll.p1", 1)
            started: Any = log.client.hget(keys.epochs(shard), "now")
            server.kill9()
            server.restart()
            log = LogWriter(redis.Redis.from_url(server.url), SHARDS)
            log.vote("p1", "e2", "a", "v2")
            await applied(log, "poll.p1", 2)
            await wait_until(lambda: log.client.hget(keys.epochs(shard), "now") != started, 5, "second epoch")
            log.vote("p1", "e3", "a", "v3")
            await applied(log, "poll.p1", 3)
        now: Any = log.client.hget(keys.epochs(shard), "now")
        assert int(started) < int(now) == updates(log, shard)[-1][1].epoch
    assert poll_topic("p1") == "poll.p1"


async def test_a_redis_over_its_memory_budget_is_worked_off(settings: Settings, tmp_path: Path) -> None:
    """Ingest is refused there; leases, applying and trimming must go on, or nobody would ever make room."""
    with running_redis(tmp_path / "own") as server:
        own = msgspec.structs.replace(settings, redis_url=server.url)
        log = LogWriter(redis.Redis.from_url(server.url), SHARDS)
        log.poll("p1")
        for number in range(50):
            log.vote("p1", f"e{number}", "a", f"v{number}")
        log.client.config_set("maxmemory", "1mb")
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            log.client.set("x", "y")
        client = redis_client.connect(own)
        scripts = Scripts(client, SHARDS, {**lease_sources(), **state_sources()})
        stop = asyncio.Event()

        async def work(ownership: Ownership) -> None:
            await ShardWorker(client, scripts, own, ownership).run()

        leases = asyncio.create_task(Leases(scripts, "state", SHARDS, "me", 1.0).run(work, stop))
        await applied(log, "poll.p1", 50)
        stop.set()
        await leases
        await client.aclose()
