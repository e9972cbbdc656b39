-- How did the turnout of a poll grow?
--
-- poll: id of the poll, in its latest life. One row per minute with votes: how many came in it, how many there were until its end, and
-- which share of the whole that was.
SELECT minute,
       sum(votes) AS votes_in_minute,
       sum(votes_in_minute) OVER (ORDER BY minute ROWS UNBOUNDED PRECEDING) AS votes_so_far,
       round(votes_so_far / sum(votes_in_minute) OVER (), 4) AS share
FROM votes_per_minute
WHERE poll_id = {poll:String}
  AND minute >= (SELECT toStartOfMinute(max(began_at)) FROM poll_lives WHERE poll_id = {poll:String})
GROUP BY minute
ORDER BY minute
