"""`arenacast up`: composition root of a whole installation on one machine."""

import asyncio
import signal
import sys
import time
from typing import TextIO

from core.local.keyfiles import locked, make_data_dir, with_secrets
from core.local.services import reachable_host, resolve_ports, stages, url
from core.local.supervisor import Supervisor
from core.settings import Settings, unknown_variables


def run(settings: Settings, *, is_demo: bool) -> None:
    """Run everything until SIGINT or SIGTERM; a second one kills. Raises Fatal when something does not start."""
    make_data_dir(settings)
    with locked(settings):
        settings = resolve_ports(with_secrets(settings), say)
        for name in unknown_variables():
            say(f"{name} is no setting and is ignored")
        log_dir = settings.data_dir / "logs"
        log_dir.mkdir(mode=0o700, exist_ok=True)
        asyncio.run(_run(settings, Supervisor(stages(settings, is_demo=is_demo), log_dir, say), is_demo))


def say(text: str) -> None:
    """One line for the person in front of the terminal."""
    _show(f"{time.strftime('%H:%M:%S')}  {text}", sys.stderr)


def summary(settings: Settings, *, is_demo: bool) -> str:
    """What to open, where to write, with which key."""
    reader = url(reachable_host(settings.gateway_host), settings.gateway_port)
    writer = url(reachable_host(settings.ingest_host), settings.ingest_port)
    if settings.clickhouse_url:
        clickhouse = f"{settings.public()['clickhouse_url']}"
    else:
        password = settings.secret_file("clickhouse_password")
        clickhouse = f"{url('127.0.0.1', settings.clickhouse_port)}  (user default, password in {password})"
        clickhouse += (
            f"\n              for reading only: user analyst, password in {settings.secret_file('analyst_password')}"
        )
    lines = [
        "Arenacast is running" + (", and a recorded match is playing" if is_demo else ""),
        "",
        f"  page        {reader}/",
        f"  read        {reader}/api/v1/  (docs: {reader}/docs)",
        f"  write       {writer}/api/v1/",
        f"  key         {settings.ingest_key}  (Authorization: Bearer …, kept in {settings.secret_file('ingest_key')})",
        f"  ClickHouse  {clickhouse}",
        f"  logs        {settings.data_dir / 'logs'}",
        "",
        "  Ctrl-C stops everything; the data stays.",
    ]
    return "\n".join(lines)


def _show(text: str, stream: TextIO) -> None:
    """Print; a terminal or a pipe that is gone does not stop the pipeline."""
    try:
        print(text, file=stream, flush=True)
    except OSError:
        return


async def _run(settings: Settings, supervisor: Supervisor, is_demo: bool) -> None:
    loop = asyncio.get_running_loop()
    signals = 0

    def on_signal() -> None:
        nonlocal signals
        signals += 1
        if signals == 1:
            say("stopping (again: kill)")
            supervisor.stop()
        else:
            say("killing")
            supervisor.kill()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal)
    say(f"starting, data in {settings.data_dir.absolute()}")
    started = time.monotonic()

    def on_ready() -> None:
        say(f"ready after {time.monotonic() - started:.1f} s")
        _show(f"\n{summary(settings, is_demo=is_demo)}\n", sys.stdout)

    await supervisor.run(on_ready)
    say("stopped")
