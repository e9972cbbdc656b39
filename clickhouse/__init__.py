"""The cold path's storage: every fact once in ClickHouse, and the questions asked of it.

What enters      batches of log entries, from `consumers.archive`, as rows of raw tables
                 what of the log is not archived yet, from Redis, where a reader asks for the newest events
What leaves      pages and replays of stored events for the gateway; tables and views for analysts (CONTRACT §6)

    client       one lazily opened HTTP client per process; errors say what the caller does
    migrate      the schema, by numbered files in migrations/, up only
    tables       the raw tables' columns and their encoding (Arrow, one body, one block)
    rows         log entries -> rows: pure, deterministic; vote_columns is its fast twin for votes
    writer       the exactly-once protocol: plan, insert, commit, and how each is taken up after a crash
    spill        a log part of which is on disk, because ClickHouse was away for long; segments: those files
    repair       what the protocol's deduplication cannot cover: which facts are already there, aggregates anew
    aggregates   which views keep aggregates, and which part of one a batch can have touched
    queries      stored events in the order of the log, in chunks
    history      ClickHouse and the log in Redis as one log: pages without a seam
    replay       a match again, as fast as it can be read or at its pace; `corrections`: as of a moment
    audit        who wrote, corrected and read a match
    export       a poll or a match as a file with a manifest to check it by
    analysts     what analysts may see of the raw tables, and the key that hides voters from them
    examples     questions that analysts ask, in SQL, and how to ask them from Python
    comparison   every view's target against what its SELECT gives over raw; single polls and matches computed anew
    mending      aggregates computed anew while everything runs, by whoever owns the shard; rebuilding: by one owner
                 at a time, whatever comes late
    erasing      a voter's hash out of every table, and out of Redis
    backup, restore  a copy of everything, and the way back
    embedded     ClickHouse's HTTP interface over the in-process engine, for one machine

Invariants
    * Only raw tables are inserted into; every aggregate is a materialized view (suffix `_store` for its rows, `_feed`
      for the view that fills it, no suffix for what analysts read). The one exception is `repair`, which computes an
      aggregate anew from raw, and says so.
    * A `SELECT` on a public name gives each fact once. `votes`, `match_events` and `predictions` are tables, because
      the writer keeps duplicates out: an insert is repeated only with the token of the first try, and where the
      deduplication window cannot be trusted any more only the missing rows are added. `round_metrics` and
      `map_metrics` hold versions and are read through views with FINAL; `votes_per_minute` sums partial sums.
    * Every materialized view stands in `aggregates`, so `repair` can compute any part of it anew; `polls` and `matches`
      are so small that views look for the newest row instead.
    * Analysts read a database of their own, `an`, of views with their definer's rights. A raw column reaches it only by
      a decision in `analysts`; a test fails while there is none.
    * Nothing is archived of what nobody reports: there is no table of moderation (no action voids a vote), of outgoing
      webhooks (nothing is sent) or of refused hook calls (they never reach the log). What a source sent, and how late,
      is `source_health`.
    * Every table that receives rows has its deduplication window, targets of views included, and is flushed to disk
      before an insert is acknowledged: the log forgets what we commit. (Costs 4 ms an insert here: 79 instead of 120
      small inserts a second, nothing measurable from 10,000 rows on.)
    * What leaves the log is in ClickHouse, or in a segment file that was flushed to disk and then noted in Redis; it is
      archived from there by the same plans, and deleted only minutes after.
    * Every insert carries a token and the settings that make it count; `async_insert` is off.
    * Values from outside reach a query as parameters, never as text.

The client library is `clickhouse_connect`; this package is ours. Start reading at `writer`, then `rows`;
for what is read at `history`.
"""
