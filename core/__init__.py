"""The vocabulary every process shares, and nothing that belongs to one of them.

What is here
    names        ids, topics, reserved words and how a topic finds its shard
    position     the place of a message in the log: (epoch, ms, seq, k)
    cursor       the opaque text a reader keeps: one position per shard plus a fingerprint of its topics
    keys         the name of every Redis key, built in this one place
    events       what may enter the log (votes, match events, poll changes) as msgspec structs
    updates      what leaves a state consumer: messages for readers, facts for the archive
    redis_client connections, script loading and the detection of a new server incarnation
    epochs       identity of a shard's lifetime, bumped whenever the server may have rolled back
    manifest, rdb_copy, erasures  what a backup is on disk, a copy of Redis, who was erased since
    settings     every ARENACAST_* variable: name, type, unit, default, reason
    errors       a short tree whose branches say what the caller does
    metrics, logs, problem, http   one way to count, to log, to refuse and to serve

Invariants
    * `core` imports none of ingest, consumers, clickhouse or gateway (only `core.cli` and `core.local` start
      them, by name, lazily). They meet in streams, keys, tables and here.
    * Importing a module opens nothing and reads no setting.

Start reading at `position`, then `keys`, then `events`.
"""
