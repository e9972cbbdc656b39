"""How many events per second, when: piecewise linear rates, and the moment at which each event is due. Pure.

Load is open-loop: an event is due at a time that the curve alone decides, never at "when the answer to the one before
has come". A latency counted from that time contains the wait that a slow pipeline causes (no coordinated omission).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt


@dataclass(frozen=True)
class Segment:
    """A straight piece of a curve; rates in events per second."""

    seconds: float
    start: float
    end: float

    def count(self, t: float) -> float:
        """Events due within the first `t` seconds of it."""
        return self.start * t + (self.end - self.start) * t * t / (2 * self.seconds)

    def when(self, count: float) -> float:
        """Seconds after which `count` events are due: the inverse of `count`."""
        if count <= 0:
            return 0.0
        slope = (self.end - self.start) / self.seconds
        # This form of the quadratic's root is exact for slope 0 and does not cancel for small slopes.
        return 2 * count / (self.start + sqrt(max(0.0, self.start * self.start + 2 * slope * count)))


class Curve:
    """Segments one after another."""

    def __init__(self, name: str, segments: Sequence[Segment]) -> None:
        """`name` is for people; every segment has a positive length and a rate that is positive somewhere."""
        self.name = name
        self.segments = tuple(segments)

    @property
    def seconds(self) -> float:
        """Length of the whole curve."""
        return sum(segment.seconds for segment in self.segments)

    @property
    def peak(self) -> float:
        """Highest rate."""
        return max(max(segment.start, segment.end) for segment in self.segments)

    def rate(self, t: float) -> float:
        """Events per second at second `t`, 0 outside of the curve."""
        for segment in self.segments:
            if 0 <= t < segment.seconds:
                return segment.start + (segment.end - segment.start) * t / segment.seconds
            t -= segment.seconds
        return 0.0

    def count(self, t: float) -> float:
        """Events due before second `t`."""
        total = 0.0
        for segment in self.segments:
            total += segment.count(min(max(t, 0.0), segment.seconds))
            t -= segment.seconds
        return total

    @property
    def total(self) -> float:
        """Events of the whole curve."""
        return self.count(self.seconds)

    def when(self, count: float) -> float | None:
        """Second at which event number `count` (from 0, fractions allowed) is due; None when the curve ends before."""
        start = 0.0
        for segment in self.segments:
            within = segment.count(segment.seconds)
            if count < within:
                return start + segment.when(count)
            count -= within
            start += segment.seconds
        return None


SUSTAINED_RATE = 1000.0
SUSTAINED_SECONDS = 300.0
BURST_BASE = 100.0
BURST_PEAK = 5000.0
BURST_SECONDS = 120.0


def sustained(rate: float = SUSTAINED_RATE, seconds: float = SUSTAINED_SECONDS) -> Curve:
    """The same rate for the whole time: 1000/s for 5 minutes unless said otherwise."""
    return Curve("sustained", [Segment(seconds, rate, rate)])


def burst(peak: float = BURST_PEAK, seconds: float = BURST_SECONDS, base: float = BURST_BASE) -> Curve:
    """Calm, up to the peak, back to calm: 15 s at 100/s, 30 s up to 5000/s, 60 s down to 100/s, 15 s at 100/s.

    With fewer `seconds` everything happens faster and to the same peak, which is harder, not easier.
    """
    unit = seconds / 120.0
    return Curve(
        "burst",
        [
            Segment(15 * unit, base, base),
            Segment(30 * unit, base, peak),
            Segment(60 * unit, peak, base),
            Segment(15 * unit, base, base),
        ],
    )
