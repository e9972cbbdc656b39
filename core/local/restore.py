"""`arenacast restore` and `arenacast drill`: a backup into an empty data directory, with servers of its own.

Everything is verified before anything is written. The log begins a new epoch at its next start, because the server is
another one: cursors of readers from after the backup are answered with `reset`.
"""

import asyncio
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from core import erasures, manifest
from core.errors import Fatal
from core.local.child import python_command, python_environment
from core.local.keyfiles import locked, make_data_dir
from core.local.services import environment, resolve_ports, servers, stages
from core.local.supervisor import Service, Supervisor
from core.local.up import say
from core.manifest import Manifest
from core.settings import PREFIX, Settings

RESTORE_WITHIN_S = 24 * 3600.0
RECONCILE_WITHIN_S = 3600.0

_MAY_BE_THERE = {"ingest.key", "voter.secret", "voter.secrets", "clickhouse.key", "analyst.key", "up.lock", "backups",
                 erasures.LIST}  # fmt: skip
"""What an operator brings along. `backups` may hold the very backup that is restored."""

_PORTS = ("clickhouse_port", "ingest_port", "gateway_port", "state_metrics_port", "archive_metrics_port")
"""All of them any that is free: another installation may be running."""

_MADE = ("redis", "clickhouse", "logs", manifest.SPILL)


def run(settings: Settings, source: Path) -> None:
    """Restore a backup into the data directory. Raises Fatal, and then leaves the directory as it was."""
    for field in ("redis_url", "clickhouse_url"):
        if getattr(settings, field):
            raise Fatal(f"{PREFIX}{field.upper()} is set: a restore fills the embedded servers of an empty {PREFIX}"
                        "DATA_DIR; how to restore into servers of your own is in the README")  # fmt: skip
    source = source.absolute()
    chain = manifest.verify(source)
    say(f"{source}: complete, {len(chain)} backup{'s' if len(chain) > 1 else ''} verified")
    make_data_dir(settings)
    with locked(settings):
        _check_empty(settings)
        with _undone_on_failure(settings):
            place_redis(settings, source)
            place_segments(settings, source)
            asyncio.run(_serve(settings, _inner(source)))
    _tell(settings, chain[0][1])


def drill(settings: Settings, source: Path, scratch: Path | None) -> int:
    """Restore a backup into a scratch directory, let its consumers catch up, reconcile, and remove everything.

    Returns reconcile's exit code; 0 means that this backup can be relied upon. Raises Fatal when it cannot be restored.
    """
    source = source.absolute()
    with tempfile.TemporaryDirectory(prefix="arenacast-drill-", dir=scratch) as directory:
        changed = msgspec.structs.replace(
            settings, data_dir=Path(directory) / "data", spill_dir="", redis_url="", clickhouse_url="",
        )  # fmt: skip
        manifest.verify(source)
        make_data_dir(changed)
        place_redis(changed, source)
        place_segments(changed, source)
        say(f"restoring {source.name} into {directory}")
        codes: list[int] = []
        asyncio.run(_serve(changed, _inner(source), _reconciled(codes)))
    verdict = {0: "this backup restores, and its books agree", 1: "restored, and its books DIFFER"}
    say(f"drill: {verdict.get(codes[0], 'restored, but the books could not be compared')}")
    return codes[0]


def place_redis(settings: Settings, source: Path) -> None:
    """The copy of Redis as the base of a new append-only file: what the server reads at its start."""
    directory = settings.data_dir / "redis" / "appendonlydir"
    directory.mkdir(mode=0o700, parents=True)
    base = "appendonly.aof.1.base.rdb"
    shutil.copyfile(source / manifest.RDB, directory / base)
    (directory / "appendonly.aof.manifest").write_text(f"file {base} seq 1 type b\n")


def place_segments(settings: Settings, source: Path) -> None:
    """What of the log lay on disk. A segment that was retired meanwhile counts again: Redis' copy may list it."""
    if (source / manifest.SPILL).is_dir():
        shutil.copytree(source / manifest.SPILL, settings.spill_path, dirs_exist_ok=True)
        for path in settings.spill_path.rglob("*.done"):
            listed = path.with_suffix("")
            path.unlink() if listed.exists() else path.rename(listed)


def _check_empty(settings: Settings) -> None:
    found = sorted(path.name for path in settings.data_dir.iterdir() if path.name not in _MAY_BE_THERE)
    if found:
        raise Fatal(f"{settings.data_dir} is not empty ({', '.join(found[:5])}): a restore overwrites nothing")


@contextmanager
def _undone_on_failure(settings: Settings) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for name in _MADE:
            shutil.rmtree(settings.data_dir / name, ignore_errors=True)
        raise


def _inner(source: Path) -> Callable[[dict[str, str]], list[list[Service]]]:
    def work(environ: dict[str, str]) -> list[list[Service]]:
        command = python_command("restore-data", str(source))
        return [[Service("restore", command, environ, ready_within_s=RESTORE_WITHIN_S, is_task=True)]]

    return work


async def _serve(
    settings: Settings,
    work: Callable[[dict[str, str]], list[list[Service]]],
    then: Callable[[Settings, dict[str, str]], Awaitable[None]] | None = None,
) -> None:
    """Run the embedded servers for as long as `work`, and then `then`, take. Passwords are for this time only."""
    changed = {name: getattr(settings, name) or secrets.token_urlsafe(24)
               for name in ("clickhouse_password", "ingest_key", "voter_secret", "analyst_password")}  # fmt: skip
    settings = msgspec.structs.replace(settings, **changed, **dict.fromkeys(_PORTS, 0))
    settings = resolve_ports(settings, say)
    environ = python_environment(environment(settings, os.environ))
    log_dir = settings.data_dir / "logs"
    log_dir.mkdir(mode=0o700, exist_ok=True)
    plan = [*servers(settings), *work(environ), *([] if then is None else [consumers(settings)])]
    supervisor = Supervisor(plan, log_dir, say)
    tasks: list[asyncio.Task[None]] = []

    async def finish() -> None:
        try:
            if then is not None:
                await then(settings, environ)
        finally:
            supervisor.stop()

    await supervisor.run(lambda: tasks.append(asyncio.create_task(finish())))
    await asyncio.gather(*tasks)


def consumers(settings: Settings) -> list[Service]:
    """What lets a restored log catch up: hot state and archive."""
    wanted = {"state", "archive"}
    return [service for stage in stages(settings, is_demo=False) for service in stage if service.name in wanted]


def _reconciled(codes: list[int]) -> Callable[[Settings, dict[str, str]], Awaitable[None]]:
    async def reconcile(settings: Settings, environ: dict[str, str]) -> None:
        process = await asyncio.create_subprocess_exec(
            *python_command("reconcile", "--wait", "300"), env=environ, stdout=asyncio.subprocess.PIPE
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), RECONCILE_WITHIN_S)
        except BaseException:
            process.kill()
            raise
        print(output.decode(), end="", file=sys.stdout, flush=True)
        codes.append(process.returncode or 0)

    return reconcile


def _tell(settings: Settings, made: Manifest) -> None:
    missing = [name for name in ("voter.secret", "ingest.key") if not (settings.data_dir / name).exists()]
    say(f"restored {made.name} into {settings.data_dir}; `arenacast up` runs it, `arenacast reconcile` compares it")
    if missing:
        names = " and ".join(missing)
        say(f"put {names} of the old installation there before the first start, which would make new ones: with a new")
        say("voter secret everybody may vote again in polls that are open")
