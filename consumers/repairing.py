"""`arenacast reconcile --repair`: what differs from raw is computed anew from raw, and it is said.

Aggregates are mended by the archive that owns the shard (`clickhouse.mending`). A poll's hot state is replayed; for the
moment of putting it in place the shard is taken from its owner, who takes it up again and reads everything anew. Raw
and the log are never changed: where they differ something was lost, and an operator has to know.

Readers see a mended tally with the next vote, or when they connect again.
"""

import asyncio
import contextlib
import secrets
import time

import msgspec

from clickhouse import comparison, mending
from clickhouse.client import ClickHouse
from consumers.batch import unpack_state
from consumers.books import POLL_EVERY_S, archived_up_to, open_cold
from consumers.lease import lease_sources
from consumers.reconciliation import Difference, Report
from consumers.reducers.poll import Poll
from consumers.replaying import Replayed, replay_poll
from core import audit, epochs, keys, logs
from core.audit import Record
from core.errors import Fenced, Poison, Retry
from core.events import PollDefinition, decode_poll
from core.position import EntryId, parse_entry_id
from core.redis_client import Argument, Redis, Scripts, call, lua
from core.settings import Settings

LEASE_MS = 60_000
WAIT_S = 60.0
_VOTERS_AT_ONCE = 2000
"""Two words each of one command: Lua's unpack takes fewer than 8000."""

_encode = msgspec.json.Encoder().encode
_pack = msgspec.msgpack.Encoder().encode


class Repairs:
    """Repairs of one run."""

    def __init__(self, client: Redis, clickhouse: ClickHouse, settings: Settings, shards: int) -> None:
        self._client = client
        self._clickhouse = clickhouse
        self._settings = settings
        self._shards = shards
        sources = {name: lua("consumers", name) for name in ("lease_seize", "repair_voters", "repair_state")}
        self._scripts = Scripts(client, shards, {**lease_sources(), **audit.sources(), **sources})
        self._owner = f"repair-{secrets.token_hex(4)}"

    async def mend(self, report: Report) -> list[str]:
        """Repair what can be; a line for each difference. Raises Retry when a server is away."""
        wrong = {one.subject.partition(".")[2] for one in report.differences if one.place == "raw"}
        aggregates = [one for one in report.differences if one.place == "aggregate"]
        said = await self._mend_aggregates([one for one in aggregates if one.subject.split(" ")[1] not in wrong])
        said += (
            f"{one.subject}: not repaired: it may be right, since raw is not"
            for one in aggregates
            if one.subject.split(" ")[1] in wrong
        )
        polls = {
            (one.shard, one.subject)
            for one in report.differences
            if one.place == "hot state" and one.subject.startswith("poll.")
        }
        for shard, topic in sorted(polls):
            try:
                said.append(await self._mend_poll(shard, topic))
            except (Retry, Fenced) as error:
                said.append(f"{topic}: not repaired: {error}")
        for one in report.differences:
            if one.place in ("log", "raw") or (one.place == "hot state" and not one.subject.startswith("poll.")):
                said.append(
                    f"{one.subject or f'shard {one.shard}'}: not repaired: {one.place} is not computed from raw"
                )
        for line in said:
            logs.get().warning("repair", what=line)
        now_ms = time.time_ns() // 1_000_000
        records = [
            Record(_audited(line.partition(":")[0]), "repair", "operator", now_ms, detail=line[:300]) for line in said
        ]  # fmt: skip
        await audit.append(self._scripts, self._shards, records)
        return said

    async def _mend_aggregates(self, differences: list[Difference]) -> list[str]:
        known = {one.name: one for one in await comparison.discover(self._clickhouse)}
        for one in differences:
            name, _, subject = one.subject.partition(" ")
            await mending.ask(self._client, one.shard, known[name], [subject])
        given_up = await mending.wait_done(self._client, sorted({one.shard for one in differences}), WAIT_S)
        reasons = {one.subject: given_up.get((one.shard, one.subject)) for one in differences}
        return [
            f"{subject}: computed anew from raw" if why is None else f"{subject}: not repaired: {why}"
            for subject, why in reasons.items()
        ]

    async def _mend_poll(self, shard: int, topic: str) -> str:
        definition = await self._definition(shard, topic)
        await self._replayed(shard, definition)  # once beforehand, so that the shard stands still for little
        names = [keys.lease(shard, "state"), keys.fence(shard, "state")]
        token = int(await self._scripts.run("lease_seize", names, [self._owner, LEASE_MS]))
        try:
            last, replayed = await self._replayed(shard, definition)
            await self._store(shard, topic, token, last, replayed)
        finally:
            await self._scripts.run("lease_renew", names[:1], [self._owner, token, 0])
        state = replayed.state
        return f"{topic}: computed anew from raw as of {last}: {state.applied} votes applied, {state.counts}"

    async def _definition(self, shard: int, topic: str) -> PollDefinition:
        packed = await call(self._client.hget(keys.state(shard, topic), "priv"))
        with contextlib.suppress(Poison):
            state = unpack_state(topic, packed) if packed else None
            if isinstance(state, Poll):
                return state.definition
        body = await call(self._client.hget(keys.definition(shard, topic), "def"))
        if body is None:
            raise Retry("its definition is gone: it expired")
        try:
            return decode_poll(body)
        except msgspec.MsgspecError as error:
            raise Poison(f"definition of {topic} cannot be read") from error

    async def _replayed(self, shard: int, definition: PollDefinition) -> tuple[EntryId, Replayed]:
        """(position of the shard, the poll as of it)."""
        fields = await call(self._client.hmget(keys.progress(shard), "last_id", "updates_id"))
        last, updates = (parse_entry_id(value or b"0-0") for value in fields)
        deadline = time.monotonic() + WAIT_S / 2
        for log, position in (("events", last), ("updates", updates)):
            while await archived_up_to(self._client, shard, log) < position:
                if time.monotonic() > deadline:
                    raise Retry(f"the archive has not reached {position}")
                await asyncio.sleep(POLL_EVERY_S)
        cold = await open_cold(self._client, self._clickhouse, shard)
        return last, await replay_poll(cold, definition, last)

    async def _store(self, shard: int, topic: str, token: int, last: EntryId, replayed: Replayed) -> None:
        state, changed = replayed.state, replayed.changed
        is_final = state.status == "closed"
        epoch = (await epochs.load(self._client, shard)).of(changed)
        voters = [] if is_final else list(replayed.voters.items())
        gathered = keys.new_voters(shard, topic)
        for start in range(0, max(1, len(voters)), _VOTERS_AT_ONCE):
            words = [
                word
                for voter, option in voters[start : start + _VOTERS_AT_ONCE]
                for word in (voter.to_bytes(8), option)
            ]
            await self._scripts.run(
                "repair_voters",
                [keys.fence(shard, "state"), gathered],
                [token, int(not start), LEASE_MS // 1000, *words],
            )
        names = [
            keys.fence(shard, "state"), keys.progress(shard), keys.state(shard, topic), keys.voters(shard, topic),
            keys.topics(shard), gathered,
        ]  # fmt: skip
        args: list[Argument] = [
            token, str(last), topic, changed.ms, f"{epoch}.{changed.ms}.{changed.seq}", _encode(state.snapshot()),
            _pack(state), self._settings.final_retention_s if is_final else 0, len(voters),
        ]  # fmt: skip
        await self._scripts.run("repair_state", names, args)


def _audited(subject: str) -> str:
    """Subject of an audit record: a poll's topic, a match without its map, "" for all of it."""
    aggregate, _, one = subject.partition(" ")
    if one:
        return f"{'poll' if aggregate.startswith('votes_') else 'match'}.{one}"
    return ".".join(subject.split(".")[:2]) if subject.startswith(("poll.", "match.")) else ""
