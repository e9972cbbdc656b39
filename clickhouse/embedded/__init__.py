"""ClickHouse's HTTP interface over an in-process engine: a ClickHouse for one machine, with nothing to install.

What enters      HTTP on loopback as a ClickHouse server takes it: SQL in the URL or the body, settings and `param_*` in
                 the URL, data in any content encoding or in ClickHouse's own blocks, external tables as multipart
What leaves      results in every format of the engine, streamed where the format allows it; errors with ClickHouse's
                 codes, texts and statuses, also in the middle of a stream

    app          the life of the process: start, routes, orderly stop
    endpoint     one request from its head to its answer: credentials, body, execution, errors in the middle
    request      one HTTP request -> what is asked: who, which settings, which statement, which data
    users        who may enter
    execution    one statement on one connection, on a thread of the pool
    engine       the only module that knows chdb: data directory, lock, version, connections, cancelling
    sessions     connections kept between requests (`session_id`)
    workers      the threads, how many run and how many wait
    statements, encodings, native, multipart, errors       pure: text and bytes in, text and bytes out

Invariants
    * A request has a connection of its own (0.1 ms), so settings, current database and temporary tables die with
      it; a session keeps one, and gets back what a request's URL had changed.
    * One statement per request; nothing reads or writes the server's files on behalf of a client (server.xml,
      users.xml, `statements`), but BACKUP and RESTORE with `Disk('backups', 'name')`, which is DATA_DIR/backups.
    * The engine has no users of its own. Here there are two: `default` may do what the role `service` of users.xml
      grants, `analyst` (where it has a password) only reads, what its role there grants, within its profile's bounds.
    * A body is whole or it is refused: unfinished uploads and compressed frames insert nothing.
    * Every buffer, queue, session and wait has a bound; what is over it is refused with a reason.
    * No stack trace leaves the server.

Clients: curl, clickhouse-connect, Node's @clickhouse/client. Of clickhouse-connect's own integration tests (1.8.0, the
release next to the tests' commit 842e4131) 775 pass and 15 fail: SHOW CREATE of system tables, row policies, roles and
query_log (8: the engine has no writable access storage and no log tables), a hint about port 9000 (2), block formats of
protocol versions below 54454 (4: a column's own time zone is not told, so keep everything in UTC), and the old analyzer
(1), which the engine no longer has.

One process, one data directory. For more than one machine, replication, or users and roles run a ClickHouse server.
Start reading at `app`, then `execution`.
"""

from core.settings import Settings


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises Fatal when it cannot start."""
    from clickhouse.embedded.app import run as run_app  # the engine takes half a second to load

    run_app(settings)
