"""Load, proof and benchmarks: run against a real pipeline on this machine, never part of the test suite.

    python -m loadtests              a pipeline of its own, 30 s at 1000 events/s, then a burst to 5000/s; proof, report
    python -m loadtests --full       5 minutes, then 2 minutes
    python -m loadtests --help       other shapes, rates, subscribers, or a pipeline that runs already

What enters: nothing, or the URLs of a pipeline. What leaves: an exit code, a table, `results/<time>/report.html`.

    curves, shapes         how many events are due when; the same as locust's load shapes
    mix, plan              what is sent: polls, bodies of 1 to 10 votes, repeats, match events; and its schedule
    users, sending         locust users that send it, in a process of their own
    subscribers            SSE and WebSocket subscribers, in another one
    wire, reader           a subscriber's parsing and memory, without I/O
    ledger, trace, seen    the sender's books, the sender's times, what subscribers saw
    observe, verify        what every other place says; the comparisons that make up the proof
    latency, outcome       percentiles, objectives, and reasons to doubt them
    run, judge             one run, and what it showed
    machine, plots, report CPU, pictures, HTML
    pipeline, helpers      processes started and stopped
    bench_*                throughput of one service alone, against a limit measured in the same run

Invariants
    * The sender counts for itself: nothing that the pipeline answers enters the digest it is compared with.
    * Load is open-loop: an event's time is decided by the curve, and every latency counts from it.
    * The generator measures itself; a latency that may be its own doing is reported as such.
    * The proof does not depend on timing, the objectives do: only the proof decides the exit code, unless --strict.

Start reading at `run`, then `verify`.
"""
