"""The state consumer's process: settings in, leases and shard workers around one Redis client, a clean stop out."""

import asyncio
import os
import secrets
import socket
from functools import partial

import uvloop

from consumers.lease import Leases, Ownership, lease_sources
from consumers.shard_worker import ShardWorker, state_sources
from core import collector, http, keys, logs, redis_client
from core.metrics import DEAD, LAG_ENTRIES, LAG_SECONDS, LOOP_ERRORS, STAGE, UNACCOUNTED
from core.redis_client import Redis, Scripts
from core.settings import Settings

JOB = "state"
GAUGES_S = 1.0


def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. Raises Fatal when the settings contradict the log."""
    logs.configure("state", settings)
    collector.relax()
    uvloop.run(_main(settings))


def unique_owner() -> str:
    """Name of this process among all consumers, new at every start."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


async def _main(settings: Settings) -> None:
    stop = http.stop_event()
    client = redis_client.connect(settings, connections_max=80)
    try:
        found = await redis_client.find_log(client, settings, stop)
        if found is not None:
            await StateConsumer(client, settings, found[1]).run(stop)
    finally:
        await client.aclose()


class StateConsumer:
    """Everything of one state consumer but its signals: leases, a worker per owned shard, and what is seen of them."""

    def __init__(self, client: Redis, settings: Settings, shards: int) -> None:
        self._client = client
        self._settings = settings
        self._scripts = Scripts(client, shards, {**lease_sources(), **state_sources()})
        self._leases = Leases(self._scripts, JOB, shards, unique_owner(), settings.lease_ttl_s)
        self._workers: dict[int, ShardWorker] = {}
        DEAD.labels(keys.STATE_GROUP)  # so that the series are there from the start
        for stage in ("queue", "state", "predict"):
            STAGE.labels(stage)
        for loop in (JOB, "lease", "state_gauges"):
            LOOP_ERRORS.labels(loop)

    async def run(self, stop: asyncio.Event) -> None:
        """Consume what this process owns until `stop` is set, then finish the batches in flight."""
        settings = self._settings
        checks = {"redis": partial(redis_client.check, self._client)}
        async with http.operations_server(checks, settings.metrics_host, settings.state_metrics_port):
            gauges = asyncio.create_task(self._set_gauges())
            try:
                await self._leases.run(self._work, stop)
            finally:
                gauges.cancel()

    async def _work(self, ownership: Ownership) -> None:
        worker = ShardWorker(self._client, self._scripts, self._settings, ownership)
        self._workers[ownership.shard] = worker
        try:
            await worker.run()
        finally:
            self._workers.pop(ownership.shard, None)

    async def _set_gauges(self) -> None:
        """Figures of the shards owned now: a shard given up is the next owner's to report."""
        while True:
            try:
                workers = list(self._workers.values())
                lags = [await worker.lag() for worker in workers]
                LAG_ENTRIES.labels(keys.STATE_GROUP).set(sum(entries for entries, _ in lags))
                LAG_SECONDS.labels(keys.STATE_GROUP).set(max((age_s for _, age_s in lags), default=0.0))
                UNACCOUNTED.set(sum(worker.progress.unaccounted for worker in workers))
            except Exception as error:  # top of the loop
                LOOP_ERRORS.labels("state_gauges").inc()
                logs.get().warning("lag unknown", error=str(error))
            await asyncio.sleep(GAUGES_S)
