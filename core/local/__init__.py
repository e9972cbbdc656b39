"""The whole pipeline on one machine: `arenacast up`.

What is here
    supervisor    children as processes: order of start and stop, restarts with back-off, logs
    services      which children there are and how each tells that it is ready
    redis_server  the embedded Valkey: its binary, its configuration, its lock
    launch        runs a foreign program so that it dies with us
    secrets       the keys a first start generates
    player        recorded requests into a running ingest (`arenacast play`)
    demo          a recorded map and a crowd's votes, again and again (`arenacast up --demo`)

Invariants
    * Services are started by name, as processes, through the command line that anybody may use; nothing of them is
      imported here.
    * Secrets travel in the environment or in files of mode 0600, never in arguments.
    * Whatever was started is stopped, in reverse order, within a bound, and dies with us when we are killed.

Start reading at `services`, then `supervisor`.
"""
