"""`arenacast play`: a recording into a running ingest, at its own pace or faster."""

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from core.errors import Fatal
from core.local.recording import Request, requests
from core.local.sender import Sender, Sums
from core.settings import Settings

OnSent = Callable[[Request, Sums], None]


async def play(
    sender: Sender,
    recorded: Iterable[Request],
    *,
    speed: float = 1.0,
    on_sent: OnSent = lambda _request, _sums: None,
) -> None:
    """Send requests one after the other, none before its moment. `speed` 0 sends without pauses.

    One at a time, so that the log gets them in the order of the recording; whatever is late is sent at once.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    for request in recorded:
        if speed > 0:
            await asyncio.sleep(max(0.0, started + request.due_ms / 1000 / speed - loop.time()))
        await sender.send(request.method, request.path, request.body, request.content_type)
        on_sent(request, sender.sums)


def run(settings: Settings, file: Path, url: str, *, speed: float, key_file: Path | None) -> None:
    """Play a file with a progress bar, then say what became of it. Raises Fatal when it cannot be played."""
    key = _key(settings, key_file)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[accepted]} accepted"), console=Console(stderr=True),
    )  # fmt: skip
    with file.open("rb") as lines, bar:
        task = bar.add_task(file.name, total=file.stat().st_size, accepted=0)

        def on_sent(request: Request, sums: Sums) -> None:
            bar.update(task, advance=request.read_bytes, accepted=sums.accepted)

        sums = asyncio.run(_run(url, key, requests(lines), speed, on_sent))
    Console().print(describe(sums))
    if sums.refused:
        raise Fatal(f"{sums.refused} requests were refused, the first one: {sums.first_refusal}")


def describe(sums: Sums) -> str:
    """The sums in one line."""
    repeats = f", {sums.repeats} repeated" if sums.repeats else ""
    return f"{sums.requests} requests{repeats}: {sums.accepted} accepted, {sums.duplicates} duplicates"


async def _run(url: str, key: str, recorded: Iterable[Request], speed: float, on_sent: OnSent) -> Sums:
    async with Sender(url, key) as sender:
        await play(sender, recorded, speed=speed, on_sent=on_sent)
        return sender.sums


def _key(settings: Settings, key_file: Path | None) -> str:
    if key_file is None:
        return settings.secret("ingest_key")
    try:
        return key_file.read_text().strip()
    except (OSError, ValueError) as error:
        raise Fatal(f"{key_file} cannot be read") from error
