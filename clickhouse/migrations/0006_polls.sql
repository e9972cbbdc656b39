-- The life of a poll: its definition and status after each change, so that votes can be read with titles and labels.
CREATE TABLE IF NOT EXISTS poll_states {on_cluster}
(
    shard        UInt8                  CODEC(ZSTD(1)),
    stream_epoch UInt64                 CODEC(ZSTD(1)),
    stream_ms    UInt64                 CODEC(DoubleDelta, ZSTD(1)),
    stream_seq   UInt64                 CODEC(T64, ZSTD(1)),
    stream_k     UInt16                 CODEC(T64, ZSTD(1)),
    poll_id      LowCardinality(String) CODEC(ZSTD(1)),
    status       LowCardinality(String) CODEC(ZSTD(1)),
    title        String                 CODEC(ZSTD(3)),
    voting       LowCardinality(String) CODEC(ZSTD(1)),
    match_id     LowCardinality(String) CODEC(ZSTD(1)),
    options      Map(String, String)    CODEC(ZSTD(3)),
    ts           DateTime64(3, 'UTC')   CODEC(DoubleDelta, ZSTD(1)),
    INDEX stream_position stream_ms TYPE minmax GRANULARITY 4
)
ENGINE = {replicated}MergeTree
PARTITION BY toYYYYMM(ts)
ORDER BY (poll_id, stream_ms, stream_seq, stream_k)
SETTINGS {deduplication}, {durability};

-- Each poll as it stands, or ended. A poll has a handful of rows, so the newest is looked for instead of kept.
CREATE VIEW IF NOT EXISTS polls {on_cluster} AS
SELECT poll_id, argMax(status, position) AS status, argMax(title, position) AS title,
       argMax(voting, position) AS voting, argMax(match_id, position) AS match_id,
       argMax(options, position) AS options, min(ts) AS created_at, max(ts) AS changed_at,
       minOrNullIf(ts, states.status = 'open') AS opened_at, maxOrNullIf(ts, states.status = 'closed') AS closed_at
FROM (SELECT *, (stream_ms, stream_seq, stream_epoch, stream_k) AS position FROM poll_states) AS states
GROUP BY poll_id;
