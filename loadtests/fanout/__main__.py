"""`python -m loadtests.fanout`: starts everything, lets the servers take turns, prints and keeps what came out."""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast, get_args

import msgspec
import psutil

from core.errors import ArenacastError
from core.settings import Settings
from loadtests import fanout
from loadtests.fanout import peers, scenarios, table, versions
from loadtests.fanout.client import raise_descriptor_limit
from loadtests.fanout.native import compiled
from loadtests.fanout.peers import Ground, Name, Peer
from loadtests.fanout.plan import HEADLINE, PARTS, REPETITIONS, Plan, Point, Transport, is_hopeless, plan
from loadtests.fanout.scenarios import SCENARIOS, Finding
from loadtests.fanout.search import highest_rate
from loadtests.fanout.step import Stand
from loadtests.fanout.summary import Measured, Row, rows
from loadtests.fanout.usage import Memory, placement
from loadtests.servers import embedded_redis

RESULTS = Path(__file__).parents[1] / "results" / "fanout"
DESCRIPTORS = 20_000
SEARCH_WINDOW_S = 2.0
QUICK: tuple[Name, ...] = ("arenacast", "floor", "nchan")


def main() -> None:
    options = _options()
    try:
        found = _run(options)
    except ArenacastError as error:
        sys.exit(f"fanout: {error}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(found)))
    print(f"\n{path}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.fanout",
        description=fanout.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="the headline and memory, below 2 minutes")
    parser.add_argument("--only", default="", metavar="NAMES", help="comma list of " + ", ".join(get_args(Name)))
    parser.add_argument("--transports", default="sse,ws", metavar="NAMES", help="comma list of sse, ws")
    parser.add_argument("--parts", default="", metavar="NAMES", help="comma list of " + ", ".join(PARTS))
    parser.add_argument("--scenarios", default="", metavar="NAMES", help="comma list of " + ", ".join(SCENARIOS))
    parser.add_argument("--point", metavar="N,RATE", help="one load instead of the plan's, e.g. 500,1000")
    options = parser.parse_args()
    options.only = options.only.split(",") if options.only else list(QUICK if options.quick else get_args(Name))
    options.transports = options.transports.split(",")
    options.parts = options.parts.split(",") if options.parts else []
    options.scenarios = options.scenarios.split(",") if options.scenarios else list(SCENARIOS)
    for given, known in (
        (options.only, get_args(Name)), (options.transports, get_args(Transport)), (options.parts, PARTS),
        (options.scenarios, SCENARIOS),
    ):  # fmt: skip
        if unknown := {*given} - {*known}:
            parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return options


def _run(options: argparse.Namespace) -> dict[str, Any]:
    work = plan(options.transports, is_quick=options.quick)
    if options.point:
        count, rate = map(int, options.point.split(","))
        points = [Point(cast(Transport, transport), count, rate) for transport in options.transports]
        work = Plan(points, [], work.window_s, work.idle_subscribers, ("headline",))
    if options.parts:
        work = msgspec.structs.replace(work, parts=tuple(options.parts))
    found: dict[str, Any] = {
        "command": " ".join(["python -m loadtests.fanout", *sys.argv[1:]]),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": versions.machine(),
    }
    print(found["command"], *(f"{name} {value}" for name, value in found["machine"].items()), sep=" · ", flush=True)
    with _stand() as (stand, ground):
        names = [name for name in options.only if _is_here(name)]
        if "memory" in work.parts:
            found["memory"] = _memory(stand, ground, [name for name in names if name != "arenacast-write"], work)
        if "scenarios" in work.parts:
            found["scenarios"] = _scenarios(stand, ground, options.scenarios)
        with ExitStack() as stack:
            servers = [stack.enter_context(peers.running(name, ground)) for name in names]
            bench = Bench(stand, servers, work)
            found["rows"] = bench.rows()
            found["rounds"] = bench.rounds
            if "search" in work.parts:
                found["highest_rate"] = bench.search()
    return found


def _scenarios(stand: Stand, ground: Ground, names: Sequence[str]) -> list[Finding]:
    found: list[Finding] = []
    print(flush=True)
    for name in names:
        some = SCENARIOS[name](stand, ground)
        print(scenarios.block(some), flush=True)
        found += some
    return found


def _is_here(name: Name) -> bool:
    why = peers.missing(name)
    if why:
        print(f"skipped {name}: {why}", flush=True)
    return not why


@contextmanager
def _stand() -> Iterator[tuple[Stand, Ground]]:
    """The client's program and a real Valkey, before any server."""
    where = placement()
    descriptors = raise_descriptor_limit(DESCRIPTORS)
    with tempfile.TemporaryDirectory(prefix="arenacast-fanout-") as directory:
        home = Path(directory)
        client, floor = compiled("client", home), compiled("floor", home)
        settings = Settings(data_dir=home / "log", shards=peers.SHARDS)
        os.sched_setaffinity(0, {where.client_core})  # us, the publisher and Redis: beside the client
        with embedded_redis(settings):
            (redis,) = psutil.Process().children()
            yield (
                Stand(client, redis.pid, settings.redis_socket, where),
                Ground(home, floor, settings.redis_socket, where, descriptors),
            )


def _memory(stand: Stand, ground: Ground, names: Sequence[Name], work: Plan) -> list[dict[str, Any]]:
    """Per idle subscriber, in a fresh server each time: one that had many before has memory left from them."""
    per: dict[tuple[str, str], Memory] = {}
    for name in names:
        for transport in dict.fromkeys(point.transport for point in work.headlines):
            with peers.running(name, ground) as peer:
                per[name, transport] = stand.idle_memory(peer, transport, work.idle_subscribers)
    print(f"\n{table.memory_block(per, work.idle_subscribers)}", flush=True)
    return [
        {"server": name, "transport": transport, "subscribers": work.idle_subscribers, "bytes": memory}
        for (name, transport), memory in per.items()
    ]


class Bench:
    """One run over all servers."""

    def __init__(self, stand: Stand, servers: list[Peer], work: Plan) -> None:
        self._stand = stand
        self._servers = servers
        self._work = work
        self._costs: dict[str, dict[Point, float]] = {peer.name: {} for peer in servers}
        self.rounds: list[dict[str, Measured]] = []

    def rows(self) -> list[Row]:
        """Every load of the plan, the servers taking turns at each."""
        found: list[Row] = []
        work = self._work
        loads = [(point, REPETITIONS) for point in work.headlines if "headline" in work.parts]
        loads += [(point, 1) for point in work.grid if "grid" in work.parts]
        for point, repetitions in loads:
            rounds = [self._round(point) for _ in range(repetitions)]
            if some := rows(rounds):
                print(f"\n{table.block(some)}", flush=True)
                found += some
        return found

    def _round(self, point: Point) -> dict[str, Measured]:
        found: dict[str, Measured] = {}
        for peer in self._servers:
            if point.variant == "state" and peer.name not in peers.OURS:
                continue  # the others know no kinds
            if peer.name == "arenacast-write" and point not in self._work.headlines:
                continue  # the same in all but the last step
            if is_hopeless(point, self._costs[peer.name]):
                print(f"left out: {peer.name} at {table.title(point, 1)}: far more than a core", flush=True)
                continue
            measured = found[peer.name] = self._stand.measure(peer, point, self._work.window_s)
            self._costs[peer.name].setdefault(point, measured.cost_us)
        self.rounds.append(found)
        return found

    def search(self) -> dict[str, tuple[int, str]]:
        """The highest rate of each server."""
        found: dict[str, tuple[int, str]] = {}
        for peer in self._servers:

            def probe(rate: int, peer: Peer = peer) -> Measured:
                return self._stand.measure(peer, Point("sse", HEADLINE.subscribers, rate), SEARCH_WINDOW_S)

            found[peer.name] = highest_rate(probe)
        print(f"\n{table.search_block(found, HEADLINE.subscribers)}", flush=True)
        return found


if __name__ == "__main__":
    main()
