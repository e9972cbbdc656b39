"""The name of every Redis key.

All keys of a shard share the hash tag `{sNN}`, so that on Redis Cluster its scripts stay atomic. Types and owners:

    arenacast:log             hash    id, shards, created_ms: identity of this log, written once
    events:{s}                stream  the input log. Fields: see `core.events`
    updates:{s}               stream  the output log: one entry per applied batch, field `u`: see `core.updates`
    audit:{s}                 stream  who read what: records, field `d`: see `core.audit`
    dead:{s}                  stream  dead letters: origin id, reason, the entry's fields
    <stream>:blanked          stream  copy of one without the hashes of erased voters, until it takes its place;
                                      <stream>:blanking = who makes it
    epochs:{s}                hash    "run" -> server incarnation, "now" -> newest epoch, "<epoch>" -> its first id
    counters:{s}              hash    votes, events, duplicates: appended so far (written by ingest's append script)
    def:{s}:<topic>           hash    poll definition as last accepted, with rev, voted, closed (write-side truth)
    seen:{s}:<topic>[:<w>]    set     event ids seen (polls: one set per time window w)
    hook:{s}:<topic>:<id>     string  suppression of equal hook bodies for 30 s
    state:{s}:<topic>         hash    pos, data (public snapshot, JSON), priv (reducer state, msgpack)
    voters:{s}:<topic>        hash    voter (8 bytes) -> option id: the vote that counts
    voters:{s}:<topic>:new    hash    the same, of a state that a repair computes anew, for a minute
    maps:{s}:<match_id>       set     map ids of a match, `series` among them
    topics:{s}                zset    topic -> ms of its last change, for listings
    timers:{s}                zset    "<action> <topic>" -> due ms
    shard:{s}                 hash    state consumer: last_id, applied, votes, dead, dead_votes, updates_id,
                                      vote_ordinal, event_ordinal, gaps
    archive:{s}:<log>         hash    archive consumer: committed, entries, batches, inflight; spilled = last entry in
                                      segment files, while there are any; rebuilds = attempts at computing
                                      aggregates anew, rebuild = the one under way (log = events | updates | audit)
    segments:{s}:<log>        list    segment files that hold what follows `committed`, in order: `clickhouse.segments`
    mend:{s}:<log>            set     "<aggregate> <poll or match>": to be computed anew by the archive of the shard
    mend_tries:{s}:<log>      hash    the same -> attempts that were begun
    mend_parked:{s}:<log>     hash    the same -> why it was given up, until somebody asks for it again
    lease:{s}:<job>           string  owner of (job, shard), with expiry
    fence:{s}:<job>           string  fencing token, grows with every change of owner
    consumers:<job>           zset    running consumers -> ms of their last sign of life (not per shard)
"""

LOG = "arenacast:log"
STATE_GROUP = "state"
ARCHIVE_GROUP = "archive"


def tag(shard: int) -> str:
    """Hash tag of a shard."""
    return f"{{s{shard:02d}}}"


def events(shard: int) -> str:
    return f"events:{tag(shard)}"


def updates(shard: int) -> str:
    return f"updates:{tag(shard)}"


def audit(shard: int) -> str:
    return f"audit:{tag(shard)}"


def dead(shard: int) -> str:
    return f"dead:{tag(shard)}"


def blanked(stream: str) -> str:
    return f"{stream}:blanked"


def blanking(stream: str) -> str:
    return f"{stream}:blanking"


def epochs(shard: int) -> str:
    return f"epochs:{tag(shard)}"


def counters(shard: int) -> str:
    return f"counters:{tag(shard)}"


def definition(shard: int, topic: str) -> str:
    return f"def:{tag(shard)}:{topic}"


def seen(shard: int, topic: str) -> str:
    """Dedup set of a match topic; prefix of the windows' sets of a poll (append.lua adds `:<window>`)."""
    return f"seen:{tag(shard)}:{topic}"


def hook(shard: int, topic: str) -> str:
    """Prefix of the suppression keys of hook bodies (append.lua adds `:<event id>`)."""
    return f"hook:{tag(shard)}:{topic}"


def state(shard: int, topic: str) -> str:
    return f"state:{tag(shard)}:{topic}"


def voters(shard: int, topic: str) -> str:
    return f"voters:{tag(shard)}:{topic}"


def new_voters(shard: int, topic: str) -> str:
    return f"{voters(shard, topic)}:new"


def maps(shard: int, match_id: str) -> str:
    return f"maps:{tag(shard)}:{match_id}"


def topics(shard: int) -> str:
    return f"topics:{tag(shard)}"


def timers(shard: int) -> str:
    return f"timers:{tag(shard)}"


def progress(shard: int) -> str:
    return f"shard:{tag(shard)}"


def archive(shard: int, log: str) -> str:
    """`log` is `events`, `updates` or `audit`: each has its own position, plan and token namespace."""
    return f"archive:{tag(shard)}:{log}"


def segments(shard: int, log: str) -> str:
    return f"segments:{tag(shard)}:{log}"


def mend(shard: int, log: str) -> str:
    return f"mend:{tag(shard)}:{log}"


def mend_tries(shard: int, log: str) -> str:
    return f"mend_tries:{tag(shard)}:{log}"


def mend_parked(shard: int, log: str) -> str:
    return f"mend_parked:{tag(shard)}:{log}"


def lease(shard: int, job: str) -> str:
    return f"lease:{tag(shard)}:{job}"


def fence(shard: int, job: str) -> str:
    return f"fence:{tag(shard)}:{job}"


def consumers(job: str) -> str:
    return f"consumers:{job}"
