"""The command line: every process of Arenacast is one of its commands.

What a command needs is imported when it runs, so that `--help` is quick and one service's missing dependency is not
another's problem. Errors raised on purpose become one line and exit code 1 (2 where 1 means something else); others are
bugs and keep their trace.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import click

from core.errors import ArenacastError
from core.settings import load


def main() -> None:
    """Entry point of the console script."""
    try:
        cli(prog_name="arenacast")
    except ArenacastError as error:
        click.echo(f"arenacast: {error}", err=True)
        sys.exit(1)


@contextmanager
def _could_not_tell() -> Iterator[None]:
    """An error is exit code 2 where 1 would tell cron that something differs."""
    try:
        yield
    except ArenacastError as error:
        click.echo(f"arenacast: {error}", err=True)
        sys.exit(2)


def _version() -> str:
    try:
        return version("arenacast")
    except PackageNotFoundError:  # run from a directory without having been installed
        return "0+unknown"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(_version(), prog_name="arenacast")
def cli() -> None:
    """Votes and match events in, live to every browser, counted exactly once.

    Settings come from the environment, prefix ARENACAST_.
    """


@cli.command()
@click.option("--demo/--no-demo", "is_demo", default=False, help="Play a recorded match with a crowd's votes.")
def up(is_demo: bool) -> None:
    """Run everything on this machine, supervised."""
    settings = load()
    from core.local.up import run

    run(settings, is_demo=is_demo)


@cli.command()
def ingest() -> None:
    """The write side: HTTP in, log out."""
    settings = load()
    from ingest.app import run

    run(settings)


@cli.command()
@click.option(
    "--workers", type=click.IntRange(1, 256), default=1, show_default=True, help="Processes that share the port."
)
def gateway(workers: int) -> None:
    """The read side: SSE, WebSocket, long-poll, REST."""
    settings = load()
    from gateway.app import run

    run(settings, workers)


@cli.group()
def consume() -> None:
    """What follows the log."""


@consume.command()
def state() -> None:
    """Reduce votes and events to live state."""
    settings = load()
    from consumers.state import run

    run(settings)


@consume.command()
def archive() -> None:
    """Write the log to ClickHouse."""
    settings = load()
    from consumers.archive import run

    run(settings)


@cli.command()
def clickhouse() -> None:
    """The embedded ClickHouse, on loopback."""
    settings = load()
    from clickhouse.embedded import run

    run(settings)


@cli.command()
@click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
@click.option("--new-analyst-key", is_flag=True, help="Analysts see voters under other numbers from now on.")
def migrate(dry_run: bool, new_analyst_key: bool) -> None:
    """Bring the ClickHouse schema up to date. Refuses to go backwards."""
    settings = load()
    from clickhouse.migrate import main as run

    run(settings, dry_run, new_analyst_key)


@cli.command()
@click.option("--since", default="", metavar="AGE|INSTANT", help="Only what changed since: 15m, 24h, 7d, or RFC 3339.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
@click.option("--repair", "repairs", is_flag=True, help="Compute what differs anew from raw, then compare again.")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="Seconds the archive may take to catch up with what is compared.",
)
@click.pass_context
def reconcile(ctx: click.Context, since: str, as_json: bool, repairs: bool, wait_s: float) -> None:
    """Compare log, hot state, ClickHouse and aggregates.

    Exit code 0: all the same. 1: something differs. 2: could not tell.
    """
    with _could_not_tell():
        settings = load()
        from consumers.reconcile import run

        ctx.exit(run(settings, since=since, as_json=as_json, wait_s=wait_s, repairs=repairs))


@cli.command()
@click.argument("voter")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    default=120.0,
    show_default=True,
    help="Seconds that consumers may take to commit what was appended before.",
)
@click.pass_context
def forget(ctx: click.Context, voter: str, wait_s: float) -> None:
    """Erase a voter's hash everywhere. VOTER as the votes name it (twitch:12345), or - to read it from stdin.

    Counts and digests stay. Exit code 0: nothing is left of it. 2: not everything was possible yet, run it again.
    """
    settings = load()
    from consumers.forget import run

    ctx.exit(run(settings, sys.stdin.readline().strip() if voter == "-" else voter, wait_s=wait_s))


@cli.command("rotate-voter-secret")
@click.option("--force", "is_forced", is_flag=True, help="Although polls are open, whose voters could vote again.")
def rotate_voter_secret(is_forced: bool) -> None:
    """Hash voters with a new secret from the next start of ingest on; the old one is kept in voter.secrets.

    Old and new hashes are joined only by who has both secrets: delete voter.secrets, and nobody can any more, nor can
    `forget` find what was hashed with them.
    """
    settings = load()
    from core.local.rotation import run

    run(settings, is_forced=is_forced)


_BACKUP = click.Path(exists=True, file_okay=False, path_type=Path)


@cli.command()
@click.option("--to", type=click.Path(file_okay=False, path_type=Path), help="Directory; default DATA_DIR/backups.")
@click.option("--incremental", "is_incremental", is_flag=True, help="Only what changed since the newest one there.")
def backup(to: Path | None, is_incremental: bool) -> None:
    """Copy log, hot state and archive while everything runs. Secrets are not in it."""
    settings = load()
    from clickhouse.backup import run

    run(settings, to, is_incremental=is_incremental)


@cli.command()
@click.argument("source", type=_BACKUP)
def restore(source: Path) -> None:
    """Fill an empty ARENACAST_DATA_DIR from a backup."""
    settings = load()
    from core.local.restore import run

    run(settings, source)


@cli.command()
@click.argument("source", type=_BACKUP)
@click.option("--scratch", type=_BACKUP, help="Where to restore it for the time being; default the system's.")
@click.pass_context
def drill(ctx: click.Context, source: Path, scratch: Path | None) -> None:
    """Restore a backup into a scratch directory and reconcile it. Exit code as of reconcile."""
    with _could_not_tell():
        settings = load()
        from core.local.restore import drill as run

        ctx.exit(run(settings, source, scratch))


@cli.command("restore-data", hidden=True)
@click.argument("source", type=_BACKUP)
def restore_data(source: Path) -> None:
    """Fill the running, empty embedded servers (part of `restore`)."""
    settings = load()
    from clickhouse.restore import run

    run(settings, source)


@cli.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--to", "url", required=True, metavar="URL", help="Ingest, for example http://127.0.0.1:8081")
@click.option(
    "--speed", type=click.FloatRange(min=0), default=1.0, show_default=True, help="Times faster; 0 = no pauses."
)
@click.option(
    "--key-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="File with the bearer key."
)
def play(file: Path, url: str, speed: float, key_file: Path | None) -> None:
    """Play recorded votes and events (NDJSON) into an ingest."""
    settings = load()
    from core.local.player import run

    run(settings, file, url, speed=speed, key_file=key_file)


@cli.command()
@click.argument("subject", metavar="POLL|MATCH")
@click.option("--format", "kind", type=click.Choice(["parquet", "csv"]), default="parquet", show_default=True)
@click.option(
    "--to",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write; by default SUBJECT.FORMAT here.",
)
@click.option("--show-key", "shows_key", is_flag=True, help="Print the key that the voters are hashed with.")
def export(subject: str, kind: Literal["parquet", "csv"], path: Path | None, shows_key: bool) -> None:
    """Votes of a poll, or events of a match, as a file with a manifest to check it by.

    An id, or poll.ID or match.ID where both exist. Exit code 3: the file is not what the poll's tally says.
    """
    settings = load()
    from clickhouse.export import run

    if not run(settings, subject, kind, path, shows_key=shows_key):
        sys.exit(3)


@cli.command()
@click.option("--follow", is_flag=True, help="Go on, looking every few seconds.")
@click.option("--to", "url", metavar="URL", help="Ingest for the priors [default: the one on this machine]")
def elo(follow: bool, url: str | None) -> None:
    """Rate teams from finished maps, and give live maps a prior for their predictions."""
    settings = load()
    from consumers.elo import run

    run(settings, url or f"http://127.0.0.1:{settings.ingest_port}", follow=follow)


@cli.command(hidden=True)
@click.option("--to", "url", required=True, metavar="URL")
def demo(url: str) -> None:
    """Play the recorded match with a crowd's votes, again and again (part of `up --demo`)."""
    settings = load()
    from core.local.demo import run

    run(settings, url)


if __name__ == "__main__":
    main()
