-- The summary of a map after each change: who played, how it stood, when.
CREATE TABLE IF NOT EXISTS map_states {on_cluster}
(
    shard        UInt8                  CODEC(ZSTD(1)),
    stream_epoch UInt64                 CODEC(ZSTD(1)),
    stream_ms    UInt64                 CODEC(DoubleDelta, ZSTD(1)),
    stream_seq   UInt64                 CODEC(T64, ZSTD(1)),
    stream_k     UInt16                 CODEC(T64, ZSTD(1)),
    match_id     LowCardinality(String) CODEC(ZSTD(1)),
    map_id       LowCardinality(String) CODEC(ZSTD(1)),
    map_name     LowCardinality(String) CODEC(ZSTD(1)),
    status       LowCardinality(String) CODEC(ZSTD(1)),
    winner       LowCardinality(String) CODEC(ZSTD(1)),
    round_no     UInt16                 CODEC(T64, ZSTD(1)),
    team1        LowCardinality(String) CODEC(ZSTD(1)),
    team2        LowCardinality(String) CODEC(ZSTD(1)),
    score_team1  UInt16                 CODEC(T64, ZSTD(1)),
    score_team2  UInt16                 CODEC(T64, ZSTD(1)),
    ts           DateTime64(3, 'UTC')   CODEC(DoubleDelta, ZSTD(1)),
    INDEX stream_position stream_ms TYPE minmax GRANULARITY 4
)
ENGINE = {replicated}MergeTree
PARTITION BY toYYYYMM(ts)
ORDER BY (match_id, map_id, stream_ms, stream_seq, stream_k)
SETTINGS {deduplication}, {durability};

-- Each map as it stands, or ended: the newest position of a (match, map) counts. version: see round_metrics_store.
CREATE TABLE IF NOT EXISTS map_metrics_store {on_cluster}
(
    match_id    LowCardinality(String) CODEC(ZSTD(1)),
    map_id      LowCardinality(String) CODEC(ZSTD(1)),
    version     UInt256                CODEC(ZSTD(1)),
    map_name    LowCardinality(String) CODEC(ZSTD(1)),
    status      LowCardinality(String) CODEC(ZSTD(1)),
    winner      LowCardinality(String) CODEC(ZSTD(1)),
    rounds      UInt16                 CODEC(T64, ZSTD(1)),
    team1       LowCardinality(String) CODEC(ZSTD(1)),
    team2       LowCardinality(String) CODEC(ZSTD(1)),
    score_team1 UInt16                 CODEC(T64, ZSTD(1)),
    score_team2 UInt16                 CODEC(T64, ZSTD(1)),
    updated_at  DateTime64(3, 'UTC')   CODEC(DoubleDelta, ZSTD(1))
)
ENGINE = {replicated}ReplacingMergeTree(version)
ORDER BY (match_id, map_id)
SETTINGS {deduplication}, {durability};

CREATE MATERIALIZED VIEW IF NOT EXISTS map_metrics_feed {on_cluster} TO map_metrics_store AS
SELECT match_id, map_id,
       bitOr(bitOr(bitShiftLeft(toUInt256(stream_ms), 192), bitShiftLeft(toUInt256(stream_seq), 128)),
             bitOr(bitShiftLeft(toUInt256(stream_epoch), 64), toUInt256(stream_k) * 2)) AS version,
       map_name, status, winner, round_no AS rounds, team1, team2, score_team1, score_team2, ts AS updated_at
FROM map_states;

CREATE VIEW IF NOT EXISTS map_metrics {on_cluster} AS
SELECT match_id, map_id, map_name, status, winner, rounds, team1, team2, score_team1, score_team2, updated_at
FROM map_metrics_store FINAL;
