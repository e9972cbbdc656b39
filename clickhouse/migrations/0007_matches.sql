-- The life of a match around its maps: who plays, how many maps each team won, after each change.
--
-- Sorted by match and log, as `matches` reads it.
CREATE TABLE IF NOT EXISTS match_states {on_cluster}
(
    shard        UInt8                  CODEC(ZSTD(1)),
    stream_epoch UInt64                 CODEC(ZSTD(1)),
    stream_ms    UInt64                 CODEC(DoubleDelta, ZSTD(1)),
    stream_seq   UInt64                 CODEC(T64, ZSTD(1)),
    stream_k     UInt16                 CODEC(T64, ZSTD(1)),
    match_id     LowCardinality(String) CODEC(ZSTD(1)),
    status       LowCardinality(String) CODEC(ZSTD(1)),
    winner       LowCardinality(String) CODEC(ZSTD(1)),
    num_maps     UInt8                  CODEC(T64, ZSTD(1)),
    team1        LowCardinality(String) CODEC(ZSTD(1)),
    team2        LowCardinality(String) CODEC(ZSTD(1)),
    maps_team1   UInt16                 CODEC(T64, ZSTD(1)),
    maps_team2   UInt16                 CODEC(T64, ZSTD(1)),
    ts           DateTime64(3, 'UTC')   CODEC(DoubleDelta, ZSTD(1)),
    INDEX stream_position stream_ms TYPE minmax GRANULARITY 4
)
ENGINE = {replicated}MergeTree
PARTITION BY toYYYYMM(ts)
ORDER BY (match_id, stream_ms, stream_seq, stream_k)
SETTINGS {deduplication}, {durability};

-- Each match as it stands, or ended. A match has a dozen rows, so the newest is looked for instead of kept.
CREATE VIEW IF NOT EXISTS matches {on_cluster} AS
SELECT match_id, argMax(status, position) AS status, argMax(winner, position) AS winner,
       argMax(num_maps, position) AS num_maps, argMax(team1, position) AS team1, argMax(team2, position) AS team2,
       argMax(maps_team1, position) AS maps_team1, argMax(maps_team2, position) AS maps_team2,
       min(ts) AS started_at, max(ts) AS changed_at
FROM (SELECT *, (stream_ms, stream_seq, stream_epoch, stream_k) AS position FROM match_states)
GROUP BY match_id;

-- How much happened in a match, by map, kind of event and source, without reading the events.
CREATE TABLE IF NOT EXISTS event_counts_store {on_cluster}
(
    match_id LowCardinality(String) CODEC(ZSTD(1)),
    map_id   LowCardinality(String) CODEC(ZSTD(1)),
    type     LowCardinality(String) CODEC(ZSTD(1)),
    source   LowCardinality(String) CODEC(ZSTD(1)),
    events   SimpleAggregateFunction(sum, UInt64) CODEC(T64, ZSTD(1)),
    first_at SimpleAggregateFunction(min, DateTime64(3, 'UTC')) CODEC(DoubleDelta, ZSTD(1)),
    last_at  SimpleAggregateFunction(max, DateTime64(3, 'UTC')) CODEC(DoubleDelta, ZSTD(1))
)
ENGINE = {replicated}AggregatingMergeTree
ORDER BY (match_id, map_id, type, source)
SETTINGS {deduplication}, {durability};

CREATE MATERIALIZED VIEW IF NOT EXISTS event_counts_feed {on_cluster} TO event_counts_store AS
SELECT match_id, map_id, type, source, count() AS events, min(received_at) AS first_at, max(received_at) AS last_at
FROM match_events
GROUP BY match_id, map_id, type, source;

CREATE VIEW IF NOT EXISTS event_counts {on_cluster} AS
SELECT match_id, map_id, type, source, sum(events) AS events, min(first_at) AS first_at, max(last_at) AS last_at
FROM event_counts_store
GROUP BY match_id, map_id, type, source;

-- One row per match: as it stands, what was played of it, and how much was sent about it.
CREATE VIEW IF NOT EXISTS match_metrics {on_cluster} AS
SELECT matches.match_id AS match_id, matches.status AS status, matches.winner AS winner, matches.num_maps AS num_maps,
       matches.team1 AS team1, matches.team2 AS team2, matches.maps_team1 AS maps_team1,
       matches.maps_team2 AS maps_team2, maps.played AS maps_played, maps.rounds AS rounds,
       maps.rounds_team1 AS rounds_team1, maps.rounds_team2 AS rounds_team2, counts.events AS events,
       counts.first_at AS first_at, counts.last_at AS last_at
FROM matches
LEFT JOIN
(
    SELECT match_id, countIf(status = 'finished') AS played, sum(rounds) AS rounds,
           sum(score_team1) AS rounds_team1, sum(score_team2) AS rounds_team2
    FROM map_metrics
    GROUP BY match_id
) AS maps ON maps.match_id = matches.match_id
LEFT JOIN
(
    SELECT match_id, sum(events) AS events, min(first_at) AS first_at, max(last_at) AS last_at
    FROM event_counts_store
    GROUP BY match_id
) AS counts ON counts.match_id = matches.match_id;
