"""The write side: HTTP in, one log per shard out.

What enters
    polls (PUT, close), votes and match events (one, an array, NDJSON) below /api/, with the bearer key, and bodies of
    platforms that have a form of their own below /hooks/ (`sources`: MatchZy and Get5).

What leaves
    entries of `events:{s}` (layout: `core.events`), the answer to the caller, counters. Nothing else: ingest checks
    and appends, and derives nothing.

The way of a vote
    door       key, correlation id, size of the body
    decode     bytes to items, pure; all that is wrong with a body is said at once
    polls      do the poll and the option exist
    intake     voter hashed, item encoded, once for the log, ClickHouse and every reader
    batcher    concurrent requests share one call per shard, one in flight, bounded queues
    append     one Lua call: forget duplicates, append the rest, number them (lua/append.lua)
    ack        the call counts only when it is as durable as ARENACAST_ACK says; `watch` looks after the server

Invariants
    * A body is checked whole before any of it is stored, and its items are stored in its order per topic.
    * An event id is in the log at most once within its topic (votes: for a window of time), whatever is repeated by
      whom. Ingest itself repeats nothing: a failed append is 503 for everybody who waited for it.
    * A 202 is answered only after the log has all of it, as durably as asked for.
    * A platform's identity of a voter goes no further than `intake`; it is not logged and not stored.
    * A poll's definition, and the hash that write-side checks rely on, change only together with the log.

Start reading at `api`, then `lua/append.lua`; `app` puts it together.
"""
