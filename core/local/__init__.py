"""The whole pipeline on one machine: `arenacast up`.

What is here
    up            composition root of `arenacast up`: signals, lock, summary
    services      which processes there are, in which order, and how each says that it is ready
    supervisor    starts them in order, restarts what dies, stops them in reverse order
    child         one process: bound to our life, its output taken, stopped within a bound
    output        that output: log files of bounded size, warnings to the terminal
    launch        how a process is bound to our life
    redis_server  the embedded Valkey: its binary and its configuration
    keyfiles      the data directory: its lock, and the keys that a first start generates
    recording     the format of recordings, and what to send when
    sender        requests to an ingest, repeated where that is right
    player        `arenacast play`: a recording into an ingest
    restore       `arenacast restore` and `drill`: a backup into an empty directory, with servers of its own
    rotation      `arenacast rotate-voter-secret`
    crowd, demo   `arenacast up --demo`: a recorded map and a crowd's votes, again and again

Invariants
    * Services are started by name, as processes, through the command line that anybody may use; nothing of them is
      imported here.
    * Secrets travel in the environment or in files of mode 0600, never in arguments.
    * Whatever was started is stopped, in reverse order, within a bound, and dies with us when we are killed.

Start reading at `services`, then `supervisor`.
"""
