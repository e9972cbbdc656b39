-- How votes came in within a minute: the peak after a round's end, the crowd's reaction to a highlight.
--
-- No voters here: their sets would outweigh the votes themselves. votes_per_minute has them.
CREATE TABLE IF NOT EXISTS votes_per_second_store {on_cluster}
(
    poll_id   LowCardinality(String) CODEC(ZSTD(1)),
    option_id LowCardinality(String) CODEC(ZSTD(1)),
    source    LowCardinality(String) CODEC(ZSTD(1)),
    second    DateTime('UTC')        CODEC(DoubleDelta, ZSTD(1)),
    votes     SimpleAggregateFunction(sum, UInt64) CODEC(T64, ZSTD(1)),
    weight    SimpleAggregateFunction(sum, UInt64) CODEC(T64, ZSTD(1))
)
ENGINE = {replicated}AggregatingMergeTree
PARTITION BY toYYYYMM(second)
ORDER BY (poll_id, option_id, source, second)
SETTINGS {deduplication}, {durability};

CREATE MATERIALIZED VIEW IF NOT EXISTS votes_per_second_feed {on_cluster} TO votes_per_second_store AS
SELECT poll_id, option_id, source, toStartOfSecond(received_at) AS second, count() AS votes, sum(weight) AS weight
FROM votes
GROUP BY poll_id, option_id, source, second;

CREATE VIEW IF NOT EXISTS votes_per_second {on_cluster} AS
SELECT poll_id, option_id, source, second, sum(votes) AS votes, sum(weight) AS weight
FROM votes_per_second_store
GROUP BY poll_id, option_id, source, second;
