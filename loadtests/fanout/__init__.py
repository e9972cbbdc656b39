"""What one delivery costs: our gateway beside the least a server could do and what people use today.

    python -m loadtests.fanout                the whole grid, below 10 minutes
    python -m loadtests.fanout --quick        the headline and memory, below 2 minutes
    python -m loadtests.fanout --only arenacast,floor --transports sse

Enters    messages of 200 bytes of data, published one by one at an even rate
Leaves    a table of ratios within this run, and the same as JSON in `loadtests/results/fanout/`

    publish ──► server under test (a process of its own, alone on one core) ──► client (C, on the other core)

    peers, app      the servers: ours by its real path (XADD into the output log of a real Valkey, `arenacast gateway`),
                    `floor.c` (one send() per subscriber and message), nchan, and Starlette + sse-starlette + Redis
    publish         evenly spaced messages, with the moment of publishing inside
    client, client.c  subscribers that count, and take each message's latency
    usage, versions CPU, memory and the names of everything
    step, search    one measurement; the highest rate that keeps p99 below a bound
    plan, histogram, summary, table    pure: what is measured, what came out, how it reads

Invariants
    * Every ratio compares neighbours in time: the servers take turns within each step of the grid.
    * Latency runs from just before the message is handed to the publishing socket to the return of the client's recv().
    * CPU is what the kernel charged to all threads of the server (TCP's work in send() and the loopback included), over
      the messages the client received meanwhile.
    * Where the client's core is the bottleneck, the result says so.

Start reading at `__main__`, then `step`, then `peers`.
"""
