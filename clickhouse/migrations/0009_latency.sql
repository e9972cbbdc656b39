-- How long the state consumer took: one row per batch it applied, from the receipt of the batch's oldest event (or, for
-- votes, of the oldest behind a tally) to the moment it was applied.
--
-- Telemetry, so it goes after 90 days; the quantiles made of it stay for 400.
CREATE TABLE IF NOT EXISTS applied_batches {on_cluster}
(
    shard        UInt8                CODEC(ZSTD(1)),
    stream_epoch UInt64               CODEC(ZSTD(1)),
    stream_ms    UInt64               CODEC(DoubleDelta, ZSTD(1)),
    stream_seq   UInt64               CODEC(T64, ZSTD(1)),
    messages     UInt32               CODEC(T64, ZSTD(1)),
    received_at  DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    applied_at   DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    INDEX stream_position stream_ms TYPE minmax GRANULARITY 4
)
ENGINE = {replicated}MergeTree
PARTITION BY toYYYYMM(applied_at)
ORDER BY (shard, stream_ms, stream_seq)
TTL toDateTime(applied_at) + INTERVAL 90 DAY
SETTINGS {deduplication}, {durability};

-- How long each stage took, in milliseconds, by kind of fact, source and minute; any span can be merged.
--
-- stage: source = from the source's own time to the receipt (its clock may be wrong: below 0 counts as 0) · log = until
-- it was in the log · archive = until it was in ClickHouse · state = until it was applied; the last three from the
-- receipt on. The shard is in the key, so that one writer alone adds to a row and can compute it anew.
CREATE TABLE IF NOT EXISTS latency_store {on_cluster}
(
    kind      LowCardinality(String) CODEC(ZSTD(1)),
    stage     LowCardinality(String) CODEC(ZSTD(1)),
    source    LowCardinality(String) CODEC(ZSTD(1)),
    minute    DateTime('UTC')        CODEC(DoubleDelta, ZSTD(1)),
    shard     UInt8                  CODEC(ZSTD(1)),
    events    SimpleAggregateFunction(sum, UInt64) CODEC(T64, ZSTD(1)),
    last_at   SimpleAggregateFunction(max, DateTime64(3, 'UTC')) CODEC(DoubleDelta, ZSTD(1)),
    worst_ms  SimpleAggregateFunction(max, Float32) CODEC(ZSTD(1)),
    quantiles AggregateFunction(quantilesTDigest(0.5, 0.9, 0.95, 0.99), Float32) CODEC(ZSTD(1))
)
ENGINE = {replicated}AggregatingMergeTree
PARTITION BY toYYYYMM(minute)
ORDER BY (kind, stage, source, minute, shard)
TTL minute + INTERVAL 400 DAY
SETTINGS {deduplication}, {durability};

CREATE MATERIALIZED VIEW IF NOT EXISTS votes_latency_feed {on_cluster} TO latency_store AS
SELECT 'vote' AS kind, step.1 AS stage, source, toStartOfMinute(received_at) AS minute, shard, count() AS events,
       max(received_at) AS last_at, max(step.2) AS worst_ms,
       quantilesTDigestState(0.5, 0.9, 0.95, 0.99)(step.2) AS quantiles
FROM votes
ARRAY JOIN [('source', toFloat32(greatest(0, toUnixTimestamp64Milli(received_at) - toUnixTimestamp64Milli(ts)))),
            ('log', toFloat32(greatest(0, toInt64(stream_ms) - toUnixTimestamp64Milli(received_at)))),
            ('archive', toFloat32(greatest(0, toUnixTimestamp64Milli(archived_at) - toUnixTimestamp64Milli(received_at))))
           ] AS step
GROUP BY kind, stage, source, minute, shard;

CREATE MATERIALIZED VIEW IF NOT EXISTS events_latency_feed {on_cluster} TO latency_store AS
SELECT 'event' AS kind, step.1 AS stage, source, toStartOfMinute(received_at) AS minute, shard, count() AS events,
       max(received_at) AS last_at, max(step.2) AS worst_ms,
       quantilesTDigestState(0.5, 0.9, 0.95, 0.99)(step.2) AS quantiles
FROM match_events
ARRAY JOIN [('source', toFloat32(greatest(0, toUnixTimestamp64Milli(received_at) - toUnixTimestamp64Milli(ts)))),
            ('log', toFloat32(greatest(0, toInt64(stream_ms) - toUnixTimestamp64Milli(received_at)))),
            ('archive', toFloat32(greatest(0, toUnixTimestamp64Milli(archived_at) - toUnixTimestamp64Milli(received_at))))
           ] AS step
GROUP BY kind, stage, source, minute, shard;

CREATE MATERIALIZED VIEW IF NOT EXISTS batches_latency_feed {on_cluster} TO latency_store AS
SELECT 'batch' AS kind, 'state' AS stage, '' AS source, toStartOfMinute(received_at) AS minute, shard,
       count() AS events, max(received_at) AS last_at,
       max(toFloat32(greatest(0, date_diff('millisecond', received_at, applied_at)))) AS worst_ms,
       quantilesTDigestState(0.5, 0.9, 0.95, 0.99)
           (toFloat32(greatest(0, date_diff('millisecond', received_at, applied_at)))) AS quantiles
FROM applied_batches
GROUP BY kind, stage, source, minute, shard;

CREATE VIEW IF NOT EXISTS latency {on_cluster} AS
SELECT kind, stage, source, minute, events, merged[1] AS p50_ms, merged[2] AS p90_ms, merged[3] AS p95_ms,
       merged[4] AS p99_ms, worst AS worst_ms
FROM
(
    SELECT kind, stage, source, minute, sum(events) AS events, max(worst_ms) AS worst,
           quantilesTDigestMerge(0.5, 0.9, 0.95, 0.99)(quantiles) AS merged
    FROM latency_store
    GROUP BY kind, stage, source, minute
);

-- Whether the sources are alive: what each sent in a minute, when it was last heard, and how late its facts came.
CREATE VIEW IF NOT EXISTS source_health {on_cluster} AS
SELECT kind, source, minute, events, heard_at AS last_at, merged[1] AS delay_p50_ms, merged[4] AS delay_p99_ms
FROM
(
    SELECT kind, source, minute, sum(events) AS events, max(last_at) AS heard_at,
           quantilesTDigestMerge(0.5, 0.9, 0.95, 0.99)(quantiles) AS merged
    FROM latency_store
    WHERE stage = 'source'
    GROUP BY kind, source, minute
);
