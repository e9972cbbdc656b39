-- Who votes like a machine?
--
-- poll: id of the poll, in its latest life · votes: from how many votes of one voter on to look. One row per voter whose votes come at
-- nearly equal distances (spread = standard deviation of the gaps by their mean; people are above 0.5) or by the dozen
-- a minute. A reason to look closer, not a proof: `voter` is a pseudonym of this poll.
SELECT voter,
       votes,
       options,
       source,
       round(arrayAvg(gaps)) AS gap_ms,
       round(arrayReduce('stddevPop', gaps) / greatest(1, arrayAvg(gaps)), 3) AS spread,
       round(60000 * length(gaps) / greatest(1, arraySum(gaps)), 1) AS votes_a_minute
FROM
(
    SELECT voter,
           count() AS votes,
           uniqExact(option_id) AS options,
           any(source) AS source,
           arraySort(groupArray(5000)(toUnixTimestamp64Milli(received_at))) AS times,
           arrayPopFront(arrayDifference(times)) AS gaps
    FROM votes
    WHERE poll_id = {poll:String} AND voter != 0
      AND received_at >= (SELECT toStartOfMinute(max(began_at)) FROM poll_lives WHERE poll_id = {poll:String})
    GROUP BY voter
    HAVING votes >= greatest(2, {votes:UInt32})
)
WHERE spread < 0.2 OR votes_a_minute > 30
ORDER BY votes DESC, voter
LIMIT 100
