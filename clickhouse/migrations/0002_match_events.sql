-- What happened in a match, in the order of the log: the API's pages and replays read it as it is sorted, a page from
-- the middle of a match touches a few granules.
--
-- Sorted by (ms, seq) before the epoch: ids grow through all epochs of a log, also where a clock that was
-- set back gives an epoch a smaller number. round_no is 0 where the event names none. ts is the source's time, or the time of receipt.
CREATE TABLE IF NOT EXISTS match_events {on_cluster}
(
    shard        UInt8                  CODEC(ZSTD(1)),
    stream_epoch UInt64                 CODEC(ZSTD(1)),
    stream_ms    UInt64                 CODEC(DoubleDelta, ZSTD(1)),
    stream_seq   UInt64                 CODEC(T64, ZSTD(1)),
    event_id     String                 CODEC(ZSTD(3)),
    match_id     LowCardinality(String) CODEC(ZSTD(1)),
    map_id       LowCardinality(String) CODEC(ZSTD(1)),
    round_no     UInt16                 CODEC(T64, ZSTD(1)),
    type         LowCardinality(String) CODEC(ZSTD(1)),
    revision     UInt32 DEFAULT 1       CODEC(T64, ZSTD(1)),
    source       LowCardinality(String) CODEC(ZSTD(1)),
    ts           DateTime64(3, 'UTC')   CODEC(DoubleDelta, ZSTD(1)),
    received_at  DateTime64(3, 'UTC')   CODEC(DoubleDelta, ZSTD(1)),
    archived_at  DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    payload      String                 CODEC(ZSTD(3)),
    INDEX stream_position stream_ms TYPE minmax GRANULARITY 4
)
ENGINE = {replicated}MergeTree
PARTITION BY toYYYYMM(received_at)
ORDER BY (match_id, stream_ms, stream_seq, stream_epoch)
SETTINGS {deduplication}, {durability};
