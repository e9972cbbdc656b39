"""Load and proof: `python -m loadtests [--shape sustained|burst|both] [--full]`.

Starts a pipeline of its own (`arenacast up` in an empty temporary directory, on free ports), puts load on it, compares
what every place counted with what was sent, and writes a report. Exit code 0: the proof holds (with --strict, the
objectives too). 1: it does not. 2: the test itself could not be carried out.
"""

import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import click
import httpx
from rich.console import Console

from core.errors import Fatal
from loadtests import pipeline, report
from loadtests.curves import BURST_PEAK, BURST_SECONDS, SUSTAINED_RATE, SUSTAINED_SECONDS
from loadtests.judge import Judged, judge
from loadtests.lines import Shape
from loadtests.observe import Endpoints
from loadtests.run import Options, carry_out

SHORT_SECONDS = 30.0
RESULTS = Path(__file__).parent / "results"


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, help=__doc__)
@click.option("--shape", type=click.Choice(["sustained", "burst", "both"]), default="both", show_default=True)
@click.option("--full", is_flag=True, help="5 minutes sustained, 2 minutes burst, instead of 30 s each.")
@click.option("--seconds", type=click.FloatRange(min=2), help="Length of each run.")
@click.option("--rate", type=click.FloatRange(min=10), help="Events/s; of a burst its peak. [default: 1000, 5000]")
@click.option("--sse", type=click.IntRange(min=0), default=200, show_default=True, help="SSE subscribers.")
@click.option("--ws", type=click.IntRange(min=0), default=50, show_default=True, help="WebSocket subscribers.")
@click.option("--follow", type=click.Choice(["one", "all"]), default="one", show_default=True, help="Polls of each.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Subscriber processes.")
@click.option("--subscribers", type=click.Choice(["lean", "locust"]), default="lean", show_default=True,
              help="Subscribers in processes of their own, or as locust users.")  # fmt: skip
@click.option("--strict", is_flag=True, help="Fail also when an objective is not met.")
@click.option("--ingest-url", help="A pipeline that runs already; then also the next four.")
@click.option("--gateway-url", "gateway_urls", multiple=True, help="May be given several times.")
@click.option("--clickhouse-url", help="http://user:password@host:port/database")
@click.option("--state-url", default="http://127.0.0.1:8082", show_default=True, help="Metrics of the state consumer.")
@click.option("--key", help="Bearer key of the write side.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Report directory. [default: results/TIME]"
)
def main(
    shape: Literal["sustained", "burst", "both"],
    full: bool,
    seconds: float | None,
    rate: float | None,
    sse: int,
    ws: int,
    follow: Literal["one", "all"],
    workers: int,
    subscribers: Literal["lean", "locust"],
    strict: bool,
    ingest_url: str | None,
    gateway_urls: tuple[str, ...],
    clickhouse_url: str | None,
    state_url: str,
    key: str | None,
    out: Path | None,
) -> None:
    """See the module."""
    shapes: list[Shape] = ["sustained", "burst"] if shape == "both" else [shape]
    planned = [
        Options(one, rate or _rate(one), seconds or _seconds(one, full), sse, ws, follow, subscribers, workers)
        for one in shapes
    ]
    console = Console() if sys.stdout.isatty() else Console(width=110)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what we started is stopped in order
    try:
        with tempfile.TemporaryDirectory(prefix="arenacast-load-", ignore_cleanup_errors=True) as name:
            directory = Path(name)
            if ingest_url is None:
                say("starting a pipeline")
                with pipeline.embedded(directory) as (endpoints, pid):
                    runs = _runs(endpoints, pid, planned, directory)
            elif gateway_urls and clickhouse_url and key:
                endpoints = Endpoints(ingest_url, list(gateway_urls), clickhouse_url, state_url, key)
                runs = _runs(endpoints, None, planned, directory)
            else:
                raise click.UsageError("--ingest-url needs --gateway-url, --clickhouse-url and --key")
    except (Fatal, httpx.HTTPError) as error:
        console.print(f"the load test could not be carried out: {error}", markup=False, highlight=False)
        sys.exit(2)
    path = report.write(runs, out or RESULTS / time.strftime("%Y%m%d-%H%M%S"))
    outcomes = [run.outcome for run in runs]
    report.show(outcomes, console)
    console.print(f"report: {path}", highlight=False, soft_wrap=True)
    sys.exit(not all(one.is_proven and (one.is_fast or not strict) for one in outcomes))


def say(text: str) -> None:
    """Progress, for whoever watches."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def _runs(endpoints: Endpoints, supervisor_pid: int | None, planned: list[Options], directory: Path) -> list[Judged]:
    found = []
    for number, options in enumerate(planned):
        say(f"{options.shape}: {options.rate:g}/s, {options.seconds:g} s, {options.sse} SSE + {options.ws} WebSocket")
        finished = carry_out(endpoints, supervisor_pid, options, directory / f"run-{number}", say)
        found.append(judge(finished))
    return found


def _rate(shape: Shape) -> float:
    return BURST_PEAK if shape == "burst" else SUSTAINED_RATE


def _seconds(shape: Shape, is_full: bool) -> float:
    if not is_full:
        return SHORT_SECONDS
    return BURST_SECONDS if shape == "burst" else SUSTAINED_SECONDS


if __name__ == "__main__":
    main()
