"""`arenacast elo`: ratings of teams into ClickHouse, and from them a prior for every map that goes live.

What enters      finished and live maps, as ClickHouse shows them
What leaves      rows of `ratings`, those that differ from what is there; `win_prior` events, through ingest

A prior reaches the predictions as an event of its map, so replaying the log gives the same predictions, whatever the
ratings became later. Its id follows from match and map: sent twice, it is in the log once. It comes some seconds after
`going_live` (archive, then this job), which is before the first round ends.

Everything is computed from the beginning each time: 10,000 maps take 20 ms, and a result that was corrected or taken
back needs no rule of its own. Two of these jobs at once do no harm, they find the same.
"""

import asyncio
import hashlib
from collections.abc import Sequence

import httpx
import msgspec
import uvloop
from msgspec import Struct

from clickhouse.client import ClickHouse
from clickhouse.tables import RATINGS, Row
from clickhouse.writer import INSERT_SETTINGS
from consumers.ratings import MODEL, FinishedMap, RatedMap, expected, rate
from consumers.reducers.cs2_map import PRIOR_MIN
from core import http, logs
from core.backoff import delay_s
from core.digest import event_hash
from core.errors import ArenacastError, Retry
from core.metrics import LOOP_ERRORS
from core.settings import Settings

INTERVAL_S = 5.0
"""Between two looks of `--follow`: a round takes half a minute, and the prior should be there before the first ends."""

LONGEST_S = 60.0
"""Longest wait between two tries while something is away."""

SOURCE = "elo"
_INSERT_TIMEOUT_S = 30.0
_SEND_TIMEOUT_S = 10.0
_SEND_AT_ONCE = 1000  # events of one body

_NEWEST = "SELECT max((stream_ms, stream_seq, stream_epoch, stream_k)), count() FROM map_states"

_INPUTS = """
SELECT match_id, map_id, team1, team2, score_team1, score_team2, winner, toUnixTimestamp64Milli(ended_at)
FROM elo_inputs ORDER BY version, match_id, map_id
"""

_KNOWN = """
SELECT match_id, map_id, ordinal, team1, team2, before_team1, before_team2, expected_team1, result_team1, change_team1,
       is_void, toUnixTimestamp64Milli(ended_at)
FROM elo_ratings_store FINAL WHERE model = {model:String}
"""

_LIVE = """
SELECT match_id, map_id, team1, team2
FROM map_metrics
WHERE status = 'live' AND team1 != '' AND team2 != '' AND (match_id, map_id) NOT IN
(
    SELECT match_id, map_id FROM match_events
    WHERE type = 'win_prior' AND source = {source:String}
      AND match_id IN (SELECT match_id FROM map_metrics WHERE status = 'live')
)
"""


class Done(Struct, frozen=True):
    """What one look did."""

    maps: int
    rows: int
    priors: int


def run(settings: Settings, url: str, *, follow: bool) -> None:
    """Once, printing what was done, or until SIGTERM or SIGINT. `url` is the ingest's. Raises Retry or Fatal."""
    logs.configure("elo", settings)
    uvloop.run(_main(settings, url, follow))


async def _main(settings: Settings, url: str, follow: bool) -> None:
    clickhouse = ClickHouse(settings.clickhouse_target)
    headers = {"Authorization": f"Bearer {settings.secret('ingest_key')}"}
    try:
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=_SEND_TIMEOUT_S, trust_env=False) as ingest:
            job = Elo(clickhouse, ingest)
            if follow:
                await keep_rating(job, http.stop_event())
            else:
                done = await job.look()
                print(f"{done.maps} maps rated, {done.rows} ratings new or changed, {done.priors} priors sent")
    finally:
        await clickhouse.close()


async def keep_rating(job: "Elo", stop: asyncio.Event) -> None:
    """Look every few seconds until `stop` is set, whatever fails."""
    failures = 0
    while not stop.is_set():
        try:
            if await job.is_due():
                await job.look()
            failures = 0
        except Exception as error:  # top of the loop: whatever it is, the next map is rated
            failures += 1
            LOOP_ERRORS.labels("elo").inc()
            known = isinstance(error, ArenacastError)
            logs.get().warning("not rated", error=str(error), failures=failures, exc_info=None if known else error)
        try:
            await asyncio.wait_for(stop.wait(), INTERVAL_S + (delay_s(failures, LONGEST_S) if failures else 0.0))
        except TimeoutError:
            continue


class Elo:
    """The job, on a ClickHouse and an ingest."""

    def __init__(self, clickhouse: ClickHouse, ingest: httpx.AsyncClient) -> None:
        self._clickhouse = clickhouse
        self._ingest = ingest
        self._settled: tuple[object, ...] = ()

    async def is_due(self) -> bool:
        """Whether a map has changed since a look left nothing to do: one query that reads no row. Raises Retry."""
        return tuple((await self._clickhouse.query(_NEWEST))[0]) != self._settled

    async def look(self) -> Done:
        """Rate what there is, store what changed, send the priors that are missing. Raises Retry or Fatal."""
        # The position first: a map that ends meanwhile then has a newer one, and the next look counts.
        seen = tuple((await self._clickhouse.query(_NEWEST))[0])
        position = seen[0]
        maps = [FinishedMap(*row) for row in await self._clickhouse.query(_INPUTS)]
        rated, ratings = rate(maps)
        known = {tuple(row[:2]): tuple(row) for row in await self._clickhouse.query(_KNOWN, {"model": MODEL})}
        rows = changes(position, rated, known)
        if rows:
            await self._insert(rows)
        live = await self._clickhouse.query(_LIVE, {"source": SOURCE})
        priors = [
            prior(match_id, map_id, ratings[team1], ratings[team2])
            for match_id, map_id, team1, team2 in live
            if team1 in ratings and team2 in ratings
        ]
        for start in range(0, len(priors), _SEND_AT_ONCE):
            await self._send(priors[start : start + _SEND_AT_ONCE])
        self._settled = () if priors else seen  # a prior is there when the archive has it; until then it is sent again
        return Done(len(rated), len(rows), len(priors))

    async def _insert(self, rows: Sequence[Row]) -> None:
        body = RATINGS.encode(rows)
        token = f"{RATINGS.name}:{hashlib.sha256(body).hexdigest()}"
        settings = {**INSERT_SETTINGS, "insert_deduplication_token": token}
        await self._clickhouse.insert(RATINGS.name, RATINGS.columns, body, settings, timeout_s=_INSERT_TIMEOUT_S)

    async def _send(self, events: Sequence[dict[str, object]]) -> None:
        try:
            answer = await self._ingest.post(
                "/api/v1/events", content=msgspec.json.encode(events), headers={"Content-Type": "application/json"}
            )
        except httpx.HTTPError as error:
            raise Retry(f"ingest does not answer: {type(error).__name__}") from error
        if answer.status_code != 202:
            raise Retry(f"ingest answers {answer.status_code}")


def changes(
    position: tuple[int, int, int, int], rated: Sequence[RatedMap], known: dict[tuple[object, ...], Row]
) -> list[Row]:
    """Rows of `ratings` for what is not known as it is now. `position`: (ms, seq, epoch, k); `known`: rows of `_KNOWN`
    by (match, map)."""
    ms, seq, epoch, k = position
    rows: list[Row] = []
    for item in rated:
        played = item.played
        values = (
            played.match_id, played.map_id, item.ordinal, played.team1, played.team2, item.before1, item.before2,
            item.expected1, item.result1, item.change1, False, played.ended_ms,
        )  # fmt: skip
        if known.get((played.match_id, played.map_id)) != values:
            rows.append(_row((epoch, ms, seq, k), values))
    current = {(item.played.match_id, item.played.map_id) for item in rated}
    for name, row in known.items():
        if name not in current and not row[10]:
            rows.append(_row((epoch, ms, seq, k), (*row[:10], True, row[11])))
    return rows


def _row(position: tuple[int, int, int, int], values: Row) -> Row:
    match_id, map_id, ordinal, *others = values
    return (*position, MODEL, ordinal, match_id, map_id, *others)


def prior(match_id: str, map_id: str, rating1: float, rating2: float) -> dict[str, object]:
    """The event that tells a map's predictions where to start."""
    chance = min(1 - PRIOR_MIN, max(PRIOR_MIN, expected(rating1, rating2)))
    return {
        "event_id": f"elo:{event_hash(f'{match_id}/{map_id}'):016x}",
        "match_id": match_id,
        "map_id": map_id,
        "type": "win_prior",
        "source": SOURCE,
        "data": {
            "p_team1": round(chance, 9), "model": MODEL, "rating_team1": round(rating1, 3),
            "rating_team2": round(rating2, 3),
        },
    }  # fmt: skip
