-- How good were the predictions? Each with what became of it: calibration and Brier scores are averages over this.
--
-- One row per (model, match, map, round): the last that was said at that score, of maps that have a result. What was
-- said at the final score is no prediction. outcome: 1 = team 1 won, 0 = team 2 won, 0.5 = a draw.
CREATE VIEW IF NOT EXISTS prediction_outcomes {on_cluster} AS
SELECT said.model AS model, said.match_id AS match_id, said.map_id AS map_id, said.round_no AS round_no,
       said.p_team1 AS p_team1, multiIf(maps.winner = 'team1', 1., maps.winner = 'team2', 0., 0.5) AS outcome,
       maps.updated_at AS ended_at
FROM
(
    SELECT model, match_id, map_id, round_no,
           argMax(p_team1, (stream_ms, stream_seq, stream_epoch, stream_k)) AS p_team1
    FROM predictions
    GROUP BY model, match_id, map_id, round_no
) AS said
INNER JOIN map_metrics AS maps ON maps.match_id = said.match_id AND maps.map_id = said.map_id
WHERE maps.status = 'finished' AND maps.winner != '' AND said.round_no < maps.rounds;
