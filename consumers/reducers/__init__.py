"""Reducers: hot state as a pure function of the log. No I/O, no clock: time is the position's.

poll         votes, definition, opening and closing of one poll
cs2_map      one map of one CS2 match: teams, score, rounds, result
series       the match around its maps: picks, series score, result
win_chance   the prediction after a round, from one half or from a prior

A reducer owns a small mutable state struct, changes it in place and says what changed. The caller (`consumers.batch`)
throws states away and loads them again whenever a write may not have happened, so nothing here can be half-applied.
"""
