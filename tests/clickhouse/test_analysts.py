"""Analysts see what was decided, and voters under names that lead nowhere."""

import re
from pathlib import Path

import pytest

from clickhouse.analysts import HIDDEN, SHOWN, ensure_key
from clickhouse.client import ClickHouse
from clickhouse.migrate import migrate
from core.settings import Settings

pytestmark = pytest.mark.clickhouse

ROOT = Path(__file__).resolve().parents[2]
RIGHTS = ROOT / "docker" / "clickhouse" / "analyst.sql"
EMBEDDED_RIGHTS = ROOT / "clickhouse" / "embedded" / "users.xml"
DERIVED = {"votes": {"voter"}}
KEY = (1_234_567_890_123_456_789, 9_876_543_210_987_654_321)
VOTES = "INSERT INTO votes (poll_id, option_id, voter_hash, event_hash, vote_hash, received_at) VALUES {rows}"


@pytest.fixture
async def an(clickhouse: ClickHouse) -> str:
    [[database]] = await clickhouse.query("SELECT currentDatabase()")
    return f"{database}_an"


async def vote(clickhouse: ClickHouse, *votes: tuple[str, int]) -> None:
    rows = ", ".join(f"('{poll}', 'a', {voter}, 777001, 777002, now())" for poll, voter in votes)
    settings = {"async_insert": 0, "insert_deduplication_token": rows}
    await clickhouse.command(VOTES.format(rows=rows), settings=settings)


async def voters(clickhouse: ClickHouse, an: str) -> dict[str, list[int]]:
    rows = await clickhouse.query(f"SELECT poll_id, groupArray(voter) FROM {an}.votes GROUP BY poll_id")
    return {poll: sorted(found) for poll, found in rows}


async def test_every_column_of_every_raw_table_is_decided(clickhouse: ClickHouse) -> None:
    """Red when a table or column is new: decide in clickhouse/analysts.py whether analysts see it."""
    rows = await clickhouse.query(
        "SELECT table, groupArray(name) FROM system.columns WHERE database = currentDatabase() AND table IN "
        "(SELECT name FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%MergeTree') "
        "AND table NOT LIKE '%\\_store' GROUP BY table"
    )
    for table, columns in rows:
        decided = set(SHOWN.get(table, ())) | set(HIDDEN.get(table, {}))
        if "*" not in decided:
            assert set(columns) <= decided | {"stream_k"}, table


async def test_the_views_show_what_was_decided_and_nothing_else(clickhouse: ClickHouse, an: str) -> None:
    for table, shown in SHOWN.items():
        found = {row[0] for row in await clickhouse.query(f"DESCRIBE TABLE {an}.{table}")}
        assert found == shown | DERIVED.get(table, set())
        assert not found & set(HIDDEN[table])


async def test_no_view_shows_a_digest_hash_payload_or_id_of_an_event(clickhouse: ClickHouse, an: str) -> None:
    rows = await clickhouse.query("SELECT DISTINCT name FROM system.columns WHERE database = {an:String}", {"an": an})
    names = {row[0] for row in rows}
    assert len(names) > 60
    assert not {name for name in names if re.search(r"hash|digest|payload|event_id|correlation|key|ip|user", name)}


async def test_every_view_of_analysts_has_its_definers_rights(clickhouse: ClickHouse, an: str) -> None:
    rows = await clickhouse.query(
        "SELECT name, create_table_query FROM system.tables WHERE database = {an:String}", {"an": an}
    )
    assert len(rows) >= 18
    for name, sql in rows:
        assert "SQL SECURITY DEFINER" in sql, name


async def test_votes_of_one_voter_join_within_a_poll_and_nowhere_else(clickhouse: ClickHouse, an: str) -> None:
    await vote(clickhouse, ("p1", 5), ("p1", 5), ("p1", 6), ("p2", 5), ("p2", 0))
    found = await voters(clickhouse, an)
    assert len(found["p1"]) == 3
    assert len(set(found["p1"])) == 2
    assert found["p2"][0] == 0, "who was erased stays nobody"
    assert not set(found["p1"]) & set(found["p2"])
    assert not {5, 6} & {voter for group in found.values() for voter in group}


async def test_a_new_key_gives_every_voter_another_name(clickhouse: ClickHouse, an: str) -> None:
    await vote(clickhouse, ("p1", 5), ("p1", 6))
    before = await voters(clickhouse, an)
    await ensure_key(clickhouse)
    assert await voters(clickhouse, an) == before
    await ensure_key(clickhouse, renew=True)
    after = await voters(clickhouse, an)
    assert not set(before["p1"]) & set(after["p1"])
    assert len(set(after["p1"])) == 2


async def test_without_a_key_no_vote_is_shown(clickhouse: ClickHouse, an: str) -> None:
    await vote(clickhouse, ("p1", 5))
    await clickhouse.command("TRUNCATE TABLE analyst_keys")
    assert await voters(clickhouse, an) == {}


async def test_the_hash_of_a_voter_goes_after_its_time_and_the_vote_stays(clickhouse: ClickHouse) -> None:
    for days in (399, 401):
        await clickhouse.command(
            "INSERT INTO votes (poll_id, option_id, voter_hash, vote_hash, received_at) "
            "SELECT {days:String}, 'a', 5, 7, now() - toIntervalDay({days:UInt32})",
            {"days": str(days)},
            settings={"async_insert": 0, "insert_deduplication_token": str(days)},
        )
    await clickhouse.command("OPTIMIZE TABLE votes FINAL")
    rows = await clickhouse.query("SELECT poll_id, voter_hash, vote_hash FROM votes ORDER BY poll_id")
    assert [tuple(row) for row in rows] == [("399", 5, 7), ("401", 0, 7)]


async def test_no_explanation_of_a_query_shows_the_key(clickhouse: ClickHouse, an: str) -> None:
    """A scalar subquery in its place would be shown as a constant by EXPLAIN actions = 1 (tried)."""
    await vote(clickhouse, ("p1", 5))
    await clickhouse.command("TRUNCATE TABLE analyst_keys")
    await clickhouse.command(
        f"INSERT INTO analyst_keys VALUES (now64(3), {KEY[0]}, {KEY[1]})", settings={"async_insert": 0}
    )
    select = f"SELECT voter, count() FROM {an}.votes WHERE poll_id = 'p1' GROUP BY voter"
    for explain in (
        "EXPLAIN", "EXPLAIN actions = 1, indexes = 1, header = 1", "EXPLAIN json = 1, actions = 1",
        "EXPLAIN QUERY TREE",
        "EXPLAIN SYNTAX run_query_tree_passes = 1", "EXPLAIN PIPELINE header = 1", "EXPLAIN AST", "EXPLAIN ESTIMATE",
    ):  # fmt: skip
        text = str(await clickhouse.query(f"{explain} {select}"))
        assert not [part for part in KEY if str(part) in text], explain


async def test_a_poll_is_found_by_the_primary_key_through_the_view(clickhouse: ClickHouse, an: str) -> None:
    await clickhouse.command(
        "INSERT INTO votes (poll_id, option_id, voter_hash, received_at) SELECT concat('p', number % 5), 'a', number, "
        "toDateTime64('2026-11-21 18:00:00', 3, 'UTC') FROM numbers(100000)",
        settings={"async_insert": 0, "insert_deduplication_token": "many"},
    )
    plan = await clickhouse.query(f"EXPLAIN indexes = 1 SELECT uniqExact(voter) FROM {an}.votes WHERE poll_id = 'p3'")
    text = "\n".join(row[0] for row in plan)
    assert "poll_id in" in text, text


async def test_the_rights_for_a_server_parse_and_bound_what_the_embedded_one_bounds(clickhouse: ClickHouse) -> None:
    """No server here could run them: the engine has no writable user storage."""
    text = RIGHTS.read_text()
    lines = [line for line in text.splitlines() if not line.startswith("--")]
    statements = [part.strip() for part in " ".join(lines).split(";") if part.strip()]
    assert len(statements) == 5
    for statement in statements:
        [[found]] = await clickhouse.query("SELECT formatQuerySingleLine({sql:String})", {"sql": statement})
        assert found
    embedded = EMBEDDED_RIGHTS.read_text()
    for name, limit in re.findall(r"<(max_\w+)><min>1</min><max>(\d+)</max>", embedded):
        assert f"{name} = {limit} MIN 1 MAX {limit}" in text
    assert "GRANT SELECT ON an.* TO" in text
    assert "GRANT SELECT ON an.*" in embedded


async def test_a_restored_archive_gets_its_analysts_views_again(
    clickhouse: ClickHouse, an: str, database_url: str, tmp_path: Path
) -> None:
    """A backup of the archive alone says that all migrations are applied, and has none of their other database."""
    await vote(clickhouse, ("p1", 5))
    before = await voters(clickhouse, an)
    count = "SELECT count() FROM system.tables WHERE database = {an:String}"
    views = await clickhouse.query(count, {"an": an})
    await clickhouse.command("DROP DATABASE {an:Identifier}", {"an": an})
    await migrate(Settings(data_dir=tmp_path, clickhouse_url=database_url))
    assert await clickhouse.query(count, {"an": an}) == views
    assert await voters(clickhouse, an) == before
