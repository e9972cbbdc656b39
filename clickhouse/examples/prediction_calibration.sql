-- Can the predictions be believed?
--
-- No parameters. A reliability table: predictions of each model in tenths of probability, what was predicted there on
-- average, how often team 1 then won, and the Brier score (mean squared error: 0 is perfect, 0.25 is what always saying
-- one half gives). The row without a tenth is the whole model.
SELECT model,
       if(grouping(tenth) = 1, 'all', format('{} to {}', toString(tenth / 10), toString((tenth + 1) / 10))) AS predicted,
       count() AS predictions,
       round(avg(p_team1), 4) AS mean_predicted,
       round(avg(outcome), 4) AS observed,
       round(avg(pow(p_team1 - outcome, 2)), 4) AS brier
FROM (SELECT model, p_team1, outcome, least(9, toUInt8(floor(p_team1 * 10))) AS tenth FROM prediction_outcomes)
GROUP BY GROUPING SETS ((model, tenth), (model))
ORDER BY model, grouping(tenth), tenth
