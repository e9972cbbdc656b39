"""What the hub decides by itself, without sockets and with time as an argument."""

from core.position import K_ALL, Position
from gateway.hub import TOO_SLOW, Hub, State, Subscriber
from gateway.meter import Meter
from gateway.subscription import subscription

LAG_MAX_S = 5.0
START = Position(1, 1000, 0, K_ALL)


class Sink:
    """Notes how it is closed."""

    def __init__(self) -> None:
        self.fd = -1
        self.is_paused = False
        self.is_closing = False
        self.closed: list[int] = []

    def write(self, data: bytes) -> None:
        """Nothing is due to it."""
        raise AssertionError(data)

    def close(self, code: int, reason: str) -> None:
        self.closed.append(code)

    def dismiss(self) -> None:
        raise AssertionError("its position is good")


def test_reader_of_a_shard_that_begins_anew_gets_the_patience_of_anybody_behind() -> None:
    """It kept up until then: how long ago it joined is no lag."""
    cold: list[Subscriber] = []
    hub = Hub(
        log_id="log", shards=1, ring_bytes=10_000, chunk_bytes=1000, flush_interval_s=0.0, lag_max_s=LAG_MAX_S,
        heartbeat_s=15.0, meter=Meter(), on_cold=cold.append,
    )  # fmt: skip
    hub.edge[0] = START
    sink = Sink()
    reader = hub.add(hub.open(subscription(["poll.a"]), "text"), sink, {0: START}, now=0.0)
    assert reader.state is State.LIVE
    hub.reset(0, START, lambda _: True, now=100.0)
    assert cold == [reader]
    sink.is_paused = True  # a heartbeat was too much for it
    hub.warm(reader)
    hub.tick(100.0 + LAG_MAX_S)
    assert sink.closed == []
    hub.tick(100.0 + LAG_MAX_S + 0.1)
    assert sink.closed == [TOO_SLOW]
