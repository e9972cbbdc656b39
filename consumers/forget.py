"""`arenacast forget`: a platform identity's keyed hash out of every place that has it.

The log cannot be edited. Its entries leave by being trimmed, so we wait until hot state and archive have committed what
was appended before the erasure, and trim it away at once instead of after the retention. Then no redo and no repair can
bring the hash back, and a restore applies the list of erasures that is kept beside the backups.
"""

import asyncio
import time
from collections.abc import Callable, Mapping

import msgspec
from msgspec import Struct

from clickhouse import erasing, mending, segments
from clickhouse.client import ClickHouse
from clickhouse.restore import log_end
from consumers.reconcile import existing_shards
from core import audit, erasures, keys, redis_client
from core.audit import Record
from core.digest import voter_hash, voter_key
from core.errors import Fatal, Retry
from core.names import poll_topic, shard_of
from core.position import EntryId, parse_entry_id
from core.redis_client import Redis, Scripts, call
from core.settings import Settings

VOTER_MAX = 128
_POLL_S = 0.1

Say = Callable[[str], None]


class Outcome(Struct):
    """What was blanked where; `left` says what could not be done yet."""

    rows: int = 0
    polls: int = 0
    voters: int = 0
    dead: int = 0
    trimmed: int = 0
    segments: int = 0
    left: list[str] = msgspec.field(default_factory=list)


def run(settings: Settings, voter: str, *, wait_s: float) -> int:
    """Erase one voter and print what was done. Returns 0 when nothing is left of it, 2 when it must be run again."""
    if not 1 <= len(voter) <= VOTER_MAX:
        raise Fatal(f"a voter has 1 to {VOTER_MAX} characters, as the platform's votes name it")
    hashes = {voter_hash(voter_key(secret), voter) for secret in settings.voter_secrets()}
    outcome = asyncio.run(_run(settings, sorted(hashes), wait_s))
    print(f"ClickHouse    {outcome.rows} votes in {outcome.polls} polls, their aggregates computed anew")
    print(f"hot state     {outcome.voters} entries among the voters of open polls (a new vote there counts again)")
    print(f"dead letters  {outcome.dead}")
    print(f"log           {outcome.trimmed} entries trimmed before their time, {outcome.segments} changed on disk")
    print(f"backups       made before now still hold it, are restored without it ({erasures.LIST}), and expire after "
          f"{settings.backup_retention_days:g} days")  # fmt: skip
    for text in outcome.left:
        print(f"NOT YET       {text}")
    return 2 if outcome.left else 0


async def _run(settings: Settings, hashes: list[str], wait_s: float) -> Outcome:
    client = redis_client.connect(settings)
    clickhouse = ClickHouse(settings.clickhouse_target)
    try:
        return await Erasure(client, clickhouse, settings, await existing_shards(client)).erase(hashes, wait_s)
    finally:
        await clickhouse.close()
        await client.aclose()


class Erasure:
    """One erasure. Repeating it is harmless; a second one finds nothing."""

    def __init__(self, client: Redis, clickhouse: ClickHouse, settings: Settings, shards: int) -> None:
        self._client = client
        self._clickhouse = clickhouse
        self._settings = settings
        self._shards = shards

    async def erase(self, hashes: list[str], wait_s: float) -> Outcome:
        """Erase these hashes up to now. Raises Retry when a server is away; then it is to be run again."""
        outcome = Outcome()
        seconds, micros = await call(self._client.time())
        until_ms = int(seconds) * 1000 + int(micros) // 1000
        erased = dict.fromkeys(hashes, until_ms)
        for directory in {self._settings.data_dir, self._settings.backups_dir}:  # first: from here on restores obey
            await asyncio.to_thread(erasures.add, directory, erased)
        deadline = time.monotonic() + wait_s
        for shard in range(self._shards):
            end = await log_end(self._client, keys.events(shard))
            if await self._is_committed(shard, end, deadline):
                trimmed = await call(self._client.xtrim(keys.events(shard), minid=str(end.next), approximate=False))
                outcome.trimmed += int(trimmed)
            else:
                outcome.left.append(f"shard {shard}: the log up to {end} is not applied and archived yet")
        await self._erase_segments(outcome, erased)
        await self._ask(await erasing.interrupted(self._clickhouse))
        polls = await erasing.erase_rows(self._clickhouse, erased)
        outcome.rows, outcome.polls = sum(polls.values()), len(polls)
        await self._ask(list(polls))
        await erasing.done(self._clickhouse)
        await self._wait_mended(outcome, max(5.0, deadline - time.monotonic()))
        counts = await erasing.erase_in_redis(self._client, self._shards, erased)
        outcome.voters, outcome.dead = counts["voters"], counts["dead"]
        for place in await erasing.left_in_redis(self._client, self._shards, hashes, until_ms):
            outcome.left.append(f"{place} still holds it")
        await self._rewrite_file(outcome)
        detail = (
            f"{outcome.rows} rows, {outcome.voters} voters, {outcome.dead} dead letters, {len(outcome.left)} not yet"
        )
        record = Record("", "forget", "operator", until_ms, detail=detail)
        await audit.append(Scripts(self._client, self._shards, audit.sources()), self._shards, [record])
        return outcome

    async def _is_committed(self, shard: int, end: EntryId, deadline: float) -> bool:
        while True:
            applied = await call(self._client.hget(keys.progress(shard), "last_id"))
            archived = await call(self._client.hget(keys.archive(shard, "events"), "committed"))
            if min(parse_entry_id(applied or b"0-0"), parse_entry_id(archived or b"0-0")) >= end:
                return True
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(_POLL_S)

    async def _erase_segments(self, outcome: Outcome, erased: Mapping[str, int]) -> None:
        try:
            outcome.segments, damaged = await asyncio.to_thread(
                segments.erase_voters, self._settings.spill_path, erased
            )
        except OSError as error:
            outcome.left.append(f"segment files: {error}")
            return
        outcome.left.extend(f"segment {name} is damaged" for name in damaged)

    async def _ask(self, polls: list[str]) -> None:
        """Have the aggregates of polls computed anew."""
        by_shard: dict[int, list[str]] = {}
        for poll_id in polls:
            by_shard.setdefault(shard_of(poll_topic(poll_id), self._shards), []).append(poll_id)
        if by_shard:
            for aggregate in await erasing.vote_aggregates(self._clickhouse):
                for shard, ids in by_shard.items():
                    await mending.ask(self._client, shard, aggregate, ids)

    async def _wait_mended(self, outcome: Outcome, timeout_s: float) -> None:
        """Until nothing is left to be computed anew, also of an erasure before this one."""
        try:
            given_up = await mending.wait_done(self._client, range(self._shards), timeout_s)
        except Retry as error:
            outcome.left.append(str(error))
            return
        outcome.left.extend(f"{request} was not computed anew: {why}" for (_, request), why in given_up.items())

    async def _rewrite_file(self, outcome: Outcome) -> None:
        """What was deleted still stands in the append-only file until it is rewritten."""
        info = await call(self._client.info("persistence"))
        if not info.get("aof_enabled"):
            return
        try:
            await call(self._client.bgrewriteaof())
        except Exception as error:
            outcome.left.append(f"Redis' append-only file was not rewritten: {error}")
            return
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            info = await call(self._client.info("persistence"))
            if not info["aof_rewrite_in_progress"] and not info["aof_rewrite_scheduled"]:
                return
            await asyncio.sleep(_POLL_S)
        outcome.left.append("Redis' append-only file is still being rewritten")
