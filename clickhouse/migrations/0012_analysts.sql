-- What analysts may ask: views in a database of their own, read with the rights of whoever migrates, so that analysts
-- need none on what lies behind. `clickhouse.analysts` decides about every column of every raw table.
--
-- Not to be seen: voter hashes, what could be tried against guessed ids (event_hash, vote_hash, digests), payloads
-- (names, chat, ids of players). In place of the voter's hash stands another, keyed by poll and by a key that only these
-- views read: votes of one voter within a poll can be joined and counted, and voters of two polls cannot be compared.
-- `arenacast migrate --new-analyst-key` draws a new key, after which nothing can be compared with what was read before.
CREATE DATABASE IF NOT EXISTS {analysts} {on_cluster};

CREATE TABLE IF NOT EXISTS analyst_keys {on_cluster}
(
    created_at DateTime64(3, 'UTC'),
    k0         UInt64,
    k1         UInt64
)
ENGINE = {replicated}MergeTree
ORDER BY created_at
SETTINGS {deduplication}, {durability};

-- The key comes by a join and not as a constant: EXPLAIN would show analysts a constant (tested). Without a key there is
-- no row.
CREATE VIEW IF NOT EXISTS {analysts}.votes {on_cluster} DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT poll_id, option_id, source, weight, ts, received_at,
       if(voter_hash = 0, 0, sipHash64Keyed((secret.k0, secret.k1), poll_id, voter_hash)) AS voter
FROM votes
CROSS JOIN (SELECT k0, k1 FROM analyst_keys ORDER BY created_at DESC LIMIT 1) AS secret;

CREATE VIEW IF NOT EXISTS {analysts}.votes_per_minute {on_cluster} DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT poll_id, option_id, source, minute, votes, voters, weight FROM votes_per_minute;

CREATE VIEW IF NOT EXISTS {analysts}.votes_per_second {on_cluster} DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT poll_id, option_id, source, second, votes, weight FROM votes_per_second;

CREATE VIEW IF NOT EXISTS {analysts}.poll_totals {on_cluster} DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT poll_id, option_id, votes, voters, weight, first_minute, last_minute FROM poll_totals;

CREATE VIEW IF NOT EXISTS {analysts}.polls {on_cluster} DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT poll_id, status, title, voting, match_id, options, created_at, changed_at, opened_at, closed_at FROM polls;

CREATE VIEW IF NOT EXISTS {analysts}.match_events {on_cluster} DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT match_id, map_id, round_no, type, revision, source, ts, received_at, stream_ms, stream_seq FROM match_events;

CREATE VIEW IF NOT EXISTS {analysts}.event_counts {on_cluster} DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT match_id, map_id, type, source, events, first_at, last_at FROM event_counts;

CREATE VIEW IF NOT EXISTS {analysts}.matches {on_cluster} DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT match_id, status, winner, num_maps, team1, team2, maps_team1, maps_team2, started_at, changed_at FROM matches;

CREATE VIEW IF NOT EXISTS {analysts}.match_metrics {on_cluster} DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT match_id, status, winner, num_maps, team1, team2, maps_team1, maps_team2, maps_played, rounds, rounds_team1,
       rounds_team2, events, first_at, last_at
FROM match_metrics;

CREATE VIEW IF NOT EXISTS {analysts}.map_metrics {on_cluster} DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT match_id, map_id, map_name, status, winner, rounds, team1, team2, score_team1, score_team2, updated_at
FROM map_metrics;

CREATE VIEW IF NOT EXISTS {analysts}.round_metrics {on_cluster} DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT match_id, map_id, round_no, winner, reason, score_team1, score_team2, ended_at FROM round_metrics;

CREATE VIEW IF NOT EXISTS {analysts}.predictions {on_cluster} DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT match_id, map_id, round_no, p_team1, model, ts, stream_ms, stream_seq FROM predictions;

CREATE VIEW IF NOT EXISTS {analysts}.prediction_outcomes {on_cluster} DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT model, match_id, map_id, round_no, p_team1, outcome, ended_at FROM prediction_outcomes;

CREATE VIEW IF NOT EXISTS {analysts}.elo_ratings {on_cluster} DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT model, ordinal, match_id, map_id, team1, team2, before_team1, before_team2, expected_team1, result_team1,
       change_team1, after_team1, after_team2, ended_at
FROM elo_ratings;

CREATE VIEW IF NOT EXISTS {analysts}.team_ratings {on_cluster} DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT model, team, rating, maps, last_at FROM team_ratings;

CREATE VIEW IF NOT EXISTS {analysts}.latency {on_cluster} DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT kind, stage, source, minute, events, p50_ms, p90_ms, p95_ms, p99_ms, worst_ms FROM latency;

-- Digests that can be merged over any span, where `latency` has quantiles of each minute.
CREATE VIEW IF NOT EXISTS {analysts}.latency_states {on_cluster} DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT kind, stage, source, minute, shard, events, worst_ms, quantiles FROM latency_store;

CREATE VIEW IF NOT EXISTS {analysts}.source_health {on_cluster} DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT kind, source, minute, events, last_at, delay_p50_ms, delay_p99_ms FROM source_health;
