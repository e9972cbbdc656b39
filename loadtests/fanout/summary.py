"""What one step gave, and figures over several. Pure."""

from collections.abc import Sequence
from statistics import median

from msgspec import Struct

from loadtests.fanout.histogram import percentile_ms
from loadtests.fanout.plan import Point


class Measured(Struct):
    """One server at one load. Busy figures are shares of one core."""

    peer: str
    point: Point
    seconds: float
    published: int
    delivered: int
    cpu_s: float
    histogram: list[tuple[int, int]]
    disordered: int
    lost: int
    reads: int
    bytes: int
    client_busy: float
    measuring_busy: float
    redis_busy: float
    stall_ms: int
    others_busy: float
    is_client_bound: bool

    @property
    def expected(self) -> float:
        """Messages that should have been delivered."""
        return self.published * self.point.subscribers

    @property
    def cost_us(self) -> float:
        """CPU of the server per delivered message; 0 when nothing arrived."""
        return self.cpu_s / self.delivered * 1e6 if self.delivered else 0.0

    @property
    def per_read(self) -> float:
        """Messages that arrived together, on average: what batching there was, by intent or by lateness."""
        return self.delivered / self.reads if self.reads else 0.0

    @property
    def server_busy(self) -> float:
        """Share of its core that the server used."""
        return self.cpu_s / self.seconds

    @property
    def p50_ms(self) -> float:
        """Median latency."""
        return percentile_ms(self.histogram, 50)

    @property
    def p99_ms(self) -> float:
        """99 % of all messages were not later."""
        return percentile_ms(self.histogram, 99)

    @property
    def p999_ms(self) -> float:
        """99.9 % of all messages were not later."""
        return percentile_ms(self.histogram, 99.9)


class Row(Struct, frozen=True):
    """Medians over the repetitions of one server at one load; ratios are medians of the ratios within a repetition."""

    peer: str
    point: Point
    repetitions: int
    cost_us: float
    vs_floor: float | None
    vs_nchan: float | None
    p50_ms: float
    p99_ms: float
    p999_ms: float
    delivered: float
    per_read: float
    server_busy: float
    others_busy: float
    stall_ms: int
    disordered: int
    lost: int
    is_client_bound: bool


def rows(rounds: Sequence[dict[str, Measured]]) -> list[Row]:
    """One row per server from all rounds at one load; a round maps the servers to what they gave in their turn."""
    found = []
    for peer in dict.fromkeys(name for round_ in rounds for name in round_):
        own = [round_[peer] for round_ in rounds if peer in round_]
        found.append(
            Row(
                peer=peer,
                point=own[0].point,
                repetitions=len(own),
                cost_us=median(each.cost_us for each in own),
                vs_floor=_ratio(rounds, peer, "floor"),
                vs_nchan=_ratio(rounds, peer, "nchan"),
                p50_ms=median(each.p50_ms for each in own),
                p99_ms=median(each.p99_ms for each in own),
                p999_ms=median(each.p999_ms for each in own),
                delivered=median(each.delivered / each.expected if each.expected else 0.0 for each in own),
                per_read=median(each.per_read for each in own),
                server_busy=median(each.server_busy for each in own),
                others_busy=median(each.others_busy for each in own),
                stall_ms=max(each.stall_ms for each in own),
                disordered=sum(each.disordered for each in own),
                lost=sum(each.lost for each in own),
                is_client_bound=any(each.is_client_bound for each in own),
            )
        )
    return found


def _ratio(rounds: Sequence[dict[str, Measured]], peer: str, base: str) -> float | None:
    ratios = [
        round_[peer].cost_us / round_[base].cost_us
        for round_ in rounds
        if peer in round_ and base in round_ and round_[base].cost_us and round_[peer].cost_us
    ]
    return median(ratios) if ratios else None
