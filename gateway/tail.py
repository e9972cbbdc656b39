"""Following the output log: one task per shard that has local subscribers, one blocking read at a time.

What it promises the hub: messages come in order and without a hole, `advance` tells how far that is true, and when it
cannot be kept (entries trimmed before they were read, or the server rolled back) `Hub.reset` says so at once.

While news pour in, reads start at most every flush interval: the first is answered at once, then they grow. That is
the same bound as the hub's own and costs no latency beyond it, but saves most of the calls (at 1000 entries/s nine
of ten).
"""

import asyncio
from collections.abc import Callable, Collection, Sequence

from core import logs
from core.backoff import delay_s
from core.epochs import Epochs
from core.errors import Poison, Retry
from core.metrics import LOOP_ERRORS
from core.position import ZERO, EntryId, Position
from core.updates import Message, Outlined, Update
from gateway import frames
from gateway.hot_state import HotState
from gateway.hub import Hub
from gateway.source import Source

WAIT_S = 1.0
"""Longest wait of one read: far below the client's socket timeout, which finds a server that hangs."""

COUNT_MAX = 200
"""Entries of one read: bounds how long the event loop is busy with one answer."""

BACKOFF_MAX_S = 2.0

IDLE_S = 30.0
"""A shard without followed topics is read this long before its task stops."""


class Tail:
    """Reader of one shard."""

    def __init__(self, source: Source, shard: int, hub: Hub, *, interval_s: float, on_news: Callable[[], None]) -> None:
        """`on_news` is called after the hub got something to flush."""
        self._source = source
        self._shard = shard
        self._hub = hub
        self._interval_s = interval_s
        self._on_news = on_news
        self._log = logs.get().bind(job="tail", shard=shard)
        self._seen = ZERO  # newest entry of the output log that was published
        self._expected = ZERO  # newest entry of the output log at the last sync
        self._silent = (ZERO, ZERO)  # (updates_id, last_id): inputs after that entry gave no output
        self._is_synced = asyncio.Event()
        self._epochs: Epochs | None = None

    async def ready(self, timeout_s: float) -> None:
        """Wait until the shard is being read. Raises Retry when that takes too long."""
        try:
            await asyncio.wait_for(self._is_synced.wait(), timeout_s)
        except TimeoutError:
            raise Retry(f"shard {self._shard} cannot be read now") from None

    @property
    def is_synced(self) -> bool:
        """Whether the log is being read, and is known to be the one that was read before."""
        return self._is_synced.is_set()

    async def run(self) -> None:
        """Read until cancelled; survives whatever happens, and says so."""
        failures = 0
        while True:
            try:
                await self._sync()
                failures = 0
                await self._follow()
            except Exception as error:
                self._is_synced.clear()  # nobody joins on the word of a log that may be another one when it is back
                failures += 1
                LOOP_ERRORS.labels("tail").inc()
                unexpected = None if isinstance(error, Retry) else error
                self._log.warning("not reading", error=str(error), failures=failures, exc_info=unexpected)
                await asyncio.sleep(delay_s(failures, BACKOFF_MAX_S))

    def note(self, state: HotState) -> None:
        """Make use of a read of hot state: a batch without output moves `last_id`, but nobody publishes that.

        Without it a reader who joined at such a position would wait for the edge to get there.
        """
        if state.updates_id > self._seen:
            self._silent = (state.updates_id, state.last_id)  # true once that entry was published
        elif self.is_synced:
            self._advance(state.last_id)

    async def _sync(self) -> None:
        """Find out where the shard stands: at the start, after a failure, and when nothing comes."""
        state = await self._source.state(self._shard)
        self._expected = state.updates_id
        known = self._hub.edge.get(self._shard)
        if known is None:
            self._restart(state)
        elif state.updates_id < self._seen or not state.epochs.holds(known):
            if state.epochs.holds(known) and known.entry > state.last_id:
                # A new epoch is about to be recorded by the first writer. Until then positions of the lost part
                # would still look good, so wait for it.
                raise Retry(f"the log ends at {state.last_id}, before {known.entry}")
            self._log.warning("log rolled back", seen=str(self._seen), now=str(state.updates_id))
            self._restart(state)
            self._on_news()
        else:
            self._adopt(state.epochs)
            self.note(state)
            self._on_news()
        self._is_synced.set()

    def _restart(self, state: HotState) -> None:
        self._epochs = state.epochs
        self._seen = state.updates_id
        self._silent = (ZERO, ZERO)
        self._reset(state.position)

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            entries = await self._source.follow(self._shard, self._seen, COUNT_MAX, WAIT_S)
            if not entries:
                if self._expected > self._seen:  # it was there before this read, and is not any more
                    self._log.warning("gap in the log", seen=str(self._seen), newest=str(self._expected))
                    self._lose(self._expected)
                    self._pass(self._expected)
                # Also because a client may reconnect without a word: a log that lost its end, on a server whose clock
                # was behind, would give nothing new for as long.
                await self._sync()
                continue
            for entry, update in entries:
                if update is None or not self._is_next(update):
                    await self._look_into(entry, update)
                if update is not None:
                    self._publish(entry, update)
                self._pass(entry)
            self._on_news()
            spare_s = self._interval_s - (loop.time() - started)
            if spare_s > 0 and len(entries) < COUNT_MAX:
                await asyncio.sleep(spare_s)

    def _is_next(self, update: Update | Outlined) -> bool:
        """Does this entry follow on the last one, and is what was published still true?"""
        return update.previous == self._seen and update.epoch <= self.epochs.current

    async def _look_into(self, entry: EntryId, update: Update | Outlined | None) -> None:
        """An entry that cannot simply be published."""
        if update is None:
            self._give_up(entry)
            return
        state = await self._source.state(self._shard)
        self._adopt(state.epochs)
        if update.previous > self._seen or not state.epochs.holds(self._hub.edge[self._shard]):
            self._log.warning("gap in the log", seen=str(self._seen), previous=str(update.previous))
            self._lose(update.previous)

    def _pass(self, entry: EntryId) -> None:
        self._seen = entry
        self._advance(entry)
        if self._silent[0] == entry:
            self._advance(self._silent[1])

    def _give_up(self, entry: EntryId) -> None:
        """Nobody can read it, now or later: whoever needs what it held is told so when it asks for it."""
        self._log.error("unreadable entry", entry=str(entry))
        LOOP_ERRORS.labels("tail").inc()
        self._lose(entry)

    def _read(self, update: Update | Outlined) -> Sequence[Message]:
        """What somebody here follows. Raises Poison."""
        hub, shard = self._hub, self._shard
        if isinstance(update, Outlined):
            if not hub.read(shard, update.topics):
                return ()
            update = update.whole()
        return hub.read(shard, update.messages)

    def _publish(self, entry: EntryId, update: Update | Outlined) -> None:
        epochs, hub, shard = self.epochs, self._hub, self._shard
        edge = hub.edge[shard]
        try:
            messages = self._read(update)
        except Poison:
            self._give_up(entry)
            return
        for message in messages:
            # By its own id: a batch may span the first entry of an epoch.
            epoch = epochs.of(EntryId(message.ms, message.seq))
            if message.position(epoch) <= edge:
                continue  # applied again after a crash took only its output back
            try:
                hub.publish(frames.item(message, shard, epoch, update.applied_us))
            except Poison as error:
                LOOP_ERRORS.labels("frame").inc()
                self._log.error("message left out", error=str(error))

    def _adopt(self, epochs: Epochs) -> None:
        is_new = self._epochs is None or epochs.current != self._epochs.current
        self._epochs = epochs
        if is_new:
            self._hub.expel(self._shard, epochs.holds)

    def _lose(self, until: EntryId) -> None:
        self._reset(self.epochs.at(until))
        self._on_news()

    def _reset(self, edge: Position) -> None:
        self._hub.reset(self._shard, edge, self.epochs.holds, asyncio.get_running_loop().time())

    def _advance(self, entry: EntryId) -> None:
        self._hub.advance(self._shard, self.epochs.at(entry))

    @property
    def epochs(self) -> Epochs:
        """The shard's epochs as last read; there are some once it is `ready`."""
        assert self._epochs is not None, "nothing is read before the first sync"
        return self._epochs


class Tails:
    """The tails of all shards that have readers here."""

    def __init__(self, source: Source, hub: Hub, *, interval_s: float, on_news: Callable[[], None]) -> None:
        self._source = source
        self._hub = hub
        self._interval_s = interval_s
        self._on_news = on_news
        self._running: dict[int, tuple[Tail, asyncio.Task[None]]] = {}
        self._idle_since: dict[int, float] = {}

    async def ready(self, shards: Collection[int], timeout_s: float) -> None:
        """Have these shards read; all are in `Hub.edge` then. Raises Retry when one cannot be read now."""
        while missing := [shard for shard in shards if not self[shard].is_synced]:
            await self[missing[0]].ready(timeout_s)

    def __getitem__(self, shard: int) -> Tail:
        """The reader of a shard, started when it is not running."""
        found = self._running.get(shard)
        if found is None:
            tail = Tail(self._source, shard, self._hub, interval_s=self._interval_s, on_news=self._on_news)
            self._running[shard] = found = tail, asyncio.create_task(tail.run(), name=f"tail {shard}")
        return found[0]

    async def stop_idle(self, now: float) -> None:
        """Stop reading shards whose topics nobody has followed for `IDLE_S`."""
        for shard in self._running:
            if len(self._hub.rings[shard]):
                self._idle_since.pop(shard, None)
            else:
                self._idle_since.setdefault(shard, now)
        await self._stop([shard for shard, since in self._idle_since.items() if now - since > IDLE_S])

    async def stop(self) -> None:
        """Stop reading altogether."""
        await self._stop(list(self._running))

    async def _stop(self, shards: list[int]) -> None:
        tasks = [self._running.pop(shard)[1] for shard in shards]
        for shard in shards:
            self._idle_since.pop(shard, None)
            self._hub.edge.pop(shard, None)  # before the next await: whoever comes now starts a new tail
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
