"""Reducer of a match around its maps: who plays, which maps were picked, how many each team won.

Its topic is `match.<match_id>.series`; its state has the fields of a map's state, with maps won for the scores.
"""

from typing import Literal

from msgspec import Struct

from consumers.reducers import feed
from core.events import MatchEvent
from core.names import SERIES

PICKS_MAX = 20
"""Maps remembered by name; a series has at most 5."""


class Series(Struct):
    """State of one series. `picks` maps the 0-based map number to the map's name."""

    match_id: str
    status: Literal["pending", "live", "finished"] = "pending"
    num_maps: int | None = None
    name1: str = ""
    name2: str = ""
    score1: int = 0
    score2: int = 0
    winner: feed.Winner | None = None
    picks: dict[int, str] = {}
    touched_ms: int = 0
    received_ms: int = 0

    def apply(self, event: MatchEvent) -> bool:
        """Apply one event of the series' own topic; True when the state changed."""
        match event.type:
            case "series_start":
                count = event.data.get("num_maps")
                self.status, self.winner, self.score1, self.score2 = "live", None, 0, 0
                self.num_maps = count if isinstance(count, int) and 0 < count <= PICKS_MAX else None
            case "map_picked" | "side_picked":
                number, name = event.data.get("map_number"), feed.map_name(event.data)
                if not (isinstance(number, int) and 0 < number <= PICKS_MAX and name):
                    return False
                if self.picks.get(number - 1) == name:
                    return False
                self.picks[number - 1] = name
            case "series_end":
                self._take_scores(feed.series_scores(event.data))
                self.status = "finished"
                self.winner = self._leader(feed.winner(event.data))
            case _:
                return False
        self.name1 = feed.team_name(event.data, 1) or self.name1
        self.name2 = feed.team_name(event.data, 2) or self.name2
        return True

    def map_finished(self, event: MatchEvent) -> bool:
        """Take the series score that a map's result carries; True when it changed."""
        before = (self.score1, self.score2)
        self._take_scores(feed.series_scores(event.data))
        self.name1 = feed.team_name(event.data, 1) or self.name1
        self.name2 = feed.team_name(event.data, 2) or self.name2
        return (self.score1, self.score2) != before

    def end_idle(self) -> bool:
        """End a series that fell silent. False when it has ended already."""
        if self.status == "finished":
            return False
        self.status = "finished"
        return True

    def _take_scores(self, scores: tuple[int, int] | None) -> None:
        if scores is not None:
            self.score1, self.score2 = scores

    def _leader(self, named: feed.Winner | None) -> feed.Winner | None:
        if self.score1 == self.score2:
            return named if self.score1 == 0 else "draw"
        return "team1" if self.score1 > self.score2 else "team2"

    def view(self) -> dict[str, object]:
        """Data of a `state` message of the series."""
        return {
            "match_id": self.match_id,
            "map_id": SERIES,
            "map_name": "",
            "status": self.status,
            "round_no": 0,
            "team1": {"name": self.name1, "score": self.score1},
            "team2": {"name": self.name2, "score": self.score2},
            "winner": self.winner,
            "rounds": [],
            "num_maps": self.num_maps,
            "maps": [{"map_id": str(number), "map_name": name} for number, name in sorted(self.picks.items())],
            "received_ms": self.received_ms,
        }

    def snapshot(self) -> dict[str, object]:
        """The whole hot state; a series has no prediction."""
        return {**self.view(), "prediction": None}
