-- How long do facts take, from whom?
--
-- hours: how far back. One row per kind of fact, stage and source (sources are what stands for a region here): how many,
-- and quantiles over the whole span, merged from t-digests. Stages: source = from the source's own time to the receipt;
-- from the receipt on: log = until the log had it, archive = until ClickHouse had it, state = until it was applied.
SELECT kind,
       stage,
       source,
       facts,
       round(merged[1], 1) AS p50_ms,
       round(merged[3], 1) AS p95_ms,
       round(merged[4], 1) AS p99_ms,
       round(worst, 1) AS worst_ms
FROM
(
    SELECT kind,
           stage,
           source,
           sum(events) AS facts,
           max(worst_ms) AS worst,
           quantilesTDigestMerge(0.5, 0.9, 0.95, 0.99)(quantiles) AS merged
    FROM latency_states
    WHERE minute >= now() - toIntervalHour({hours:UInt32})
    GROUP BY kind, stage, source
)
ORDER BY kind, stage, p99_ms DESC, source
