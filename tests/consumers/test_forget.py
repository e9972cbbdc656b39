"""Erasure on real servers: a voter's hash is gone from every place, and no count or digest has changed."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from click.testing import CliRunner

from clickhouse import erasing
from clickhouse.segments import Shelf
from consumers.forget import Erasure, Outcome
from core import erasures, keys
from core.cli import cli
from core.digest import voter_hash
from core.errors import Fatal
from core.local.services import environment
from core.names import poll_topic
from core.redis_client import lua
from core.settings import Settings
from tests.support.books import SHARDS, Books
from tests.support.log_writer import SECRET
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.redis, pytest.mark.clickhouse]

VOTER = "v7"
HASH = voter_hash(SECRET, VOTER)


async def erase(books: Books, wait_s: float = 30.0) -> Outcome:
    return await Erasure(books.client, books.clickhouse, books.settings, SHARDS).erase([HASH], wait_s)


async def sums(books: Books) -> list[Any]:
    """Everything that must not change."""
    return [
        await books.rows("SELECT poll_id, option_id, count(), sum(vote_hash), sum(event_hash) FROM votes "
                         "GROUP BY ALL ORDER BY ALL"),
        await books.rows("SELECT poll_id, uniqExact(voter_hash) FROM votes GROUP BY ALL ORDER BY ALL"),
        await books.rows("SELECT poll_id, sum(votes), sum(digest), uniqCombined64Merge(20)(voters) "
                         "FROM votes_per_minute_store GROUP BY ALL ORDER BY ALL"),
        [books.sync.hget(books.state_key(poll), "data") for poll in ("open", "closed")],
    ]  # fmt: skip


@pytest.fixture
async def voted(books: Books) -> Books:
    """The voter voted several times in two polls, in one that is open, and in one that nobody knows."""
    books.log.poll("open", voting="last")
    books.log.poll("closed", voting="unlimited")
    for number in range(120):
        books.log.vote(("open", "closed")[number % 2], f"e{number}", "ab"[number // 2 % 2], f"v{number % 12}")
    for number in range(3):
        books.log.vote("closed", f"more{number}", "a", VOTER)
    books.log.vote("open", "open-7", "a", VOTER)
    books.log.close("closed")
    books.log.vote("nobody-knows", "lost", "a", VOTER)
    async with books.consuming():
        await books.settled()
    return books


async def test_a_forgotten_voter_is_nowhere_and_nothing_else_changed(voted: Books) -> None:
    books = voted
    before = await sums(books)
    as_number = int(HASH, 16)
    assert (await books.rows(f"SELECT count() FROM votes WHERE voter_hash = {as_number}"))[0][0] >= 5
    assert books.sync.hexists(keys.voters(books.shard("open"), "poll.open"), bytes.fromhex(HASH))
    async with books.consuming():
        outcome = await erase(books)
        assert outcome.left == []
        again = await erase(books)

        async def is_audited() -> bool:
            rows = await books.rows("SELECT detail FROM audit WHERE action = 'forget'")
            return len(rows) == 2 and not [row for row in rows if VOTER in row[0] or HASH in row[0]]

        await wait_until(is_audited, 20, "the audit has both, without a name")
    assert (outcome.polls, outcome.voters, outcome.dead) == (3, 1, 1)
    assert (again.rows, again.voters, again.dead, again.left) == (0, 0, 0, []), "a second time there is nothing"
    assert await books.rows(f"SELECT count() FROM votes WHERE voter_hash = {as_number}") == [(0,)]
    after = await sums(books)
    assert after == before
    counted = "SELECT uniqCombined64Merge(20)(voters) FROM votes_per_minute_store"
    known = (await books.rows(counted))[0][0]
    with_hash = await books.rows(
        f"""SELECT uniqCombined64Merge(20)(voters) FROM (SELECT voters FROM votes_per_minute_store UNION ALL
            SELECT uniqCombined64State(20)(toUInt64({as_number})))"""
    )
    assert with_hash == [(known + 1,)], "no aggregate holds a state made of the hash"
    for shard in range(SHARDS):
        for stream in (keys.events(shard), keys.dead(shard)):
            assert HASH.encode() not in str(books.sync.xrange(stream)).encode()
        for name in books.sync.scan_iter(f"voters:{keys.tag(shard)}:*"):
            assert not books.sync.hexists(name, bytes.fromhex(HASH))
    assert (await books.reconcile()).exit_code == 0
    # Nothing joins the two polls any more.
    joined = await books.rows("SELECT voter_hash FROM votes GROUP BY voter_hash HAVING uniqExact(poll_id) > 1")
    assert as_number not in {row[0] for row in joined}
    assert await books.rows(
        "SELECT count() FROM system.tables WHERE name = 'erasing' AND database = currentDatabase()"
    ) == [(0,)]
    mutations = await books.rows("SELECT command FROM system.mutations WHERE database = currentDatabase()")
    assert not [row for row in mutations if str(as_number) in row[0] or HASH in row[0]]
    # The file holds no trace either.
    directory = Path(books.sync.config_get("dir")["dir"]) / "appendonlydir"
    await wait_until(lambda: not _in_files(directory, HASH.encode()), 20, "the append-only file was rewritten")
    known = erasures.read([books.settings.data_dir])
    assert set(known) == {HASH}
    # A vote from now on is new.
    async with books.consuming():
        books.log.vote("open", "new", "b", VOTER)
        await books.settled()
    assert await books.rows(f"SELECT count() FROM votes WHERE voter_hash = {as_number}") == [(1,)]


def _in_files(directory: Path, needle: bytes) -> bool:
    return any(needle in path.read_bytes() for path in directory.iterdir())


async def test_what_consumers_have_not_committed_is_named_and_done_the_next_time(voted: Books) -> None:
    voted.log.vote("open", "late", "a", VOTER)
    outcome = await erase(voted, wait_s=0.1)  # nobody consumes
    assert any("not applied and archived yet" in text for text in outcome.left)
    assert any("no archive has computed" in text for text in outcome.left)
    assert f"{keys.events(voted.shard('open'))} still holds it" in outcome.left
    async with voted.consuming():
        await voted.settled()
        assert (await erase(voted)).left == []
    assert await erasing.erased_polls(voted.clickhouse, {HASH: 2**62}) == {}


async def test_an_erasure_that_was_interrupted_is_finished_by_the_next(voted: Books) -> None:
    """It dies when the hashes have left raw, and before anybody asked for the aggregates made of them."""
    before = await states(voted)
    assert await erasing.erase_rows(voted.clickhouse, {HASH: 2**53})
    async with voted.consuming():
        outcome = await erase(voted)
        assert (outcome.rows, outcome.left) == (0, [])
    assert await states(voted) != before, "no aggregate holds a state made of the hash"
    assert await erasing.interrupted(voted.clickhouse) == []


async def states(books: Books) -> list[tuple[Any, ...]]:
    """What the aggregates know of voters."""
    return await books.rows(
        "SELECT poll_id, hex(MD5(toString(uniqCombined64MergeState(20)(voters)))) FROM votes_per_minute_store "
        "GROUP BY ALL ORDER BY ALL"
    )


async def test_a_log_that_is_restored_is_restored_without_the_erased(
    voted: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a restore does: alone with the servers, everything at once, the log included."""
    voted.log.vote("open", "late", "a", VOTER)
    ids = [entry[0] for entry in voted.sync.xrange(keys.events(voted.shard("open")))]
    shelf = Shelf(voted.settings.spill_path, "test", 2**30)
    last: Any = voted.sync.xrevrange(keys.events(voted.shard("open")), count=1)
    file = shelf.write(voted.shard("open"), "events", 1, last)
    damaged = shelf.write(1 - voted.shard("open"), "events", 1, last)
    (shelf.directory / damaged).write_bytes(b"nonsense")
    monkeypatch.setattr(erasing, "PAGE", 7)
    text = await erasing.erase_everywhere(voted.client, voted.clickhouse, {HASH: 2**53}, voted.settings.spill_path)
    assert "0 log entries" not in text
    assert f"NOT in {damaged}" in text, "one that cannot be read holds up nothing else"
    assert HASH.encode() not in shelf.read(file)[0][1][b"d"], "the archive would bring it back from there"
    entries = voted.sync.xrange(keys.events(voted.shard("open")))
    assert [entry[0] for entry in entries] == ids, "every entry keeps its place"
    assert HASH.encode() not in str(entries).encode()
    async with voted.consuming():
        await voted.settled()
    assert (await voted.reconcile()).exit_code == 0
    assert await erasing.erased_polls(voted.clickhouse, {HASH: 2**53}) == {}


async def test_dead_letters_are_rewritten_page_by_page_while_others_come(
    voted: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasing, "PAGE", 3)
    stream = keys.dead(0)
    voted.sync.delete(stream)
    bodies = [
        b'{"voter":"%s","n":%d}' % ((HASH, "0123456789abcdef")[number % 2].encode(), number) for number in range(8)
    ]
    for number, body in enumerate(bodies):
        voted.sync.xadd(stream, {"id": f"{number + 1}-0", "d": body}, id=f"{number + 1}-0")
    script, calls = lua("clickhouse", "blank_voters"), []
    names = [stream, keys.blanked(stream), keys.blanking(stream)]

    def page(after: bytes, token: str = "mine") -> Any:
        calls.append(after)
        return voted.sync.eval(script, 3, *names, after, 3, token, 60, erasing.BLANK, HASH, 2**53)

    assert page(b"") == [b"3-0", 0, 2]
    with pytest.raises(redis.ResponseError, match="STALE another erasure"):
        page(b"", "yours")
    assert page(b"3-0") == [b"6-0", 0, 1]
    voted.sync.xadd(stream, {"id": "9-0", "d": bodies[0]}, id="9-0")  # a letter comes
    assert page(b"6-0") == [b"9-0", 0, 2]
    assert len(voted.sync.xrange(stream)) == 9
    assert page(b"9-0") == [b"9-0", 1, 0]
    found = voted.sync.xrange(stream)
    assert [raw for raw, _ in found] == [f"{number}-0".encode() for number in range(1, 10)]
    assert HASH.encode() not in str(found).encode()
    assert (voted.sync.ttl(stream), voted.sync.exists(*names[1:])) == (-1, 0)
    info = voted.sync.xinfo_stream(stream)
    assert (info["last-generated-id"], info["entries-added"]) == (b"9-0", 9)
    with pytest.raises(redis.ResponseError, match="STALE the copy has expired"):
        page(b"3-0")


async def test_the_command_finds_hashes_of_earlier_secrets(voted: Books) -> None:
    settings = msgspec.structs.replace(voted.settings, voter_secret="a new secret of enough length")
    settings.data_dir.mkdir(parents=True)
    settings.voter_secrets_file.write_text("a secret for tests only\n")
    async with voted.consuming():
        result = await asyncio.to_thread(
            CliRunner(env=environment(settings, {})).invoke, cli, ["forget", "-"], input=f"{VOTER}\n"
        )
    assert result.exit_code == 0, result.output
    assert "votes in 3 polls" in result.output
    assert VOTER not in result.output
    assert await erasing.erased_polls(voted.clickhouse, {HASH: 2**62}) == {}


def test_rotation_keeps_the_old_secret_apart(settings: Settings) -> None:
    settings = msgspec.structs.replace(settings, voter_secret="")
    settings.data_dir.mkdir(parents=True)
    settings.secret_file("voter_secret").write_text("the first secret of all\n")
    environ = environment(settings, {})
    for number in (1, 2):
        result = CliRunner(env=environ).invoke(cli, ["rotate-voter-secret"])
        assert result.exit_code == 0, result.output
        assert len(settings.voter_secrets()) == number + 1
    assert settings.voter_secrets()[-1] == "the first secret of all"
    assert len(set(settings.voter_secrets())) == 3
    assert settings.voter_secrets_file.stat().st_mode & 0o777 == 0o600
    settings.voter_secrets_file.unlink()
    assert settings.voter_secrets() == [settings.secret("voter_secret")]


def test_rotation_waits_for_open_polls(settings: Settings) -> None:
    settings = msgspec.structs.replace(settings, voter_secret="", shards=2)
    settings.data_dir.mkdir(parents=True)
    settings.secret_file("voter_secret").write_text("the first secret of all\n")
    with redis.Redis.from_url(settings.redis_url) as client:
        client.hset(keys.LOG, mapping={"id": "x", "shards": 2, "created_ms": 1})
        client.hset(keys.definition(1, poll_topic("p")), mapping={"def": "{}", "voted": "1"})
    result = CliRunner(env=environment(settings, {})).invoke(cli, ["rotate-voter-secret"])
    assert isinstance(result.exception, Fatal)
    assert "1 polls are open" in str(result.exception)
    assert CliRunner(env=environment(settings, {})).invoke(cli, ["rotate-voter-secret", "--force"]).exit_code == 0


def test_a_damaged_list_of_erasures_is_refused(tmp_path: Path) -> None:
    erasures.add(tmp_path, {HASH: 5})
    erasures.add(tmp_path, {HASH: 7, "0" * 16: 3})
    assert erasures.read([tmp_path, tmp_path / "absent"]) == {HASH: 7, "0" * 16: 3}
    (tmp_path / erasures.LIST).write_text("nonsense 5\n")
    with pytest.raises(Fatal, match="line 1"):
        erasures.read([tmp_path])
