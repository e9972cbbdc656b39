-- Who voted for what, when, and where in the log: one row per vote the log accepted, also those that the poll's rules
-- then rejected (late, already voted), because sum(vote_hash) must equal the digest that every reader computes.
--
-- (shard, stream_epoch, stream_ms, stream_seq) is the identity of a vote. Sorted by poll and option, because every
-- question is about polls, and because it makes the two ids cost nothing; time comes next as the log's own.
-- The three hashes are incompressible: 24 of the 27 bytes a row takes after merge (loadtests.bench_schema prints them).
-- archived_at is ClickHouse's clock at the insert, for the latency of the archive: the writer does not send it.
--
-- voter_hash is the one personal datum here (a keyed hash), and goes after 400 days: long enough to compare an event
-- with last year's. The vote itself stays, it is the result. Partitions are months, because a part may then be dropped
-- or backed up by month, and an insert of a backlog touches two of them instead of a hundred days.
CREATE TABLE IF NOT EXISTS votes {on_cluster}
(
    shard        UInt8                  CODEC(ZSTD(1)),
    stream_epoch UInt64                 CODEC(ZSTD(1)),
    stream_ms    UInt64                 CODEC(DoubleDelta, ZSTD(1)),
    stream_seq   UInt64                 CODEC(T64, ZSTD(1)),
    poll_id      LowCardinality(String) CODEC(ZSTD(1)),
    option_id    LowCardinality(String) CODEC(ZSTD(1)),
    voter_hash   UInt64                 CODEC(NONE) TTL toDateTime(received_at) + INTERVAL 400 DAY,
    event_hash   UInt64                 CODEC(NONE),
    vote_hash    UInt64                 CODEC(NONE),
    weight       UInt16 DEFAULT 1       CODEC(T64, ZSTD(1)),
    source       LowCardinality(String) CODEC(ZSTD(1)),
    ts           DateTime64(3, 'UTC')   CODEC(DoubleDelta, ZSTD(1)),
    received_at  DateTime64(3, 'UTC')   CODEC(DoubleDelta, ZSTD(1)),
    archived_at  DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    INDEX stream_position stream_ms TYPE minmax GRANULARITY 4
)
ENGINE = {replicated}MergeTree
PARTITION BY toYYYYMM(received_at)
ORDER BY (poll_id, option_id, stream_ms, stream_seq)
SETTINGS {deduplication}, {durability};

-- How the votes of each option went, minute by minute and by source, without reading the votes.
--
-- votes, weight and digest are sums, so they are right only if every vote arrives once: this table has a deduplication
-- window of its own, and the writer's tokens reach it through the view. uniqCombined64(20) counts voters exactly up to
-- 32,768 in a cell (measured), beyond that within about 0.2 %. Short granules, because a question about one poll reads
-- whole ones and a set of voters is kilobytes: with the usual 8192 rows it takes twice the processor time.
CREATE TABLE IF NOT EXISTS votes_per_minute_store {on_cluster}
(
    poll_id   LowCardinality(String) CODEC(ZSTD(1)),
    option_id LowCardinality(String) CODEC(ZSTD(1)),
    source    LowCardinality(String) CODEC(ZSTD(1)),
    minute    DateTime('UTC')        CODEC(DoubleDelta, ZSTD(1)),
    votes     SimpleAggregateFunction(sum, UInt64) CODEC(T64, ZSTD(1)),
    weight    SimpleAggregateFunction(sum, UInt64) CODEC(T64, ZSTD(1)),
    digest    SimpleAggregateFunction(sum, UInt64) CODEC(NONE),
    voters    AggregateFunction(uniqCombined64(20), UInt64) CODEC(ZSTD(1))
)
ENGINE = {replicated}AggregatingMergeTree
PARTITION BY toYYYYMM(minute)
ORDER BY (poll_id, option_id, source, minute)
SETTINGS {deduplication}, {durability}, index_granularity = 128;

CREATE MATERIALIZED VIEW IF NOT EXISTS votes_per_minute_feed {on_cluster} TO votes_per_minute_store AS
SELECT poll_id, option_id, source, toStartOfMinute(received_at) AS minute, count() AS votes, sum(weight) AS weight,
       sum(vote_hash) AS digest, uniqCombined64State(20)(voter_hash) AS voters
FROM votes
GROUP BY poll_id, option_id, source, minute;

CREATE VIEW IF NOT EXISTS votes_per_minute {on_cluster} AS
SELECT poll_id, option_id, source, minute, sum(votes) AS votes, uniqCombined64Merge(20)(voters) AS voters,
       sum(weight) AS weight, sum(digest) AS digest
FROM votes_per_minute_store
GROUP BY poll_id, option_id, source, minute;

-- Where a poll stands: one row per option. voters is exact up to 32,768 (uniqCombined64 keeps a set until then) and
-- within about 0.2 % beyond. Rejected votes are counted here; the poll's rules are applied in its hot state.
CREATE VIEW IF NOT EXISTS poll_totals {on_cluster} AS
SELECT poll_id, option_id, sum(votes) AS votes, uniqCombined64Merge(20)(voters) AS voters, sum(weight) AS weight,
       sum(digest) AS digest, min(minute) AS first_minute, max(minute) AS last_minute
FROM votes_per_minute_store
GROUP BY poll_id, option_id;
