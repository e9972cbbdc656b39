"""Reducer of one map of a CS2 match.

Feeds differ and have traps (MatchZy 0.8.15 names the team that *leads* as the winner of a round, and after a round
restore sends no event, only a lower score), so scores are what counts: the winner of a round is the team whose score
grew since the round before. Accepted spellings of a score and of a winner are in `feed`.

A round is replaceable: an event for a round already known takes it and everything after it back (a restore) and puts
itself in its place; the rounds taken back are reported as void. After the result nothing changes any more: a late
`round_end` is delivered as an event and changes no state. `going_live` starts the map over: MatchZy sends it again
after a restart.

A `win_prior` event says how likely team 1 is to win the map before anything of it is played (`arenacast elo` sends it,
anybody may): predictions start from it. It is an event like all others, so the log alone decides which one counted.
"""

import re
from typing import Literal

from msgspec import Struct

from consumers.reducers import feed
from consumers.reducers.win_chance import MODEL, round_probability, win_probability
from core.events import MatchEvent

Status = Literal["pending", "live", "finished"]


class RoundResult(Struct):
    """One completed round with the score after it. `winner` is None when the feed does not let us know."""

    round_no: int
    winner: feed.Team | None
    reason: str
    score1: int
    score2: int


class Change(Struct):
    """What one event changed: rounds that are new or replaced, rounds taken back, and whether the state moved."""

    state: bool = False
    prediction: bool = False
    rounds: list[RoundResult] = []
    void: list[RoundResult] = []


class Cs2Map(Struct):
    """State of one map."""

    match_id: str
    map_id: str
    map_name: str = ""
    status: Status = "pending"
    name1: str = ""
    name2: str = ""
    score1: int = 0
    score2: int = 0
    winner: feed.Winner | None = None
    rounds: list[RoundResult] = []
    p_team1: float | None = None
    p_round: float = 0.5
    prior: str = ""
    touched_ms: int = 0
    received_ms: int = 0

    def apply(self, event: MatchEvent) -> Change:
        """Apply one event of this map; unknown types change nothing."""
        handler = _HANDLERS.get(event.type)
        if handler is None:
            return Change()
        change = handler(self, event)
        if change.state:
            self.map_name = feed.map_name(event.data) or self.map_name
            self.name1 = feed.team_name(event.data, 1) or self.name1
            self.name2 = feed.team_name(event.data, 2) or self.name2
        if change.state or change.prediction:
            before, self.p_team1 = self.p_team1, self._chance()
            change.prediction = bool(change.rounds or change.void) or before != self.p_team1
        return change

    def end_idle(self) -> bool:
        """End a map that fell silent: finished without a winner. False when it has ended already."""
        if self.status == "finished":
            return False
        self.status = "finished"
        return True

    def _chance(self) -> float | None:
        if self.status == "finished" and self.winner is not None:
            return {"team1": 1.0, "team2": 0.0, "draw": 0.5}[self.winner]
        return win_probability(self.score1, self.score2, self.p_round) if self.status == "live" else self.p_team1

    @property
    def model(self) -> str:
        """Name of what predicts: the race, and the prior it starts from."""
        return f"{MODEL}+{self.prior}" if self.prior else MODEL

    def _take_prior(self, event: MatchEvent) -> Change:
        chance, name = event.data.get("p_team1"), event.data.get("model")
        if not isinstance(chance, float) or not PRIOR_MIN <= chance <= 1 - PRIOR_MIN:
            return Change()
        if self.status == "finished" or not isinstance(name, str) or not _MODEL_NAME.match(name):
            return Change()
        self.p_round, self.prior = round_probability(chance), name
        return Change(prediction=True)

    def _go_live(self, _event: MatchEvent) -> Change:
        void, self.rounds = self.rounds, []
        self.status, self.winner, self.score1, self.score2 = "live", None, 0, 0
        return Change(state=True, void=void)

    def _end_round(self, event: MatchEvent) -> Change:
        if self.status == "finished":
            return Change()
        scores = feed.scores(event.data)
        if scores is None:
            return self._count_round(event)
        score1, score2 = scores
        round_no = score1 + score2
        if round_no == 0:
            return Change()
        void = self._take_back(round_no)
        grown1, grown2 = score1 - self.score1, score2 - self.score2
        gap = round_no - (self.score1 + self.score2)
        winner: feed.Team | None = None
        if grown1 == gap:
            winner = "team1"
        elif grown2 == gap:
            winner = "team2"
        rounds = self._missed(gap, winner)
        rounds.append(
            RoundResult(round_no, winner or feed.trusted_winner(event), feed.reason(event.data), score1, score2)
        )
        return self._add(rounds, void)

    def _count_round(self, event: MatchEvent) -> Change:
        """A feed without scores: the named winner gains the round."""
        winner = feed.winner(event.data)
        if winner not in ("team1", "team2"):
            return Change()
        round_no = event.round_no or len(self.rounds) + 1
        void = self._take_back(round_no)
        score1, score2 = self.score1 + (winner == "team1"), self.score2 + (winner == "team2")
        return self._add([RoundResult(round_no, winner, feed.reason(event.data), score1, score2)], void)

    def _take_back(self, round_no: int) -> list[RoundResult]:
        """Forget the rounds from `round_no` on; the score is the one before it again."""
        kept = [known for known in self.rounds if known.round_no < round_no]
        void = self.rounds[len(kept) :]
        if void:
            self.rounds = kept
            self.score1, self.score2 = (kept[-1].score1, kept[-1].score2) if kept else (0, 0)
        return void

    def _missed(self, gap: int, winner: feed.Team | None) -> list[RoundResult]:
        """Rounds whose `round_end` never came, when the score tells who won them all."""
        if winner is None:
            return []
        score = [self.score1, self.score2]
        rounds = []
        for _ in range(min(gap - 1, _ROUNDS_MAX)):
            score[winner == "team2"] += 1
            rounds.append(RoundResult(sum(score), winner, "", score[0], score[1]))
        # A feed that counts rounds without scores may have got ahead of the score.
        last = self.rounds[-1].round_no if self.rounds else 0
        return [missed for missed in rounds if missed.round_no > last]

    def _add(self, rounds: list[RoundResult], void: list[RoundResult]) -> Change:
        self.rounds.extend(rounds)
        self.score1, self.score2 = rounds[-1].score1, rounds[-1].score2
        self.status = "live"
        replaced = {known.round_no for known in rounds}
        return Change(state=True, rounds=rounds, void=[known for known in void if known.round_no not in replaced])

    def _finish(self, event: MatchEvent) -> Change:
        if self.status == "finished":
            return Change()
        change = Change(state=True)
        scores = feed.scores(event.data)
        if scores is not None:
            known = (self.score1, self.score2)
            if scores != known and sum(scores) > 0:
                # The last round_end may arrive after the result, or never.
                change.rounds, change.void = self._complete(scores)
            self.score1, self.score2 = scores
            self.winner = "team1" if scores[0] > scores[1] else "team2" if scores[1] > scores[0] else "draw"
        else:
            self.winner = feed.winner(event.data)
        self.status = "finished"
        return change

    def _complete(self, scores: tuple[int, int]) -> tuple[list[RoundResult], list[RoundResult]]:
        void = self._take_back(sum(scores) + 1)
        gap = sum(scores) - self.score1 - self.score2
        winner: feed.Team | None = None
        if gap > 0 and scores[0] - self.score1 == gap:
            winner = "team1"
        elif gap > 0 and scores[1] - self.score2 == gap:
            winner = "team2"
        rounds = self._missed(gap + 1, winner)
        self.rounds.extend(rounds)
        return rounds, void

    def view(self) -> dict[str, object]:
        """Data of a `state` message."""
        return {
            "match_id": self.match_id,
            "map_id": self.map_id,
            "map_name": self.map_name,
            "status": self.status,
            "round_no": self.score1 + self.score2,
            "team1": {"name": self.name1, "score": self.score1},
            "team2": {"name": self.name2, "score": self.score2},
            "winner": self.winner,
            "rounds": [
                {"round_no": known.round_no, "winner": known.winner, "reason": known.reason} for known in self.rounds
            ],
            "received_ms": self.received_ms,
        }

    def prediction(self) -> dict[str, object] | None:
        """Data of a `prediction` message; None before the map is live."""
        if self.p_team1 is None:
            return None
        return {
            "round_no": self.score1 + self.score2,
            "p_team1": round(self.p_team1, 6),
            "p_team2": round(1 - self.p_team1, 6),
            "model": self.model,
        }

    def snapshot(self) -> dict[str, object]:
        """The whole hot state: the fields of `state`, and the newest prediction."""
        return {**self.view(), "prediction": self.prediction()}


_ROUNDS_MAX = 200
"""Longest run of missed rounds filled in: bounds what a forged score can make us write."""

PRIOR_MIN = 0.01
"""A prior nearer to 0 or 1 is not believed: no team loses a map before it has begun."""

_MODEL_NAME = re.compile(r"[a-z0-9._/-]{1,32}\Z")

_HANDLERS = {
    "going_live": Cs2Map._go_live,
    "round_end": Cs2Map._end_round,
    "map_result": Cs2Map._finish,
    "win_prior": Cs2Map._take_prior,
}
