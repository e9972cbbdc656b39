-- Which rounds decided a map?
--
-- match, map: ids. One row per round as it stands after all corrections: who won it, the score, the chance of team 1
-- before and after it, and the swing between them, in percentage points.
SELECT round_no,
       winner,
       reason,
       score_team1,
       score_team2,
       round(before, 4) AS p_before,
       round(after, 4) AS p_after,
       round(100 * (after - before), 2) AS swing
FROM
(
    SELECT match_id, map_id, round_no + 1 AS round_no, argMax(p_team1, (stream_ms, stream_seq)) AS before
    FROM predictions
    WHERE match_id = {match:String} AND map_id = {map:String}
    GROUP BY match_id, map_id, round_no
) AS earlier
INNER JOIN
(
    SELECT match_id, map_id, round_no, argMax(p_team1, (stream_ms, stream_seq)) AS after
    FROM predictions
    WHERE match_id = {match:String} AND map_id = {map:String}
    GROUP BY match_id, map_id, round_no
) AS later USING (match_id, map_id, round_no)
INNER JOIN round_metrics USING (match_id, map_id, round_no)
ORDER BY round_no
