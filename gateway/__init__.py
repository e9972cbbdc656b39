"""The read side: live polls and matches to any number of readers, over SSE, WebSocket, long-poll and REST.

Enters    `updates:{s}` (the output log, one entry per applied batch) and hot state, from Redis; events from further
          back, from ClickHouse; cursors from readers
Leaves    the same message objects on every transport, each with a cursor any gateway understands

    tail ──► hub ──► channels ──► audience ──► sockets   live: a task per shard, one `bytes` per channel, and one
                                       └─► sinks        system call for all sockets (`uring`), or one for each
              │ ring (last messages)
    resume ───┤ backlog (updates: in chunks)       joining and catching up, by the same positions
    feeder ───┤ past (events in ClickHouse)
              └ hot_state (snapshots)

    api.history ── stored events, replays, audit (`clickhouse.history`); `auditor` notes who read them

Invariants
    * The gateway never writes events or state. The one thing it appends to Redis is who read stored events: in batches,
      bounded, and never at the reader's expense (`auditor`).
    * It never waits for a subscriber: no queue, task or timer per subscriber. A replay is the exception, a task with a
      chunk of memory, and therefore few: `replays_max`, each cut off when its reader takes nothing (`replaying`).
    * A subscriber is a sink and a position. Events reach it once each and in order; what it has is what its cursor
      says. State messages may be left out only for a reader who lags, and only when a newer one follows.
    * A reader who comes from further back than Redis reaches gets every event from the archive, in order, and is owed
      the states until a snapshot settles that; the debt is part of its cursor (`core.position.K_OWED`).
    * What many want of the past is read once (`shared_reads`), and a crowd is let in and served a few at a time
      (`acceptor`, `pace`), beside those who are live already (`service.FLUSH_SHARE`).
    * A verdict is never better than the truth. What cannot be proven is a `reset`.
    * A socket is written to past its sink only while the sink holds nothing, so that the order is kept (`connection`).
    * Everything pure is in `subscription`, `frames`, `ring`, `channel`, `hub`, `wheel`: synchronous, with time as an
      argument. Everything that knows uvicorn's inside is in `takeover`.
    * A frame is compressed once for everybody (`compression`, off by default), so nothing in it refers to earlier ones.
    * Every buffer has a bound: ring (bytes, oldest first out), a reader's unsent bytes (high-water mark, then it lags,
      then it is closed; `budget` bounds their sum), joins waiting for Redis (then they are asked to come back), chunks
      read from the log and the archive (`shared_reads`).

Start reading at `hub`, then `service`, then `resume`.
"""
