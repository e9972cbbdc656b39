"""`python -m clickhouse.embedded --path DIR --port N`: a server on any directory, for trying out and for tests.

The passwords come from ARENACAST_CLICKHOUSE_PASSWORD and, for the user `analyst`, ARENACAST_ANALYST_PASSWORD, never
from the command line, which everybody can read.
`arenacast clickhouse` serves the installation's own directory with the same code.
"""

import argparse
import sys
from pathlib import Path

import uvloop

from clickhouse.embedded.app import passwords, serve
from clickhouse.embedded.limits import Limits
from core import logs
from core.errors import Fatal
from core.settings import load


def main() -> None:
    """Serve until SIGTERM or SIGINT; 1 and one line on standard error when that cannot be."""
    parser = argparse.ArgumentParser(prog="python -m clickhouse.embedded", description=__doc__.partition("\n")[0])
    parser.add_argument("--path", type=Path, required=True, help="data directory, created when missing")
    parser.add_argument("--backups", type=Path, help="where BACKUP writes (default: backups, beside the data)")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--body-max-mb", type=int, default=Limits().body_max_bytes >> 20)
    parser.add_argument("--drain-s", type=float, default=Limits().drain_s, help="how long statements may still run")
    arguments = parser.parse_args()
    try:
        settings = load()
        logs.configure("clickhouse", settings)
        limits = Limits(body_max_bytes=arguments.body_max_mb << 20, drain_s=arguments.drain_s)
        backups = arguments.backups or arguments.path.with_name("backups")
        uvloop.run(serve(arguments.path, backups, arguments.port, passwords(settings), arguments.host, limits))
    except Fatal as error:
        sys.exit(f"arenacast: {error}")


if __name__ == "__main__":
    main()
