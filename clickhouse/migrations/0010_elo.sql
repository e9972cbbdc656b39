-- Which maps count for ratings: finished, with a result and two known teams, in the order in which they ended.
--
-- `version` is the position of the result in the log; match and map settle the order of results of two shards.
CREATE VIEW IF NOT EXISTS elo_inputs {on_cluster} AS
SELECT version, match_id, map_id, map_name, team1, team2, score_team1, score_team2, winner, updated_at AS ended_at
FROM map_metrics_store FINAL
WHERE status = 'finished' AND winner IN ('team1', 'team2', 'draw') AND team1 != '' AND team2 != '' AND team1 != team2
ORDER BY version, match_id, map_id;

-- What the maps did to the ratings of their teams: a row per map and calculation that found something new about it.
--
-- Ratings depend on each other in the order of the log, which no view can follow, so `arenacast elo` computes them and
-- inserts here what differs from what is there. A calculation is a pure function of elo_inputs: a second one finds no
-- difference. The position is the newest one of any map that it knew, so the latest calculation counts; is_void takes
-- back a map that is no result any more (it was restarted).
CREATE TABLE IF NOT EXISTS ratings {on_cluster}
(
    stream_epoch   UInt64                 CODEC(ZSTD(1)),
    stream_ms      UInt64                 CODEC(DoubleDelta, ZSTD(1)),
    stream_seq     UInt64                 CODEC(T64, ZSTD(1)),
    stream_k       UInt16                 CODEC(T64, ZSTD(1)),
    model          LowCardinality(String) CODEC(ZSTD(1)),
    ordinal        UInt32                 CODEC(DoubleDelta, ZSTD(1)),
    match_id       LowCardinality(String) CODEC(ZSTD(1)),
    map_id         LowCardinality(String) CODEC(ZSTD(1)),
    team1          LowCardinality(String) CODEC(ZSTD(1)),
    team2          LowCardinality(String) CODEC(ZSTD(1)),
    before_team1   Float64                CODEC(ZSTD(1)),
    before_team2   Float64                CODEC(ZSTD(1)),
    expected_team1 Float64                CODEC(ZSTD(1)),
    result_team1   Float64                CODEC(ZSTD(1)),
    change_team1   Float64                CODEC(ZSTD(1)),
    is_void        Bool                   CODEC(ZSTD(1)),
    ended_at       DateTime64(3, 'UTC')   CODEC(DoubleDelta, ZSTD(1))
)
ENGINE = {replicated}MergeTree
PARTITION BY toYYYYMM(ended_at)
ORDER BY (model, match_id, map_id, stream_ms, stream_seq, stream_k)
SETTINGS {deduplication}, {durability};

CREATE TABLE IF NOT EXISTS elo_ratings_store {on_cluster}
(
    model          LowCardinality(String) CODEC(ZSTD(1)),
    match_id       LowCardinality(String) CODEC(ZSTD(1)),
    map_id         LowCardinality(String) CODEC(ZSTD(1)),
    version        UInt256                CODEC(ZSTD(1)),
    ordinal        UInt32                 CODEC(T64, ZSTD(1)),
    team1          LowCardinality(String) CODEC(ZSTD(1)),
    team2          LowCardinality(String) CODEC(ZSTD(1)),
    before_team1   Float64                CODEC(ZSTD(1)),
    before_team2   Float64                CODEC(ZSTD(1)),
    expected_team1 Float64                CODEC(ZSTD(1)),
    result_team1   Float64                CODEC(ZSTD(1)),
    change_team1   Float64                CODEC(ZSTD(1)),
    is_void        Bool                   CODEC(ZSTD(1)),
    ended_at       DateTime64(3, 'UTC')   CODEC(DoubleDelta, ZSTD(1))
)
ENGINE = {replicated}ReplacingMergeTree(version)
ORDER BY (model, match_id, map_id)
SETTINGS {deduplication}, {durability};

CREATE MATERIALIZED VIEW IF NOT EXISTS elo_ratings_feed {on_cluster} TO elo_ratings_store AS
SELECT model, match_id, map_id,
       bitOr(bitOr(bitShiftLeft(toUInt256(stream_ms), 192), bitShiftLeft(toUInt256(stream_seq), 128)),
             bitOr(bitShiftLeft(toUInt256(stream_epoch), 64), toUInt256(stream_k) * 2)) AS version,
       ordinal, team1, team2, before_team1, before_team2, expected_team1,
       result_team1, change_team1, is_void, ended_at
FROM ratings;

-- One row per finished map: the ratings before it, what they expected, what happened, and what it changed.
CREATE VIEW IF NOT EXISTS elo_ratings {on_cluster} AS
SELECT model, ordinal, match_id, map_id, team1, team2, before_team1, before_team2, expected_team1, result_team1,
       change_team1, before_team1 + change_team1 AS after_team1, before_team2 - change_team1 AS after_team2, ended_at
FROM elo_ratings_store FINAL
WHERE NOT is_void;

-- Where each team stands now.
CREATE VIEW IF NOT EXISTS team_ratings {on_cluster} AS
SELECT model, side.1 AS team, argMax(side.2, ordinal) AS rating, count() AS maps, max(ended_at) AS last_at
FROM elo_ratings
ARRAY JOIN [(team1, after_team1), (team2, after_team2)] AS side
GROUP BY model, team;
