"""Counting deliveries without paying for it per delivery.

Hot path: called once per frame and message with the number of sockets it went to; label look-ups happen once per
label value. Budget 3 µs per message and frame whatever the number of subscribers.
"""

from collections.abc import Sequence

from prometheus_client import Counter

from core.clock import Clock, now_us
from core.metrics import (
    CONFLATED,
    CONNECTIONS,
    DELIVERIES,
    E2E,
    EVICTIONS,
    RESUMES,
    SLO_VIOLATIONS,
    STAGE,
    WeightedHistogram,
)
from core.names import STATE_KINDS
from gateway.frames import TRANSPORTS, Item, Wire

SLO_MS = (300, 500)

EVENT_TYPES = STATE_KINDS | {
    "going_live", "round_end", "map_result", "series_start", "series_end", "map_picked", "map_vetoed", "side_picked",
    "round_mvp", "round_start", "player_death", "bomb_planted", "bomb_defused", "bomb_exploded", "backup_loaded",
    "knife_start", "knife_won", "game_paused", "game_unpaused", "stats_updated",
}  # fmt: skip
"""Values of the label `event_type`; clients choose types freely, so every other one counts as `other`."""


class Meter:
    """The gateway's delivery metrics."""

    def __init__(self, clock: Clock = now_us) -> None:
        self._clock = clock
        self._e2e: dict[str, WeightedHistogram] = {}
        self._push: WeightedHistogram = STAGE.labels("push")
        self._late = [(bound * 1000, SLO_VIOLATIONS.labels(f"{bound}ms")) for bound in SLO_MS]
        self._sent: dict[tuple[str, bool], Counter] = {}
        for verdict in ("complete", "conflated", "reset", "snapshot"):
            RESUMES.labels(verdict)  # a series that starts at zero can be alarmed on
        for reason in ("seconds", "bytes", "memory", "replay"):
            EVICTIONS.labels(reason)
        for transport in set(TRANSPORTS.values()):
            CONNECTIONS.labels(transport)
            for is_state in (True, False):
                self._sent[transport, is_state] = DELIVERIES.labels(transport, "state" if is_state else "event")

    def delivered(self, wire: Wire, items: Sequence[Item], sockets: int) -> None:
        """`items` were written to `sockets` sockets just now."""
        now = self._clock()
        transport = TRANSPORTS[wire]
        states = 0
        for item in items:
            states += item.is_state
            if not item.received_us:
                continue
            late_us = now - item.received_us
            self._latency(item.kind).observe_many(late_us / 1000, sockets)
            if item.applied_us:
                self._push.observe_many((now - item.applied_us) / 1000, sockets)
            for bound_us, counter in self._late:
                if late_us > bound_us:
                    counter.inc(sockets)
        if states:
            self._sent[transport, True].inc(states * sockets)
        if states < len(items):
            self._sent[transport, False].inc((len(items) - states) * sockets)

    def caught_up(self, wire: Wire, items: Sequence[Item]) -> None:
        """`items` were written to one socket late by its own doing, or as a snapshot: no latency of ours."""
        transport = TRANSPORTS[wire]
        states = sum(item.is_state for item in items)
        self._sent[transport, True].inc(states)
        self._sent[transport, False].inc(len(items) - states)

    def conflated(self, count: int) -> None:
        """State messages were skipped for one subscriber."""
        if count > 0:
            CONFLATED.inc(count)

    def evicted(self, reason: str) -> None:
        """A connection was closed because its reader is too slow."""
        EVICTIONS.labels(reason).inc()

    def resumed(self, verdict: str) -> None:
        """A verdict was given on the cursor of one topic."""
        RESUMES.labels(verdict).inc()

    def opened(self, wire: Wire) -> None:
        """A connection began."""
        CONNECTIONS.labels(TRANSPORTS[wire]).inc()

    def closed(self, wire: Wire) -> None:
        """A connection ended."""
        CONNECTIONS.labels(TRANSPORTS[wire]).dec()

    def _latency(self, kind: str) -> WeightedHistogram:
        found = self._e2e.get(kind)
        if found is None:
            # Only known kinds are remembered: a stream of invented types must not grow this table.
            found = E2E.labels(kind if kind in EVENT_TYPES else "other")
            if kind in EVENT_TYPES:
                self._e2e[kind] = found
        return found
