-- Every result of a round that was ever announced, corrections and withdrawals (is_void) included.
CREATE TABLE IF NOT EXISTS rounds {on_cluster}
(
    shard        UInt8                  CODEC(ZSTD(1)),
    stream_epoch UInt64                 CODEC(ZSTD(1)),
    stream_ms    UInt64                 CODEC(DoubleDelta, ZSTD(1)),
    stream_seq   UInt64                 CODEC(T64, ZSTD(1)),
    stream_k     UInt16                 CODEC(T64, ZSTD(1)),
    match_id     LowCardinality(String) CODEC(ZSTD(1)),
    map_id       LowCardinality(String) CODEC(ZSTD(1)),
    round_no     UInt16                 CODEC(T64, ZSTD(1)),
    winner       LowCardinality(String) CODEC(ZSTD(1)),
    reason       LowCardinality(String) CODEC(ZSTD(1)),
    score_team1  UInt16                 CODEC(T64, ZSTD(1)),
    score_team2  UInt16                 CODEC(T64, ZSTD(1)),
    is_void      Bool                   CODEC(ZSTD(1)),
    ts           DateTime64(3, 'UTC')   CODEC(DoubleDelta, ZSTD(1)),
    INDEX stream_position stream_ms TYPE minmax GRANULARITY 4
)
ENGINE = {replicated}MergeTree
PARTITION BY toYYYYMM(ts)
ORDER BY (match_id, map_id, round_no, stream_ms, stream_seq, stream_k)
SETTINGS {deduplication}, {durability};

-- The result of each round as it stands: the newest position of a (match, map, round) counts.
--
-- version = ms, seq, epoch (64 bits each), k and not void (17): the order of the log in one integer, which is what
-- ReplacingMergeTree compares, and wide enough that no part can run into another. The last bit decides where one event
-- withdraws a round and announces it anew.
CREATE TABLE IF NOT EXISTS round_metrics_store {on_cluster}
(
    match_id    LowCardinality(String) CODEC(ZSTD(1)),
    map_id      LowCardinality(String) CODEC(ZSTD(1)),
    round_no    UInt16                 CODEC(T64, ZSTD(1)),
    version     UInt256                CODEC(ZSTD(1)),
    winner      LowCardinality(String) CODEC(ZSTD(1)),
    reason      LowCardinality(String) CODEC(ZSTD(1)),
    score_team1 UInt16                 CODEC(T64, ZSTD(1)),
    score_team2 UInt16                 CODEC(T64, ZSTD(1)),
    is_void     Bool                   CODEC(ZSTD(1)),
    ended_at    DateTime64(3, 'UTC')   CODEC(DoubleDelta, ZSTD(1))
)
ENGINE = {replicated}ReplacingMergeTree(version)
ORDER BY (match_id, map_id, round_no)
SETTINGS {deduplication}, {durability};

CREATE MATERIALIZED VIEW IF NOT EXISTS round_metrics_feed {on_cluster} TO round_metrics_store AS
SELECT match_id, map_id, round_no,
       bitOr(bitOr(bitShiftLeft(toUInt256(stream_ms), 192), bitShiftLeft(toUInt256(stream_seq), 128)),
             bitOr(bitShiftLeft(toUInt256(stream_epoch), 64), toUInt256(stream_k) * 2 + NOT is_void)) AS version,
       winner, reason, score_team1, score_team2, is_void, ts AS ended_at
FROM rounds;

CREATE VIEW IF NOT EXISTS round_metrics {on_cluster} AS
SELECT match_id, map_id, round_no, winner, reason, score_team1, score_team2, ended_at
FROM round_metrics_store FINAL
WHERE NOT is_void;
