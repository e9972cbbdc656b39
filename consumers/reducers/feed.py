"""Reading scores, names and winners from the bodies that feeds send.

Spellings in the wild: MatchZy and Get5 nest `team1: {name, score}` and `winner: {side, team}`; forks and hand-made
events send flat `team1_score`, `score_team1` or `team1: 5`, and `winner: "team1"`. Everything is optional and may have
any type: a wrong one is read as absent, the event itself is kept and delivered as it came.
"""

from collections.abc import Mapping
from typing import Any, Literal

from core.events import MatchEvent

Team = Literal["team1", "team2"]
Winner = Literal["team1", "team2", "draw"]
Data = Mapping[str, Any]

SCORE_MAX = 1000
"""No map has more rounds; above it a score is read as absent."""

_DRAWS = ("draw", "tie", "none", "")

REASONS = {
    1: "bomb_exploded",
    7: "bomb_defused",
    8: "ct_elimination",
    9: "t_elimination",
    10: "draw",
    11: "hostages_rescued",
    12: "target_saved",
    13: "hostages_not_rescued",
    16: "game_start",
    17: "t_surrender",
    18: "ct_surrender",
}
"""The game's round end reasons, as MatchZy sends them (Get5's SourceMod numbers are one lower)."""


def _score(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= SCORE_MAX else None


def _team_score(data: Data, number: int) -> int | None:
    team = data.get(f"team{number}")
    candidates = (
        team.get("score") if isinstance(team, Mapping) else team,
        data.get(f"team{number}_score"),
        data.get(f"score_team{number}"),
        data.get(f"score{number}"),
    )
    return next((score for score in map(_score, candidates) if score is not None), None)


def scores(data: Data) -> tuple[int, int] | None:
    """(score of team 1, of team 2), or None unless both are there."""
    score1, score2 = _team_score(data, 1), _team_score(data, 2)
    return None if score1 is None or score2 is None else (score1, score2)


def series_scores(data: Data) -> tuple[int, int] | None:
    """Maps won by (team 1, team 2), from `series_end` or from the teams of a `map_result`."""
    found = []
    for number in (1, 2):
        team = data.get(f"team{number}")
        nested = team.get("series_score") if isinstance(team, Mapping) else None
        found.append(_score(data.get(f"team{number}_series_score", nested)))
    return None if found[0] is None or found[1] is None else (found[0], found[1])


def winner(data: Data) -> Winner | None:
    """The winner a feed names, whatever that name is worth (see `trusted_winner`)."""
    named = data.get("winner")
    if isinstance(named, Mapping):
        named = named.get("team")
    if named in ("team1", "team2"):
        return named  # type: ignore[no-any-return]
    return "draw" if isinstance(named, str) and named in _DRAWS else None


def trusted_winner(event: MatchEvent) -> Team | None:
    """The winner of a round as named by a feed whose name can be trusted: not MatchZy, which names the leader."""
    named = winner(event.data) if event.source != "matchzy" else None
    return named if named in ("team1", "team2") else None


def reason(data: Data) -> str:
    """Why a round ended: a word, or "" when unknown. Get5's numbers are told apart by its textual sides."""
    value = data.get("reason")
    if isinstance(value, str):
        return value[:64]
    if not isinstance(value, int) or isinstance(value, bool):
        return ""
    named = data.get("winner")
    side = named.get("side") if isinstance(named, Mapping) else None
    return REASONS.get(value + 1 if side in ("ct", "t") else value, str(value))


def team_name(data: Data, number: int) -> str:
    """Name of team 1 or 2, "" when the body has none."""
    team = data.get(f"team{number}")
    name = team.get("name") if isinstance(team, Mapping) else data.get(f"team{number}_name")
    return name[:100] if isinstance(name, str) else ""


def map_name(data: Data) -> str:
    """Name of the map (`de_mirage`), "" when the body has none."""
    name = data.get("map_name")
    return name[:100] if isinstance(name, str) else ""
