"""Reconciliation on real servers: every place is damaged on purpose and must be named; what is normal must not be."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from prometheus_client import REGISTRY

from clickhouse import comparison
from clickhouse.export import export
from consumers import repairing
from consumers.books import open_cold
from consumers.log_window import bisect
from consumers.reconcile import parse_since, watch
from consumers.reconciliation import Difference
from consumers.reducers.cs2_map import Cs2Map
from consumers.reducers.poll import Poll
from consumers.repairing import Repairs
from core import keys
from core.cli import cli
from core.digest import MASK
from core.errors import Fatal
from core.local.services import environment
from core.names import shard_of
from core.position import ZERO, EntryId, parse_entry_id
from tests.support.books import SHARDS, Books
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.redis, pytest.mark.clickhouse]


POLLS = ("first", "last", "unlimited", "missing", "several", "twice", "minutes", "digest", "sums", "shown", "gone")


@pytest.fixture
async def filled(books: Books) -> Books:
    """Polls of every kind and a map, applied and archived; nobody runs any more."""
    for poll_id in POLLS:
        books.log.poll(poll_id, voting=poll_id if poll_id in ("first", "last") else "unlimited")
    for poll_id in POLLS:
        books.votes(poll_id, 60, voters=40)
    books.log.close("unlimited")
    books.votes("unlimited", 5)
    books.log.event("m1", "series", "series_start", {"num_maps": 3})
    books.log.event("m1", "0", "going_live", {})
    for number in range(1, 4):
        books.log.event("m1", "0", "round_end", {"team1": {"score": number}, "team2": {"score": 0}}, round_no=number)
    async with books.consuming():
        await books.settled()
    return books


def only(differences: list[Difference]) -> Difference:
    assert len(differences) == 1, differences
    return differences[0]


async def position_of(books: Books, poll_id: str, number: int) -> str:
    rows = await books.rows(
        f"SELECT stream_ms, stream_seq FROM votes WHERE poll_id = '{poll_id}' ORDER BY 1, 2 LIMIT 1 OFFSET {number}"
    )
    return f"{rows[0][0]}-{rows[0][1]}"


def at(position: str) -> str:
    ms, _, seq = position.partition("-")
    return f"stream_ms = {ms} AND stream_seq = {seq}"


async def test_books_that_agree_are_clean(filled: Books) -> None:
    report = await filled.reconcile()
    assert (report.exit_code, report.differences, report.unknown, report.notes) == (0, [], [], [])
    assert (report.polls, report.votes, report.maps) == (11, 665, 1)
    assert report.aggregates == len(await comparison.discover(filled.clickhouse)) >= 3
    assert set(report.positions) == set(range(SHARDS))


async def test_votes_in_flight_are_no_difference(books: Books) -> None:
    books.log.poll("p0")
    stop = asyncio.Event()

    async def load() -> None:
        while not stop.is_set():
            books.votes("p0", 5)
            await asyncio.sleep(0.01)

    async with books.consuming():
        loading = asyncio.create_task(load())
        reports = [await books.reconcile(wait_s=40) for _ in range(3)]
        stop.set()
        await loading
    assert [report.exit_code for report in reports] == [0, 0, 0], reports
    assert reports[0].votes < reports[1].votes < reports[2].votes, "all the while votes were counted"


def tampered(books: Books, poll_id: str, **changes: Any) -> None:
    """Change the consumer's own state of a poll, and what readers are shown with it."""
    packed = books.sync.hget(books.state_key(poll_id), "priv")
    state = msgspec.msgpack.decode(packed, type=Poll)
    for name, value in changes.items():
        setattr(state, name, value)
    mapping = {"priv": msgspec.msgpack.encode(state), "data": msgspec.json.encode(state.snapshot())}
    books.sync.hset(books.state_key(poll_id), mapping=mapping)


async def test_every_damage_is_named_with_its_place(filled: Books) -> None:
    """One installation, each poll damaged in another way, all of them found in one run."""
    missing = await position_of(filled, "missing", 17)
    await filled.change(f"DELETE FROM votes WHERE poll_id = 'missing' AND {at(missing)}")
    several = [await position_of(filled, "several", number) for number in (20, 33, 34, 59)]
    await filled.change(f"DELETE FROM votes WHERE poll_id = 'several' AND ({' OR '.join(map(at, several))})")
    twice = await position_of(filled, "twice", 3)
    await filled.clickhouse.command(
        f"INSERT INTO votes SELECT * FROM votes WHERE poll_id = 'twice' AND {at(twice)}",
        settings={"deduplicate_insert": "disable", "insert_deduplicate": 0},
    )
    await filled.change(
        "ALTER TABLE votes_per_minute_store UPDATE votes = votes + 1 WHERE poll_id = 'minutes' AND option_id = 'b'"
    )
    await filled.change("ALTER TABLE round_metrics_store UPDATE winner = 'team2' WHERE round_no = 2")
    rows = await filled.rows("SELECT stream_ms, stream_seq FROM match_events WHERE round_no = 3")
    await filled.change("DELETE FROM match_events WHERE round_no = 3")
    tampered(filled, "digest", digest=12345)
    tampered(filled, "sums", counts={"a": 30, "b": 31})
    data = json.loads(filled.sync.hget(filled.state_key("shown"), "data"))
    filled.sync.hset(filled.state_key("shown"), "data", json.dumps({**data, "total": 999}))
    filled.sync.delete(filled.state_key("gone"))
    filled.sync.zrem(keys.topics(filled.shard("gone")), "poll.gone")
    report = await filled.reconcile()
    assert report.exit_code == 1
    found = {one.subject: (one.place, one.first) for one in report.differences if one.subject != "votes"}
    votes_of = {name: one for one in report.differences if (name := one.subject.removeprefix("poll."))}
    assert found["poll.missing"] == ("raw", missing)
    assert found["poll.several"] == ("raw", several[0])
    assert found["poll.twice"] == ("raw", twice)
    assert found["match_events"] == ("raw", f"{rows[0][0]}-{rows[0][1]}")
    assert found["votes_per_minute_store minutes"][0] == "aggregate"
    assert found["votes_per_minute_store minutes"][1].startswith("b ")
    assert found["round_metrics_store m1"] == ("aggregate", "0 2")
    assert found["poll.digest"][0] == "hot state"
    assert votes_of["sums"].expected == "60 applied"
    assert votes_of["sums"].found == "61 counted, 0 rejected, 0 replaced"
    assert (votes_of["shown"].expected, votes_of["shown"].found) == ("{'total': 60}", "{'total': 999}")
    assert (votes_of["gone"].place, votes_of["gone"].found) == ("hot state", "no state")
    assert ("60 votes" in votes_of["missing"].expected, "59 votes" in votes_of["missing"].found) == (True, True)
    assert ("60 votes" in votes_of["twice"].expected, "61 votes" in votes_of["twice"].found) == (True, True)
    innocent = {"poll.first", "poll.last", "poll.unlimited", "match.m1.0"}
    assert not innocent & set(found)
    # Without the log that it could be held against, the same is found, and as much of the place as can be known.
    for shard in range(SHARDS):
        filled.sync.xtrim(keys.events(shard), maxlen=0)
        filled.sync.xtrim(keys.updates(shard), maxlen=0)
    again = {one.subject: (one.place, one.first) for one in (await filled.reconcile()).differences}
    assert again["poll.missing"][0] == "raw"
    assert again["poll.missing"][1].startswith("before ")
    assert again["poll.twice"] == ("raw", f"{twice} (there 2 times)")
    assert again["poll.digest"][0] == "hot state"


async def test_a_map_whose_score_is_not_the_archived_one_is_named(filled: Books) -> None:
    name = keys.state(shard_of("match.m1.0", SHARDS), "match.m1.0")
    state = msgspec.msgpack.decode(filled.sync.hget(name, "priv"), type=Cs2Map)
    state.score1 = 9
    filled.sync.hset(name, "priv", msgspec.msgpack.encode(state))
    one = only((await filled.reconcile()).differences)
    assert (one.place, one.subject) == ("hot state", "match.m1.0")


async def test_a_skipped_entry_of_the_log_is_named(books: Books) -> None:
    books.log.poll("p0")
    async with books.consuming():
        books.votes("p0", 10)
        await books.settled()
    books.votes("p0", 1)
    shard = books.shard("p0")
    skipped = books.sync.xrevrange(keys.events(shard), count=1)[0][0].decode()
    books.sync.hset(keys.progress(shard), mapping={"last_id": skipped, "vote_ordinal": 11})
    async with books.consuming():
        books.votes("p0", 10)
        await books.settled()
    found = (await books.reconcile()).differences
    assert {(one.place, one.subject, one.first) for one in found} == {
        ("hot state", "", ""),  # the shard's own numbering
        ("hot state", "poll.p0", skipped),
    }
    assert "21 votes up to" in found[0].expected


async def test_a_counter_that_is_not_the_logs_is_named(filled: Books) -> None:
    filled.sync.hincrby(keys.counters(filled.shard("first")), "votes", 3)
    filled.sync.hincrby(keys.counters(filled.shard("first")), "events", 3)
    assert only((await filled.reconcile()).differences).place == "log"


async def test_expired_polls_and_a_trimmed_log_are_no_difference(filled: Books) -> None:
    filled.sync.delete(filled.state_key("gone"))
    filled.sync.zrem(keys.topics(filled.shard("gone")), "poll.gone")
    await asyncio.sleep(0.05)  # positions are milliseconds: let the log go on a little
    for number in range(20):
        filled.log.poll(f"later{number}")  # in both shards
    async with filled.consuming():
        await filled.settled()
    for shard in range(SHARDS):
        filled.sync.xtrim(keys.events(shard), maxlen=0)
        filled.sync.xtrim(keys.updates(shard), maxlen=0)
    assert (await filled.reconcile()).exit_code == 1
    assert (await filled.reconcile(retention_s=0.01)).exit_code == 0


async def test_dead_letters_are_accounted_for(filled: Books) -> None:
    filled.votes("nobody-knows", 3)
    shard = filled.shard("nobody-knows")
    ordinal = filled.sync.hincrby(keys.counters(shard), "votes", 1)
    filled.sync.xadd(keys.events(shard), {"h": f"vote poll.first 1 c {ordinal}", "d": "{nonsense"})
    async with filled.consuming():
        await filled.settled()
    report = await filled.reconcile()
    assert report.exit_code == 0, report


async def test_votes_that_a_rollback_took_back_are_told_apart(filled: Books) -> None:
    shard = filled.shard("last")
    last = parse_entry_id(filled.sync.hget(keys.progress(shard), "last_id"))
    # Archived in the first epoch at a place that belongs to the next one: the log lost it.
    now = filled.sync.hget(keys.epochs(shard), "now").decode()
    filled.sync.hset(keys.epochs(shard), mapping={str(int(now) + 1): f"{last.ms}-{last.seq + 1}"})
    await filled.clickhouse.command(
        "INSERT INTO votes (shard, stream_epoch, stream_ms, stream_seq, poll_id, option_id, vote_hash) "
        f"VALUES ({shard}, {now}, {last.ms}, {last.seq + 7}, 'last', 'a', 99)"
    )
    report = await filled.reconcile()
    assert not [one for one in report.differences if one.place != "aggregate"]
    assert report.notes == [f"shard {shard}: 1 archived votes were lost by the log later"]


async def test_rows_of_an_earlier_log_in_the_same_database_are_not_counted(filled: Books) -> None:
    await filled.clickhouse.command(
        "INSERT INTO votes (shard, stream_epoch, stream_ms, stream_seq, poll_id, option_id, vote_hash) "
        f"VALUES ({filled.shard('last')}, 1, 5, 0, 'last', 'a', 99)"
    )
    created = (await filled.rows("SELECT min(stream_ms) FROM poll_states"))[0][0]
    filled.sync.hset(keys.LOG, "created_ms", created)
    report = await filled.reconcile()
    assert report.exit_code == 0, report


async def test_an_archive_that_does_not_catch_up_is_unknown_not_wrong(filled: Books) -> None:
    filled.votes("first", 5)
    async with filled.consuming(archive=False):
        await filled.settled(archive=False)
        report = await filled.reconcile(wait_s=0.2)
    assert (report.exit_code, report.differences) == (2, [])
    assert "the archive is at" in report.unknown[0]


async def test_only_what_changed_since_is_compared(filled: Books) -> None:
    since_ms = time.time_ns() // 1_000_000 + 10
    await asyncio.sleep(0.05)
    filled.votes("first", 5)
    async with filled.consuming():
        await filled.settled()
    report = await filled.reconcile(since_ms=since_ms)
    assert (report.exit_code, report.polls, report.maps) == (0, 1, 0)


async def test_the_command_tells_by_its_exit_code(filled: Books) -> None:
    environ: dict[str, str] = environment(filled.settings, {})

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner(env=environ).invoke(cli, ["reconcile", *arguments])
        return result.exit_code, result.output

    code, text = await asyncio.to_thread(run)
    assert code == 0, text
    assert text.startswith("clean: 11 polls with 665 votes, 1 maps")
    tampered(filled, "digest", digest=MASK)
    code, text = await asyncio.to_thread(run, "--json", "--since", "1h")
    report = json.loads(text)
    assert (code, report["exit_code"], len(report["differences"])) == (1, 1, 1)
    code, text = await asyncio.to_thread(run)
    assert (code, text.splitlines()[0].startswith("DIFFERS  shard ")) == (1, True)
    filled.sync.flushall()
    code, text = await asyncio.to_thread(run)
    assert (code, text.splitlines()[0]) == (2, "UNKNOWN  Redis holds no log")


async def test_a_difference_is_seen_in_the_metrics_within_the_interval(filled: Books) -> None:
    settings = msgspec.structs.replace(filled.settings, reconcile_interval_s=0.05)
    tampered(filled, "digest", digest=1)

    def gauge(place: str) -> float | None:
        return REGISTRY.get_sample_value("reconcile_differences", {"place": place})

    watching = asyncio.create_task(
        watch(filled.client, filled.clickhouse, settings, SHARDS, lambda: list(range(SHARDS)))
    )
    try:
        await wait_until(lambda: gauge("hot state") == 1, 15, "the difference is a metric")
        assert (gauge("log"), gauge("raw"), gauge("aggregate")) == (0, 0, 0)
        assert (REGISTRY.get_sample_value("reconciliations_total", {"verdict": "differs"}) or 0) >= 1
    finally:
        watching.cancel()


def test_since_is_an_age_or_an_instant() -> None:
    now_ms = 10 * 86_400_000
    assert [parse_since(text, now_ms) for text in ("", "90s", "15m", "2h", "1d")] == [
        0, now_ms - 90_000, now_ms - 900_000, now_ms - 7_200_000, now_ms - 86_400_000
    ]  # fmt: skip
    assert parse_since("1970-01-02T00:00:00Z", now_ms) == 86_400_000
    for wrong in ("yesterday", "5", "1970-01-02T00:00:00", "-5m"):
        with pytest.raises(Fatal, match="--since"):
            parse_since(wrong, now_ms)


@pytest.mark.parametrize("size", [1, 2, 7, 64])
async def test_bisecting_finds_the_first_index(size: int) -> None:
    for first in range(size):

        async def differs(index: int, first: int = first) -> bool:
            return index >= first

        assert await bisect(size, differs) == first


async def test_a_repair_computes_hot_state_and_aggregates_anew_and_says_so(filled: Books) -> None:
    """Also of an open poll in which people go on voting, and whose voters must not be able to vote twice."""
    shard = filled.shard("first")
    voters = filled.sync.hgetall(keys.voters(shard, "poll.first"))
    right = {poll: json.loads(filled.sync.hget(filled.state_key(poll), "data")) for poll in POLLS}
    tampered(filled, "first", counts={"a": 60, "b": 0}, digest=1)
    tampered(filled, "last", replaced=0, counts={"a": 1, "b": 39})
    definition = json.dumps(right["unlimited"]["definition"])
    filled.sync.hset(keys.definition(filled.shard("unlimited"), "poll.unlimited"), "def", definition)  # as ingest would
    filled.sync.delete(filled.state_key("unlimited"), keys.voters(shard, "poll.first"))
    filled.sync.zrem(keys.topics(filled.shard("unlimited")), "poll.unlimited")
    await filled.change("ALTER TABLE votes_per_minute_store UPDATE votes = 7 WHERE poll_id = 'minutes'")
    await filled.change("ALTER TABLE round_metrics_store UPDATE winner = 'team2' WHERE round_no = 2")
    broken = await filled.reconcile()
    assert broken.exit_code == 1
    async with filled.consuming():
        said = await Repairs(filled.client, filled.clickhouse, filled.settings, SHARDS).mend(broken)
        filled.votes("first", 3, voters=40)  # voters that have voted
        await filled.settled()
        report = await filled.reconcile()

        async def is_audited() -> bool:
            rows = await filled.rows("SELECT subject FROM audit WHERE action = 'repair' AND actor = 'operator'")
            return len(rows) == len(said) and {"poll.first", "poll.minutes", "match.m1"} <= {row[0] for row in rows}

        await wait_until(is_audited, 20, "the audit has every repair")
    assert report.exit_code == 0, (said, report)
    assert {line.split(":")[0] for line in said} == {
        "poll.first", "poll.last", "poll.unlimited", "votes_per_minute_store minutes", "round_metrics_store m1"
    }  # fmt: skip
    again = {poll: json.loads(filled.sync.hget(filled.state_key(poll), "data")) for poll in POLLS}
    first, was = again.pop("first"), right.pop("first")
    for poll, data in again.items():
        assert {**data, "received_ms": 0} == {**right[poll], "received_ms": 0}
    assert filled.sync.hgetall(keys.voters(shard, "poll.first")) == voters
    assert first["options"] == was["options"]
    assert first["rejected"]["already_voted"] == was["rejected"]["already_voted"] + 3


async def test_a_repair_that_dies_half_way_changes_nothing(filled: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repairing, "_VOTERS_AT_ONCE", 10)
    shard = filled.shard("first")
    tampered(filled, "first", counts={"a": 60, "b": 0}, digest=1)
    broken = await filled.reconcile()
    names = keys.state(shard, "poll.first"), keys.voters(shard, "poll.first")
    before = [filled.sync.hgetall(name) for name in names]
    repairs = Repairs(filled.client, filled.clickhouse, filled.settings, SHARDS)
    run, calls = repairs._scripts.run, []

    async def dying(name: str, *args: Any) -> Any:
        calls.append(name)
        if calls.count("repair_voters") == 3:
            raise RuntimeError("killed")
        return await run(name, *args)

    with monkeypatch.context() as patched:
        patched.setattr(repairs._scripts, "run", dying)
        with pytest.raises(RuntimeError, match="killed"):
            await repairs.mend(broken)
    assert [filled.sync.hgetall(name) for name in names] == before
    await repairs.mend(broken)
    assert filled.sync.hlen(names[1]) == len(before[1]) == 40
    assert filled.sync.hgetall(names[0]) != before[0]
    assert not filled.sync.exists(keys.new_voters(shard, "poll.first"))


async def test_what_raw_lacks_is_not_repaired_in_silence(filled: Books) -> None:
    await filled.change(
        f"DELETE FROM votes WHERE poll_id = 'missing' AND {at(await position_of(filled, 'missing', 9))}"
    )
    report = await filled.reconcile()
    said = await Repairs(filled.client, filled.clickhouse, filled.settings, SHARDS).mend(report)
    assert said
    assert all("not repaired" in line for line in said)


async def test_a_poll_id_that_is_used_again_is_another_poll(books: Books, tmp_path: Path) -> None:
    """In every book: they agree, a repair computes the latest life alone, and an export holds it alone."""
    books.log.poll("again", voting="unlimited")
    books.log.poll("quick", voting="unlimited")
    books.votes("again", 20)
    books.votes("quick", 20)
    books.log.close("again")
    books.log.close("quick")
    books.votes("again", 5)  # late
    books.votes("quick", 5)
    async with books.consuming():
        await books.settled()
    books.sync.delete(
        books.state_key("again")
    )  # as the retention does; of "quick" late votes have kept the state alive
    books.sync.zrem(keys.topics(books.shard("again")), "poll.again")
    for poll_id in ("again", "quick"):
        books.log.poll(poll_id)
        books.votes(poll_id, 10, voters=6)
    async with books.consuming():
        await books.settled()
        report = await books.reconcile()
        assert (report.exit_code, report.votes) == (0, 20), report
        shown = {poll: json.loads(books.sync.hget(books.state_key(poll), "data")) for poll in ("again", "quick")}
        for data in shown.values():
            assert (data["status"], data["voting"], data["applied"], data["voters"]) == ("open", "first", 10, 6)
        assert books.sync.ttl(books.state_key("quick")) == -1, "a live poll does not expire"
        books.sync.hset(
            keys.definition(books.shard("again"), "poll.again"), "def", json.dumps(shown["again"]["definition"])
        )
        tampered(books, "again", counts={"a": 1, "b": 0}, digest=1)
        broken = await books.reconcile()
        assert only([one for one in broken.differences if "counted" not in one.found]).place == "hot state"
        await Repairs(books.client, books.clickhouse, books.settings, SHARDS).mend(broken)
        await books.settled()
        assert (await books.reconcile()).exit_code == 0
        again = json.loads(books.sync.hget(books.state_key("again"), "data"))
        assert {**again, "received_ms": 0} == {**shown["again"], "received_ms": 0}
        manifest = await export(books.settings, "again", "csv", tmp_path / "again.csv", b"k" * 32)
        assert (manifest.rows, manifest.verified) == (10, True)
        assert parse_entry_id(manifest.since) > ZERO


async def test_a_topic_that_the_archive_does_not_know_is_named(filled: Books) -> None:
    for table, where in (("map_states", "match_id = 'm1'"), ("match_states", "1"), ("poll_states", "poll_id = 'gone'")):
        await filled.change(f"DELETE FROM {table} WHERE {where}")
    found = {(one.place, one.subject, one.found) for one in (await filled.reconcile()).differences}
    assert found >= {
        ("raw", topic, "nothing archived of it") for topic in ("match.m1.0", "match.m1.series", "poll.gone")
    }


async def test_a_closing_that_a_rollback_took_back_begins_no_life(filled: Books) -> None:
    shard = filled.shard("last")
    last = parse_entry_id(filled.sync.hget(keys.progress(shard), "last_id"))
    now = filled.sync.hget(keys.epochs(shard), "now").decode()
    await filled.clickhouse.command(
        "INSERT INTO poll_states (shard, stream_epoch, stream_ms, stream_seq, stream_k, poll_id, status) "
        f"VALUES ({shard}, {now}, {last.ms}, {last.seq + 5}, 1, 'last', 'closed')"
    )
    await filled.clickhouse.command(
        "INSERT INTO poll_states (shard, stream_epoch, stream_ms, stream_seq, stream_k, poll_id, status) "
        f"VALUES ({shard}, {int(now) + 1}, {last.ms}, {last.seq + 9}, 1, 'last', 'open')"
    )
    filled.sync.hset(keys.epochs(shard), mapping={str(int(now) + 1): f"{last.ms}-{last.seq + 1}"})
    cold = await open_cold(filled.client, filled.clickhouse, shard)
    assert await cold.lives(["last"], EntryId(last.ms + 1, 0)) == {}
    filled.sync.hset(keys.epochs(shard), mapping={str(int(now) + 1): f"{last.ms}-{last.seq + 7}"})
    cold = await open_cold(filled.client, filled.clickhouse, shard)
    assert await cold.lives(["last"], EntryId(last.ms + 1, 0)) == {"last": EntryId(last.ms, last.seq + 9)}
