-- Who read, exported or repaired what, and when: the facts of `audit:{s}` (core/audit.py). Who wrote stands in the
-- events themselves.
--
-- Sorted by subject and log, as the API pages through the audit of a match. after and last bound what was read, as
-- places in the log of the subject. No network address and no key comes here, so nothing needs to be forgotten.
CREATE TABLE IF NOT EXISTS audit {on_cluster}
(
    shard        UInt8                  CODEC(ZSTD(1)),
    stream_epoch UInt64                 CODEC(ZSTD(1)),
    stream_ms    UInt64                 CODEC(DoubleDelta, ZSTD(1)),
    stream_seq   UInt64                 CODEC(T64, ZSTD(1)),
    subject      LowCardinality(String) CODEC(ZSTD(1)),
    action       LowCardinality(String) CODEC(ZSTD(1)),
    actor        LowCardinality(String) CODEC(ZSTD(1)),
    requests     UInt32                 CODEC(T64, ZSTD(1)),
    events       UInt64                 CODEC(T64, ZSTD(1)),
    after        String                 CODEC(ZSTD(1)),
    last         String                 CODEC(ZSTD(1)),
    correlation  String                 CODEC(ZSTD(1)),
    detail       String                 CODEC(ZSTD(1)),
    ts           DateTime64(3, 'UTC')   CODEC(DoubleDelta, ZSTD(1)),
    INDEX stream_position stream_ms TYPE minmax GRANULARITY 4
)
ENGINE = {replicated}MergeTree
PARTITION BY toYYYYMM(ts)
ORDER BY (subject, stream_ms, stream_seq, stream_epoch)
SETTINGS {deduplication}, {durability};
