"""Consumers: single owners of shards that turn the log into hot state, messages and archived rows.

What enters      events:{s}, in order, from the position last committed (`XREAD`; see below)
What leaves      consume state: state:{s}:<topic>, voters, timers, and one entry of updates:{s} per batch
                 consume archive: rows in ClickHouse, from events:{s} (facts) and updates:{s} (derived facts)

Invariants
    * One owner per (job, shard): a lease says who may try, the fencing token in every writing script says who may
      write. An owner that lost its shard finds out at its first write and has changed nothing.
    * A batch is applied by one script that writes states, output entry, timers and the new position together, or
      not at all. After any failure the owner forgets its caches and starts again from what Redis says is committed.
    * Reading is `XREAD` from the committed position, never `XREADGROUP`: a paused owner with a blocked XREADGROUP
      would swallow an entry that its successor then never sees. The consumer groups `state` and `archive` carry the
      same position (`XGROUP SETID … ENTRIESREAD`, in the committing script), so every Redis tool shows their lag.
      What was read and not committed is pending by definition; taking over means reading it again.
    * Scripts here run with `allow-oom`: a Redis over its memory budget refuses ingest, never those who work it off.
    * Nobody waits for the archive but the log, and that not for ever: what ClickHouse cannot take for long goes to disk
      (`archive_relief`). A shard stays with consumers that can read its segment files.
    * An entry that cannot be processed goes to dead:{s} with its reason and never blocks the shard.
    * Whatever changes state is a log entry, also what a timer does: replaying the log gives the same state.

Start reading at `state` (the process), `shard_worker` (the loop of one shard), `batch` (entries → outcome, pure) and
`reducers`; `lease` for ownership; `archive` for the cold path; `reconcile` (the command and the minute's look),
`reconciliation` (what is compared), `books` (reading every side as of one position), `log_window` and `locating`
(where a difference begins), `dead_votes` (what is in raw and in no tally), `repairing` and `replaying` (computing anew
from raw); `forget` (erasing a voter).
"""
