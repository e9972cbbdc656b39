"""Instants as ClickHouse's DateTime64(3) counts them: integer milliseconds, within the range it can hold."""

from datetime import UTC, datetime, timedelta

MS_MIN = -2_208_988_800_000  # 1900-01-01
MS_MAX = 10_413_791_999_999  # 2299-12-31

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


def clamp_ms(ms: int) -> int:
    """The nearest instant that ClickHouse can hold: a source's clock may say anything, and its event must be stored."""
    return ms if MS_MIN <= ms <= MS_MAX else MS_MIN if ms < MS_MIN else MS_MAX


def to_ms(moment: datetime) -> int:
    """Milliseconds of an aware datetime, exactly (a float of seconds would lose the last one now and then)."""
    return clamp_ms((moment - _EPOCH) // _MS)
