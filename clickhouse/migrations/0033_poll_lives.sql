-- When did a poll live? Its id may be used again once its final state has expired; then it is another poll.
--
-- One row per life. It begins with the first definition, or the first one after a closing, and lasts until the next one
-- begins (until_ms, until_seq: the largest numbers while there is none), so late votes belong to the life that has
-- ended. Sorted states instead of a window function: a condition on the poll then reaches the table's key.
CREATE VIEW IF NOT EXISTS poll_lives {on_cluster} AS
SELECT poll_id, number AS life, began.1 AS began_ms, began.2 AS began_seq, following.1 AS until_ms,
       following.2 AS until_seq, fromUnixTimestamp64Milli(toInt64(began_ms), 'UTC') AS began_at,
       if(until_ms = 18446744073709551615, NULL, fromUnixTimestamp64Milli(toInt64(until_ms), 'UTC')) AS until_at
FROM
(
    SELECT poll_id, arraySort(groupArray((stream_ms, stream_seq, stream_k, toString(status)))) AS states,
           arrayFilter((state, before) -> state.4 != 'closed' AND before.4 IN ('', 'closed'),
                       states, arrayPopBack(arrayPushFront(states, (0, 0, 0, '')))) AS lives
    FROM poll_states
    GROUP BY poll_id
)
ARRAY JOIN
    lives AS began,
    arrayEnumerate(lives) AS number,
    arrayPushBack(arrayPopFront(lives), (18446744073709551615, 18446744073709551615, 0, '')) AS following;

-- Each poll as it stands, or ended, in its latest life. A poll has a handful of rows, so the newest is looked for.
CREATE OR REPLACE VIEW polls {on_cluster} AS
SELECT poll_id, argMax(status, position) AS status, argMax(title, position) AS title,
       argMax(voting, position) AS voting, argMax(match_id, position) AS match_id,
       argMax(options, position) AS options, min(ts) AS created_at, max(ts) AS changed_at,
       minOrNullIf(ts, states.status = 'open') AS opened_at, maxOrNullIf(ts, states.status = 'closed') AS closed_at
FROM (SELECT *, (stream_ms, stream_seq, stream_epoch, stream_k) AS position FROM poll_states) AS states
LEFT JOIN
(
    SELECT poll_id, max((began_ms, began_seq)) AS began FROM poll_lives WHERE life > 1 GROUP BY poll_id
) AS latest USING (poll_id)
WHERE (states.stream_ms, states.stream_seq) >= (ifNull(latest.began.1, 0), ifNull(latest.began.2, 0))
GROUP BY poll_id;

-- Where a poll stands: one row per option, of its latest life, from the minute on in which that began. voters is exact
-- up to 32,768 (uniqCombined64 keeps a set until then) and within about 0.2 % beyond. Rejected votes are counted here;
-- the poll's rules are applied in its hot state.
CREATE OR REPLACE VIEW poll_totals {on_cluster} AS
SELECT poll_id, option_id, sum(votes) AS votes, uniqCombined64Merge(20)(voters) AS voters, sum(weight) AS weight,
       sum(digest) AS digest, min(minute) AS first_minute, max(minute) AS last_minute
FROM votes_per_minute_store AS cells
LEFT JOIN (SELECT poll_id, max(began_ms) AS began FROM poll_lives WHERE life > 1 GROUP BY poll_id) AS latest
    USING (poll_id)
WHERE cells.minute >= toStartOfMinute(fromUnixTimestamp64Milli(toInt64(ifNull(latest.began, 0)), 'UTC'))
GROUP BY poll_id, option_id;

CREATE VIEW IF NOT EXISTS {analysts}.poll_lives {on_cluster} DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT poll_id, life, began_at, until_at FROM poll_lives;
