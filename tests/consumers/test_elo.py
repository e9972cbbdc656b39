"""The Elo job: ratings that are the same however often they are computed, and a prior for every live map."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
from prometheus_client import REGISTRY

from clickhouse.restore import cut_ratings
from consumers import elo as module
from consumers.elo import Done, Elo
from consumers.ratings import MODEL, START, expected
from consumers.reducers.cs2_map import Cs2Map
from consumers.reducers.win_chance import win_probability
from core import keys
from core.errors import Retry
from core.settings import Settings
from ingest.app import service
from tests.support.archive_log import ArchiveLog
from tests.support.reduced_log import ReducedLog
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.redis, pytest.mark.clickhouse]

WIN = "1" * 13


@pytest.fixture
async def elo(settings: Settings, log: ArchiveLog) -> AsyncIterator[Elo]:
    """The job, on a real ingest of the log that is archived."""
    stop = asyncio.Event()
    async with service(msgspec.structs.replace(settings, shards=1), stop) as app:
        assert app is not None
        headers = {"Authorization": f"Bearer {settings.ingest_key}"}
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://ingest", headers=headers) as client:
            yield Elo(log.clickhouse, client)


async def table(log: ArchiveLog) -> list[tuple[Any, ...]]:
    return await log.rows("SELECT * FROM elo_ratings ORDER BY ordinal")


async def teams(log: ArchiveLog) -> dict[str, float]:
    return dict(await log.rows("SELECT team, rating FROM team_ratings"))


async def test_finished_maps_are_rated_once_in_the_order_of_the_log(log: ArchiveLog, elo: Elo) -> None:
    played = ReducedLog(log)
    played.play_map("m1", WIN, ("A", "B"))
    played.play_map("m2", "2" * 13, ("A", "C"))
    played.play_map("m3", WIN, ("A", "A"))  # nobody
    played.play_map("m4", "11", ("C", "D"), ends=False)
    await played.archive()
    assert (await elo.look()).rows == 2
    before = await table(log)
    assert [row[1:6] for row in before] == [(1, "m1", "0", "A", "B"), (2, "m2", "0", "A", "C")]
    found = await teams(log)
    assert found["B"] < START < found["C"]
    assert sum(found.values()) == pytest.approx(3 * START)
    again = await elo.look()
    assert (again.maps, again.rows) == (2, 0), "a second calculation finds nothing new"
    await log.clickhouse.command("TRUNCATE TABLE ratings")
    await log.clickhouse.command("TRUNCATE TABLE elo_ratings_store")
    assert (await elo.look()).rows == 2
    assert await table(log) == before, "and from nothing it finds the same"


async def test_ratings_of_maps_that_a_restore_cut_off_are_taken_back(log: ArchiveLog, elo: Elo) -> None:
    played = ReducedLog(log)
    played.play_map("m1", WIN, ("A", "B"))
    await played.archive()
    await elo.look()
    before = await table(log)
    played.play_map("m2", WIN, ("A", "C"))
    await played.archive()
    assert (await elo.look()).rows == 1
    for name in ("map_states", "map_metrics_store"):
        await log.clickhouse.command(
            f"DELETE FROM {name} WHERE match_id = 'm2'", settings={"lightweight_deletes_sync": 2}
        )
    assert await cut_ratings(log.clickhouse) == 1
    await elo.look()
    assert await table(log) == before


async def test_a_map_that_is_played_anew_takes_its_rating_back(log: ArchiveLog, elo: Elo) -> None:
    played = ReducedLog(log)
    played.play_map("m1", WIN, ("A", "B"))
    played.play_map("m2", WIN, ("A", "C"))
    await played.archive()
    await elo.look()
    played.play_map("m1", "2", ("A", "B"), ends=False)
    await played.archive()
    await elo.look()
    assert [(row[1], row[2]) for row in await table(log)] == [(1, "m2")]
    assert set(await teams(log)) == {"A", "C"}
    played.play_map("m1", "2" * 13, ("A", "B"))
    await played.archive()
    await elo.look()
    assert [(row[1], row[2], row[9]) for row in await table(log)] == [(1, "m2", 1.0), (2, "m1", 0.0)]


async def test_a_live_map_of_rated_teams_gets_one_prior_and_predicts_from_it(log: ArchiveLog, elo: Elo) -> None:
    played = ReducedLog(log)
    played.play_map("m1", WIN, ("A", "B"))
    played.play_map("m2", "12", ("A", "B"), ends=False)
    played.play_map("m3", "12", ("A", "unknown"), ends=False)
    await played.archive()
    assert await elo.look() == Done(1, 1, 1)
    assert await elo.look() == Done(1, 0, 1), "not archived yet, so it is sent again"
    await played.archive()
    assert await elo.look() == Done(1, 0, 0)
    rows = await log.rows("SELECT match_id, source, payload FROM match_events WHERE type = 'win_prior'")
    assert [row[:2] for row in rows] == [("m2", "elo")], "sent twice, in the log once"
    found = await teams(log)
    chance = expected(found["A"], found["B"])
    assert msgspec.json.decode(rows[0][2])["data"]["p_team1"] == pytest.approx(chance, abs=1e-9)
    state = played.states["match.m2.0"]
    assert isinstance(state, Cs2Map)
    assert win_probability(0, 0, state.p_round) == pytest.approx(chance, abs=1e-8)
    predictions = await log.rows("SELECT round_no, p_team1, model FROM predictions WHERE match_id = 'm2' ORDER BY ALL")
    round_no, chance, model = predictions[-1]
    assert (round_no, model) == (2, f"mr12-race/1+{MODEL}")
    assert chance == pytest.approx(win_probability(1, 1, state.p_round))
    assert chance > 0.5


async def test_the_log_alone_gives_the_same_predictions(log: ArchiveLog, elo: Elo) -> None:
    """Ratings that changed since do not reach back."""
    played = ReducedLog(log)
    played.play_map("m1", WIN, ("A", "B"))
    played.play_map("m2", "1", ("A", "B"), ends=False)
    await played.archive()
    await elo.look()
    await played.archive()
    await elo.look()
    played.play_map("m3", "2" * 13, ("A", "B"))
    await played.archive()
    await elo.look()
    again = ReducedLog(log)
    log.sync.delete(keys.updates(0))
    again.reduce()
    assert again.states == played.states


async def test_an_ingest_that_refuses_is_tried_again(log: ArchiveLog) -> None:
    played = ReducedLog(log)
    played.play_map("m1", WIN, ("A", "B"))
    played.play_map("m2", "1", ("A", "B"), ends=False)
    await played.archive()
    async with httpx.AsyncClient(base_url="http://127.0.0.1:9") as nobody:
        with pytest.raises(Retry, match="ingest does not answer"):
            await Elo(log.clickhouse, nobody).look()
    assert len(await table(log)) == 1, "the ratings are stored all the same"


async def test_following_survives_whatever_fails_and_looks_only_when_maps_have_changed(
    log: ArchiveLog, elo: Elo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "INTERVAL_S", 0.01)
    played = ReducedLog(log)
    played.play_map("m1", WIN, ("A", "B"))
    await played.archive()
    looks, look = [], elo.look

    async def failing() -> Done:
        looks.append(1)
        if len(looks) == 1:
            raise ZeroDivisionError("no error of ours")
        return await look()

    monkeypatch.setattr(elo, "look", failing)
    stop, errors = asyncio.Event(), failures()
    task = asyncio.create_task(module.keep_rating(elo, stop))

    async def rated(count: int) -> bool:
        return len(await table(log)) == count

    await wait_until(lambda: rated(1), 20, "the map is rated")
    assert failures() == errors + 1
    done = len(looks)
    queries = asyncio.get_running_loop().time() + 0.3
    await wait_until(lambda: asyncio.get_running_loop().time() > queries, 5, "some looks later")
    assert len(looks) == done == 2, "at rest it asks for the newest map only"
    played.play_map("m2", WIN, ("A", "C"))
    await played.archive()
    await wait_until(lambda: rated(2), 20, "the next map is rated")
    stop.set()
    await asyncio.wait_for(task, 5)


def failures() -> float:
    return REGISTRY.get_sample_value("loop_errors_total", {"loop": "elo"}) or 0.0
