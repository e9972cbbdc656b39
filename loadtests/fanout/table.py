"""How the results read. Pure."""

from collections.abc import Mapping, Sequence

from loadtests.fanout.peers import OURS
from loadtests.fanout.plan import Point
from loadtests.fanout.summary import Row
from loadtests.fanout.usage import Memory

NAMES = {
    "arenacast": "Arenacast",
    "arenacast-write": "Arenacast, write()",
    "floor": "bare C, send()",
    "nchan": "nchan",
    "starlette": "Starlette + queues",
}

STALL_MAX_MS = 10
"""Longer waits of Redis for its disk are in the latencies of whoever reads from it."""

ARRIVED_MIN = 0.97
"""Below this a server did not keep up: for lack of CPU when it is saturated, else because others had its core."""

_HEADER = (
    f"{'server':<20}{'us/delivery':>12}{'vs C':>8}{'vs nchan':>10}{'p50 ms':>9}{'p99 ms':>9}{'p99.9 ms':>10}"
    f"{'core':>7}{'arrived':>9}{'per read':>10}  notes"
)


def title(point: Point, repetitions: int) -> str:
    """Names a load."""
    again = f", median of {repetitions} alternating repetitions" if repetitions > 1 else ""
    kind = ", state kind" if point.variant == "state" else ""
    wire = {"sse": "SSE", "ws": "WebSocket"}[point.transport]
    return f"{wire}, {point.subscribers} subscribers, {point.rate:g} msg/s{kind}{again}"


def block(rows: Sequence[Row]) -> str:
    """The servers at one load."""
    lines = [title(rows[0].point, rows[0].repetitions), _HEADER]
    for row in rows:
        lines.append(
            f"{NAMES[row.peer]:<20}{row.cost_us:>12.2f}{_ratio(row.vs_floor):>8}{_ratio(row.vs_nchan):>10}"
            f"{row.p50_ms:>9.2f}{row.p99_ms:>9.2f}{row.p999_ms:>10.2f}{row.server_busy:>7.0%}{row.delivered:>9.1%}{row.per_read:>10.2f}"
            f"  {notes(row)}".rstrip()
        )
    return "\n".join(lines)


def notes(row: Row) -> str:
    """What to know before believing a row."""
    found = []
    if row.server_busy > 0.95:
        found.append("saturated")
    elif row.delivered < ARRIVED_MIN:
        found.append("STARVED: it fell behind on a core that was not its own")
    if row.is_client_bound:
        found.append("THE CLIENT IS THE BOTTLENECK")
    if row.others_busy > 0.2:
        found.append(f"others used {row.others_busy:.0%} of a core")
    if row.stall_ms > STALL_MAX_MS and row.peer in OURS:
        found.append(f"the log's disk was away for up to {row.stall_ms} ms")
    if row.disordered:
        found.append(f"{row.disordered} out of order")
    if row.lost:
        found.append(f"{row.lost} connections lost")
    return ", ".join(found)


def memory_block(per: Mapping[tuple[str, str], Memory], count: int) -> str:
    """Memory per idle subscriber: (server, transport) -> bytes."""
    lines = [
        f"memory per idle subscriber, {count} of them; slab: the kernel's, of both ends",
        f"{'server':<20}{'':<12}{'RSS':>9}{'PSS':>9}{'slab':>9}   bytes",
    ]
    for (peer, transport), memory in per.items():
        lines.append(f"{NAMES[peer]:<20}{transport:<12}{memory.rss:>9,}{memory.pss:>9,}{memory.slab:>9,}")
    return "\n".join(lines)


def search_block(found: Mapping[str, tuple[int, str]], subscribers: int) -> str:
    """Highest rates: server -> (messages per second, what stopped it)."""
    lines = [f"highest rate with p99 <= 100 ms, {subscribers} SSE subscribers"]
    for peer, (rate, why) in found.items():
        lines.append(f"{NAMES[peer]:<20}{rate:>8,} msg/s{rate * subscribers:>14,} deliveries/s   limit: {why}")
    return "\n".join(lines)


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
