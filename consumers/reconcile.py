"""`arenacast reconcile`, and the same once a minute within the archive's process for the shards it owns."""

import asyncio
import re
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime

import msgspec

from clickhouse.client import ClickHouse
from consumers.reconciliation import Reconciliation, Report, run_once
from core import keys, logs, redis_client
from core.errors import Fatal, Retry
from core.metrics import DIFFERENCES, LOOP_ERRORS, RECONCILED
from core.redis_client import Redis, call
from core.settings import Settings

PLACES = ("log", "hot state", "raw", "aggregate")
VERDICTS = ("clean", "differs", "unknown")

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_AGE = re.compile(r"(\d{1,9})([smhd])\Z")


def parse_since(text: str, now_ms: int) -> int:
    """Milliseconds of `90s`, `15m`, `24h`, `7d` ago, or of an RFC 3339 instant; 0 for "". Raises Fatal."""
    if not text:
        return 0
    if match := _AGE.match(text):
        return max(0, now_ms - int(match[1]) * _UNITS_S[match[2]] * 1000)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise Fatal(f"--since must be like 15m, 24h or 7d, or an instant with its zone, not {text!r}")
    return int(moment.timestamp() * 1000)


def run(settings: Settings, *, since: str, as_json: bool, wait_s: float, repairs: bool = False) -> int:
    """Reconcile everything once and print what came of it. Returns the exit code: 0 clean, 1 differs, 2 unknown."""
    since_ms = parse_since(since, time.time_ns() // 1_000_000)
    report = asyncio.run(_run(settings, since_ms, wait_s, repairs=repairs))
    if as_json:
        body = {"exit_code": report.exit_code, **msgspec.to_builtins(report, str_keys=True)}
        print(msgspec.json.format(msgspec.json.encode(body)).decode())
    else:
        print("\n".join(lines(report)))
    sys.stdout.flush()
    return report.exit_code


def lines(report: Report) -> list[str]:
    """A report for people: differences first, one line each."""
    found = [f"DIFFERS  {one}" for one in report.differences]
    found += [f"UNKNOWN  {text}" for text in report.unknown]
    found += [f"note     {text}" for text in report.notes]
    verdict = {0: "clean", 1: "DIFFERS", 2: "could not tell"}[report.exit_code]
    positions = ", ".join(f"{shard}: {position}" for shard, position in sorted(report.positions.items()))
    found.append(
        f"{verdict}: {report.polls} polls with {report.votes} votes, {report.maps} maps, {report.aggregates} aggregates"
        f" compared at {positions or 'no position'}"
    )
    return found


async def _run(settings: Settings, since_ms: int, wait_s: float, *, repairs: bool) -> Report:
    client = redis_client.connect(settings)
    clickhouse = ClickHouse(settings.clickhouse_target)
    try:
        shards = await existing_shards(client)

        async def once() -> Report:
            return await run_once(
                client, clickhouse, shards, since_ms=since_ms, wait_s=wait_s,
                retention_ms=settings.final_retention_s * 1000,
            )  # fmt: skip

        report = await once()
        if repairs and report.differences:
            from consumers.repairing import Repairs

            for line in await Repairs(client, clickhouse, settings, shards).mend(report):
                print(f"REPAIR   {line}", file=sys.stderr, flush=True)
            report = await once()
        return report
    except Retry as error:
        return Report(unknown=[str(error)])
    finally:
        await clickhouse.close()
        await client.aclose()


async def existing_shards(client: Redis) -> int:
    """Number of shards of the log that is there; unlike a service, a command begins none. Raises Retry."""
    shards = await call(client.hget(keys.LOG, "shards"))
    if shards is None:
        raise Retry("Redis holds no log")
    return int(shards)


async def watch(
    client: Redis, clickhouse: ClickHouse, settings: Settings, shards: int, owned: Callable[[], Sequence[int]]
) -> None:
    """Reconcile what changed lately in the owned shards, again and again: metrics and log lines, no repairs."""
    for place in PLACES:  # so that every series is there from the start
        DIFFERENCES.labels(place).set(0)
    for verdict in VERDICTS:
        RECONCILED.labels(verdict)
    LOOP_ERRORS.labels("reconcile")
    while True:
        await asyncio.sleep(settings.reconcile_interval_s)
        since_ms = time.time_ns() // 1_000_000 - int(settings.reconcile_window_s * 1000)
        look = Reconciliation(
            client, clickhouse, shards, since_ms=max(0, since_ms), wait_s=10.0, is_thorough=False,
        )  # fmt: skip
        try:
            report = await look.run(owned())
        except Retry as error:
            report = Report(unknown=[str(error)])
        except Exception as error:  # top of the loop
            LOOP_ERRORS.labels("reconcile").inc()
            logs.get().warning("reconciliation failed", error=str(error), exc_info=error)
            continue
        _tell(report)


def _tell(report: Report) -> None:
    RECONCILED.labels(VERDICTS[report.exit_code]).inc()
    for place in PLACES:
        DIFFERENCES.labels(place).set(sum(one.place == place for one in report.differences))
    for one in report.differences[:20]:  # a log line each, but no flood
        logs.get().error("books differ", **msgspec.structs.asdict(one))
    for text in report.unknown[:20]:
        logs.get().warning("books could not be compared", reason=text)
