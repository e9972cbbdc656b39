-- Did somebody turn a poll around in its last minutes, and from which source?
--
-- poll: id of the poll, in its latest life · minutes: how many at its end count as late. One row per source and option: its share of that
-- source's votes before and in the late minutes, and how many times as many votes a minute came then.
WITH (SELECT toStartOfMinute(max(began_at)) FROM poll_lives WHERE poll_id = {poll:String}) AS began,
     (SELECT (min(minute), max(minute)) FROM votes_per_minute WHERE poll_id = {poll:String} AND minute >= began) AS span,
     span.2 - ({minutes:UInt32} - 1) * 60 AS late_from
SELECT source,
       option_id,
       sumIf(votes, minute < late_from) AS before,
       sumIf(votes, minute >= late_from) AS late,
       round(before / sum(before) OVER (PARTITION BY source), 4) AS share_before,
       round(late / sum(late) OVER (PARTITION BY source), 4) AS share_late,
       round((late / {minutes:UInt32}) / (before / greatest(1, dateDiff('minute', span.1, late_from))), 2) AS surge
FROM votes_per_minute
WHERE poll_id = {poll:String} AND minute >= began
GROUP BY source, option_id
ORDER BY surge DESC, source, option_id
