"""What one delivery costs: our gateway beside the least a server could do and what people use today.

    python -m loadtests.fanout                the whole grid, some 20 minutes
    python -m loadtests.fanout --quick        the headline and memory, below 2 minutes
    python -m loadtests.fanout --parts scenarios --scenarios slow,idle
    python -m loadtests.fanout --only arenacast,floor --transports sse --parts headline
    python -m loadtests.fanout.storm          a crowd that comes back at once, below a minute

On a machine that others use too, `chrt -r 5` before it (as root) keeps them off the cores while something is measured
(not the storm: its two clients would take turns of 100 ms). It does not keep them off the disk of Redis' log.

Enters    messages of 200 bytes of data, published one by one at an even rate
Leaves    a table of ratios within this run, and the same as JSON in `loadtests/results/fanout/`

    publish ──► server under test (a process of its own, alone on one core) ──► client (C, on the other core)

    peers, app      the servers: ours by its real path (XADD into the output log of a real Valkey, `arenacast gateway`),
                    with io_uring and without, `floor.c` (one send() per subscriber and message), nchan, and
                    Starlette + sse-starlette + Redis
    publish         evenly spaced messages, with the moment of publishing inside
    client, client.c  subscribers that count, and take each message's latency
    usage, versions CPU, memory and the names of everything
    step, search    one measurement; the highest rate that keeps p99 below a bound
    scenarios       what idle, slow, many-topic and unread subscribers cost the others
    plan, histogram, summary, table    pure: what is measured, what came out, how it reads

Invariants
    * Every ratio compares neighbours in time: the servers take turns within each step of the grid.
    * Latency runs from just before the message is handed to the publishing socket to the return of the client's recv().
    * CPU is what the kernel charged to all threads of the server (TCP's work in send() and the loopback included), over
      the messages the client received meanwhile.
    * Where the client's core is the bottleneck, the result says so; and how much others used of the machine, and how
      long Redis waited for the disk of its log: that is in our latencies, and no server's CPU.

What the comparison leaves out, in whose favour: the floor gets frames made for it and keeps nothing (its favour), ours
reads them from Redis, numbers them, and keeps them for resuming; our messages are 294 bytes on the wire, nchan's 226
(its favour), the floor's as long as ours; Redis' own CPU is no part of ours (our favour, and shown in the JSON as
`redis_busy`), as a publisher's HTTP request is part of nchan's; where messages come faster than the flush interval ours
are joined, and nobody else's are (our favour, shown as `per read`).

Start reading at `__main__`, then `step`, then `peers`.
"""
