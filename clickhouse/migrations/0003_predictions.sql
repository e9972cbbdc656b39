-- How likely team 1 was to win a map, after each round: what calibration compares with the winner.
--
-- Sorted by map and log, as a map's curve is read. stream_k tells it from the other messages of the same input.
CREATE TABLE IF NOT EXISTS predictions {on_cluster}
(
    shard        UInt8                  CODEC(ZSTD(1)),
    stream_epoch UInt64                 CODEC(ZSTD(1)),
    stream_ms    UInt64                 CODEC(DoubleDelta, ZSTD(1)),
    stream_seq   UInt64                 CODEC(T64, ZSTD(1)),
    stream_k     UInt16                 CODEC(T64, ZSTD(1)),
    match_id     LowCardinality(String) CODEC(ZSTD(1)),
    map_id       LowCardinality(String) CODEC(ZSTD(1)),
    round_no     UInt16                 CODEC(T64, ZSTD(1)),
    p_team1      Float64                CODEC(ZSTD(1)),
    model        LowCardinality(String) CODEC(ZSTD(1)),
    ts           DateTime64(3, 'UTC')   CODEC(DoubleDelta, ZSTD(1)),
    INDEX stream_position stream_ms TYPE minmax GRANULARITY 4
)
ENGINE = {replicated}MergeTree
PARTITION BY toYYYYMM(ts)
ORDER BY (match_id, map_id, stream_ms, stream_seq, stream_k)
SETTINGS {deduplication}, {durability};
