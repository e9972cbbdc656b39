"""Facts about rounds."""

from core.updates import Round


def a_round(ms: int, round_no: int, winner: str, *, is_void: bool = False, k: int = 2, seq: int = 0) -> Round:
    return Round(ms, seq, k, "m", "1", round_no, winner, "r", ms, 0, is_void, ms)  # type: ignore[arg-type]
