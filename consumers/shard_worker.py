"""The loop of one owned shard: read, reduce, apply, and what goes with owning (timers, trimming, lag).

Everything is read again from Redis after any failure; the state cache is only ever as new as the last applied batch.
While events pour in, batches start at most every `APPLY_INTERVAL_S`: the first goes at once, then they grow. That costs
a few milliseconds of latency and saves a script call, an fsync and a tally per subscriber for each one avoided.
"""

import asyncio
import time
from collections.abc import Iterable

import msgspec

from consumers.batch import (
    Argument,
    BatchReducer,
    Decoded,
    Limits,
    Outcome,
    State,
    dead_letter,
    decode,
    is_ended,
    topics_needed,
    unpack_state,
    voters_needed,
)
from consumers.lease import Ownership
from core import epochs, keys, logs
from core.backoff import delay_s
from core.clock import Clock, now_us
from core.errors import Poison, Retry
from core.events import Change, header, parse_entry
from core.metrics import DEAD, LOOP_ERRORS, STAGE
from core.position import EntryId, parse_entry_id
from core.redis_client import Redis, Scripts, call, lua
from core.settings import Settings
from core.updates import Update, encode_update

APPLY_INTERVAL_S = 0.004
"""Chosen with loadtests.bench_state: at 1000 votes/s it cuts CPU by more than half for 2 ms of median latency."""

READ_BLOCK_MS = 250
"""Longest wait for entries; timers are looked at between waits, so a poll closes at most this late."""

HOUSEKEEPING_S = 5.0
FORGET_MAX = 100
"""Old topics looked at in one housekeeping."""

BATCH_MAX_BYTES = 8 << 20
"""Of a batch: its output is one entry, which every gateway reads as a whole."""
BACKOFF_MAX_S = 2.0

STATE_SCRIPTS = ("apply_batch", "fire_timer", "trim")


def state_sources() -> dict[str, str]:
    """The scripts of a state consumer, for the process's `Scripts`."""
    return {name: lua("consumers", name) for name in STATE_SCRIPTS}


class Progress(msgspec.Struct):
    """What `shard:{s}` says: everything is text in Redis, integers here."""

    last_id: EntryId
    updates_id: EntryId
    applied: int
    votes: int
    dead: int
    dead_votes: int
    vote_ordinal: int
    event_ordinal: int
    gaps: int

    @property
    def unaccounted(self) -> int:
        """Votes the log numbered up to this position, less those applied, less those dead."""
        return self.vote_ordinal - self.votes - self.dead_votes

    def counters(self) -> list[Argument]:
        """Field and value, in turn, of all that is not a position or `applied`."""
        names = ("votes", "dead", "dead_votes", "vote_ordinal", "event_ordinal", "gaps")
        return [word for name in names for word in (name, str(getattr(self, name)))]


def parse_progress(fields: dict[bytes, bytes]) -> Progress:
    """Read the hash `shard:{s}`; a missing one is the beginning of the log."""

    def number(name: bytes) -> int:
        return int(fields.get(name, b"0"))

    return Progress(
        parse_entry_id(fields.get(b"last_id", b"0-0")),
        parse_entry_id(fields.get(b"updates_id", b"0-0")),
        *map(number, (b"applied", b"votes", b"dead", b"dead_votes", b"vote_ordinal", b"event_ordinal", b"gaps")),
    )


class ShardWorker:
    """State consumer of one shard, for one ownership."""

    def __init__(
        self, client: Redis, scripts: Scripts, settings: Settings, ownership: Ownership, clock: Clock = now_us
    ) -> None:
        self._client = client
        self._scripts = scripts
        self._settings = settings
        self._shard = ownership.shard
        self._token = ownership.token
        self._stop = ownership.stop
        self._clock = clock
        self._limits = Limits(int(settings.map_idle_s * 1000), settings.final_retention_s)
        self._states: dict[str, State] = {}
        self._epochs = epochs.parse({})
        self._loads = -1
        self._old_topics = 0  # of the topics older than the retention, those known to stay
        self._read_max = settings.apply_batch_max
        self._failures = 0  # in a row, without a batch applied between them
        self._log = logs.get().bind(job="state", shard=self._shard, fence=self._token)
        self.progress = parse_progress({})

    async def run(self) -> None:
        """Own the shard until asked to stop. Raises Fenced when another owner took over."""
        while not self._stop.is_set():
            try:
                await self._load()
                await self._follow()
            except Retry as error:
                self._failures += 1
                LOOP_ERRORS.labels("state").inc()
                self._log.warning("shard stands still", error=str(error), failures=self._failures)
                await asyncio.sleep(delay_s(self._failures, BACKOFF_MAX_S))

    async def _load(self) -> None:
        """Forget everything and take up what Redis has committed."""
        self._states.clear()
        await self._scripts.ensure()
        self._loads = self._scripts.loads
        self._epochs = await epochs.load(self._client, self._shard)
        self.progress = parse_progress(await call(self._client.hgetall(keys.progress(self._shard))))
        self._log.info("following", position=str(self.progress.last_id), epoch=self._epochs.current)

    async def _follow(self) -> None:
        """Apply batch after batch until asked to stop."""
        next_housekeeping = 0.0
        while not self._stop.is_set():
            started = time.monotonic()
            entries = await self._read()
            if entries:
                await self._apply(entries)
            if self._scripts.loads != self._loads:
                raise Retry("the server is another incarnation")
            await self._fire_timers()
            if started >= next_housekeeping:
                next_housekeeping = started + HOUSEKEEPING_S
                await self._housekeeping()
            spare_s = APPLY_INTERVAL_S - (time.monotonic() - started)
            if entries and len(entries) < self._settings.apply_batch_max and spare_s > 0:
                await asyncio.sleep(spare_s)

    async def _read(self) -> list[tuple[bytes, dict[bytes, bytes]]]:
        reply = await call(
            self._client.xread(
                {keys.events(self._shard): str(self.progress.last_id)},
                count=self._read_max,
                block=READ_BLOCK_MS,
            )
        )
        entries = reply[0][1] if reply else []
        fitting = _fitting(entries)
        # What was left out is read again, so after large events fewer are asked for, and more again step by step.
        self._read_max = fitting if fitting < len(entries) else min(2 * self._read_max, self._settings.apply_batch_max)
        return entries[:fitting]

    # -- one batch

    async def _apply(self, raw: list[tuple[bytes, dict[bytes, bytes]]]) -> None:
        read_us = self._clock()
        batch, malformed = self._decode(raw)
        topics = topics_needed(batch)
        await self._load_states(topics)
        priors = await self._load_priors(voters_needed(batch))
        progress = self.progress
        last = parse_entry_id(raw[-1][0])
        epoch = self._epochs.of(last)
        reducer = BatchReducer(
            self._shard, epoch, self._states, priors, self._limits, (progress.vote_ordinal, progress.event_ordinal)
        )
        outcome = reducer.reduce(batch)
        outcome.dead += len(malformed)
        outcome.commands.extend(malformed)
        advanced = Progress(
            last,
            last if outcome.messages or outcome.facts else progress.updates_id,
            progress.applied + len(raw),
            progress.votes + outcome.votes,
            progress.dead + outcome.dead,
            progress.dead_votes + outcome.dead_votes,
            outcome.vote_ordinal,
            outcome.event_ordinal,
            progress.gaps + outcome.gaps,
        )
        await self._write(parse_entry_id(raw[0][0]), epoch, outcome, advanced)
        self.progress = advanced
        self._failures = 0
        for topic in [topic for topic in topics if is_ended(self._states.get(topic))]:
            del self._states[topic]  # its copy in Redis expires, and then its id may be used anew
        self._observe(batch, outcome, read_us)

    def _decode(self, raw: list[tuple[bytes, dict[bytes, bytes]]]) -> tuple[list[Decoded], list[list[Argument]]]:
        batch: list[Decoded] = []
        malformed: list[list[Argument]] = []
        for raw_id, fields in raw:
            try:
                batch.append(decode(parse_entry(raw_id, fields)))
            except Poison as error:
                flat = [part for pair in fields.items() for part in pair]
                malformed.append(dead_letter(self._shard, raw_id, str(error), flat[:20]))
        return batch, malformed

    async def _load_states(self, topics: Iterable[str]) -> None:
        if len(self._states) > _STATES_MAX:
            self._states.clear()
        missing = [topic for topic in topics if topic not in self._states]
        if not missing:
            return
        pipe = self._client.pipeline(transaction=False)
        for topic in missing:
            pipe.hget(keys.state(self._shard, topic), "priv")
        for topic, packed in zip(missing, await call(pipe.execute()), strict=True):
            if packed is not None:
                self._states[topic] = unpack_state(topic, packed)

    async def _load_priors(self, voters: dict[str, set[str]]) -> dict[str, dict[str, str]]:
        if not voters:
            return {}
        asked = {topic: list(names) for topic, names in voters.items()}
        pipe = self._client.pipeline(transaction=False)
        for topic, names in asked.items():
            pipe.hmget(keys.voters(self._shard, topic), [bytes.fromhex(name) for name in names])
        replies = await call(pipe.execute())
        return {
            topic: {name: option.decode() for name, option in zip(names, options, strict=True) if option is not None}
            for (topic, names), options in zip(asked.items(), replies, strict=True)
        }

    async def _write(self, first: EntryId, epoch: int, outcome: Outcome, advanced: Progress) -> None:
        progress, shard = self.progress, self._shard
        update = b""
        if outcome.messages or outcome.facts:
            update = encode_update(
                Update(epoch, first, progress.updates_id, self._clock(), outcome.messages, outcome.facts)
            )
        counters = advanced.counters()
        args: list[Argument] = [
            self._token, str(progress.last_id), str(advanced.last_id), update, str(advanced.applied),
            keys.STATE_GROUP, self._epochs.current, len(counters), *counters,
        ]  # fmt: skip
        touched: set[str] = set()
        for command in outcome.commands:
            args.append(len(command))
            args.extend(command)
            touched.add(str(command[1]))
        fixed = [
            keys.fence(shard, "state"), keys.progress(shard), keys.events(shard), keys.updates(shard),
            keys.epochs(shard),
        ]  # fmt: skip
        await self._scripts.run("apply_batch", [*fixed, *touched], args)

    def _observe(self, batch: list[Decoded], outcome: Outcome, read_us: int) -> None:
        if batch:
            queued_ms = max(0.0, read_us / 1000 - batch[0].entry.id.ms)
            STAGE.labels("queue").observe_many(queued_ms, len(batch))
            STAGE.labels("state").observe_many((self._clock() - read_us) / 1000, len(batch))
        for predicted_s in outcome.predictions_s:
            STAGE.labels("predict").observe(predicted_s * 1000)
        if outcome.dead:
            DEAD.labels(keys.STATE_GROUP).inc(outcome.dead)
            self._log.error("dead letters", count=outcome.dead, before=str(self.progress.last_id))
        if outcome.gaps:
            self._log.error("the log lost entries", count=outcome.gaps, before=str(self.progress.last_id))

    # -- what goes with owning

    async def _fire_timers(self) -> None:
        now_ms = self._clock() // 1000
        due = await call(
            self._client.zrangebyscore(keys.timers(self._shard), "-inf", now_ms, start=0, num=100, withscores=True)
        )
        for member, score in due:
            action, _, topic = member.decode().partition(" ")
            body = msgspec.json.encode(Change("timer", int(score)))
            names = [
                keys.fence(self._shard, "state"), keys.timers(self._shard), keys.events(self._shard),
                keys.counters(self._shard), keys.definition(self._shard, topic),
            ]  # fmt: skip
            head = header(action, topic, self._clock(), "timer")
            await self._scripts.run("fire_timer", names, [self._token, member, int(score), now_ms, head, body])

    async def lag(self) -> tuple[int, float]:
        """(entries not yet applied, age of the oldest of them in seconds).

        Raises Retry when Redis is away.
        """
        after = f"({self.progress.last_id}"
        oldest = await call(self._client.xrange(keys.events(self._shard), min=after, max="+", count=1))
        if not oldest:
            return 0, 0.0
        added = (await call(self._client.xinfo_stream(keys.events(self._shard))))["entries-added"]
        age_s = self._clock() / 1e6 - parse_entry_id(oldest[0][0]).ms / 1000
        return max(1, added - self.progress.applied), max(0.0, age_s)

    async def _housekeeping(self) -> None:
        now_s = self._clock() / 1e6
        shard = self._shard
        names = [
            keys.events(shard), keys.updates(shard), keys.progress(shard),
            keys.archive(shard, "events"), keys.archive(shard, "updates"),
        ]  # fmt: skip
        keep = (now_s - self._settings.events_retention_s, now_s - self._settings.updates_retention_s)
        await self._scripts.run("trim", names, [int(moment * 1000) for moment in keep])
        expired = await call(
            self._client.zrangebyscore(
                keys.topics(shard), "-inf", int((now_s - self._settings.final_retention_s) * 1000),
                start=self._old_topics, num=FORGET_MAX,
            )
        )  # fmt: skip
        gone = [await self._forget(member.decode()) for member in expired]
        # Polls that were never closed stay: look behind them next time, and from the beginning after the last.
        self._old_topics = self._old_topics + gone.count(False) if len(expired) == FORGET_MAX else 0

    async def _forget(self, topic: str) -> bool:
        """Take a topic out of the listings if its final state expired. Whether it was."""
        if await call(self._client.exists(keys.state(self._shard, topic))):
            return False
        pipe = self._client.pipeline(transaction=False)
        pipe.zrem(keys.topics(self._shard), topic)
        if topic.startswith("match."):
            _, match_id, map_id = topic.split(".")
            pipe.srem(keys.maps(self._shard, match_id), map_id)
        await call(pipe.execute())
        return True


def _fitting(entries: list[tuple[bytes, dict[bytes, bytes]]]) -> int:
    """How many of the first entries make a batch: at least one, then up to `BATCH_MAX_BYTES`."""
    size = 0
    for number, (_, fields) in enumerate(entries):
        size += sum(map(len, fields.values()))
        if number and size > BATCH_MAX_BYTES:
            return number
    return len(entries)


_STATES_MAX = 20_000
"""Topics cached per shard; beyond it the cache starts anew. About 2 KB each."""
