-- Which attempts at computing an aggregate anew are out of date: those of a shard's log with a smaller number.
--
-- An attempt deletes and inserts, and nothing but its number keeps it from doing so late: its owner was paused, or its
-- connection broke while the statement ran on. Every such statement looks here when it begins (clickhouse/rebuilding.py).
-- A row per shard and log at most, and none before the first attempt that did not come to its end.
CREATE TABLE IF NOT EXISTS rebuild_fences {on_cluster}
(
    shard  UInt8,
    log    LowCardinality(String),
    number UInt64
)
ENGINE = {replicated}ReplacingMergeTree(number)
ORDER BY (shard, log)
SETTINGS {deduplication}, {durability};
