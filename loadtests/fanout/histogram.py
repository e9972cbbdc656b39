"""The client's latency histogram: buckets of 1 us below 128 us, then 64 per octave (1.6 % wide). Pure."""

from collections.abc import Iterable

LINEAR = 128
PER_OCTAVE = 64


def upper_us(bucket: int) -> int:
    """The largest latency of a bucket, in microseconds."""
    if bucket < LINEAR:
        return bucket
    octave, offset = divmod(bucket - PER_OCTAVE, PER_OCTAVE)
    return ((PER_OCTAVE + offset + 1) << octave) - 1


def percentile_ms(histogram: Iterable[tuple[int, int]], q: float) -> float:
    """The latency in ms that `q` % of all messages do not exceed (at most 1.6 % too high); 0 without messages."""
    pairs = sorted(histogram)
    wanted = sum(count for _, count in pairs) * q / 100
    seen = 0
    for bucket, count in pairs:
        seen += count
        if seen >= wanted:
            return upper_us(bucket) / 1000
    return 0.0
