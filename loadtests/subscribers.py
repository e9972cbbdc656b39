"""All subscribers in one lean process: uvloop, one small protocol object per connection, no task per message.

    python -m loadtests.subscribers SPEC.json     (started by `python -m loadtests`; SPEC: `lines.SubscribersSpec`)

It talks to whoever started it (`loadtests.lines`): says `ready` when every subscriber was welcomed, reads one `Finish`
("stop when you have seen this much, or at the deadline"), writes its files and says `done`. End of input means that the
starter is gone, and ends it.

Why not in locust: see `loadtests.users`.
"""

import asyncio
import random
import sys
import time
from pathlib import Path
from typing import cast

import msgspec
import uvloop
from websockets.exceptions import WebSocketException

from loadtests import seen
from loadtests.lines import Finish, Report, SubscribersSpec, say
from loadtests.reader import Reader
from loadtests.wire import SseStream, Stream, StreamRefused, WebSocketStream

CONNECTS_AT_ONCE = 20
"""Connections being opened at a time: a crowd that arrives within one millisecond is another test."""

RECONNECT_S = (0.1, 2.0)
LAG_INTERVAL_S = 0.02
FAILURES_MAX = 100
_POLL_S = 0.02


class Connection(asyncio.Protocol):
    """One connection of one subscriber."""

    def __init__(self, reader: Reader, stream: Stream, lost: "asyncio.Future[str]") -> None:
        """`lost` is given the reason when the connection has ended."""
        self._reader = reader
        self._stream = stream
        self._lost = lost
        self._reason = "connection closed"
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the stream."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its base class
        self._transport.write(self._stream.request())

    def data_received(self, data: bytes) -> None:
        """Hand on every message, all with the time at which this piece came."""
        at = time.time()
        assert self._transport is not None
        try:
            for message in self._stream.feed(data):
                self._reader.take(message, at)
            answer = self._stream.outgoing()
        except (StreamRefused, WebSocketException, ValueError) as error:
            self._reason = f"{type(error).__name__}: {error}"
            self._transport.abort()
            return
        if answer:
            self._transport.write(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Say why."""
        if not self._lost.done():
            self._lost.set_result(str(exc) if exc else self._reason)


class Crowd:
    """Every subscriber of this process; each reconnects, to the next gateway, until `stop`."""

    def __init__(self, spec: SubscribersSpec) -> None:
        self.readers = [
            Reader(f"{'sse' if number < spec.sse else 'ws'}-{number}", topics)
            for number, topics in enumerate(spec.topics)
        ]
        self.failures: list[str] = []
        self._urls = spec.gateway_urls
        self._gate = asyncio.Semaphore(CONNECTS_AT_ONCE)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to connect."""
        self._tasks = [asyncio.create_task(self._follow(n, reader)) for n, reader in enumerate(self.readers)]

    async def until_welcomed(self, within_s: float) -> None:
        """Wait until all are connected. Raises TimeoutError."""
        async with asyncio.timeout(within_s):
            while not all(reader.connections for reader in self.readers):  # noqa: ASYNC110 - readers know no loop
                await asyncio.sleep(_POLL_S)

    async def until_seen(self, target: Finish) -> None:
        """Wait until all have seen `target`, or its time is over."""
        deadline = time.monotonic() + target.within_s
        while time.monotonic() < deadline:
            if all(reader.has_seen(target.applied, target.events) for reader in self.readers):
                return
            await asyncio.sleep(_POLL_S)

    async def stop(self) -> None:
        """Close everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self, number: int, reader: Reader) -> None:
        attempt, pause_s = 0, RECONNECT_S[0]
        while True:
            connections = reader.connections
            reason = await self._connect(reader, self._urls[(number + attempt) % len(self._urls)])
            if len(self.failures) < FAILURES_MAX:
                self.failures.append(f"{reader.name}: {reason}")
            attempt += 1
            pause_s = RECONNECT_S[0] if reader.connections > connections else min(2 * pause_s, RECONNECT_S[1])
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))

    async def _connect(self, reader: Reader, url: str) -> str:
        """One connection from beginning to end; why it ended."""
        loop = asyncio.get_running_loop()
        kind = SseStream if reader.name.startswith("sse") else WebSocketStream
        stream = kind(url, reader.topics, reader.cursor)
        lost: asyncio.Future[str] = loop.create_future()
        address = url.partition("://")[2].partition("/")[0]
        host, _, port = address.rpartition(":")
        try:
            async with self._gate:
                transport, _ = await loop.create_connection(
                    lambda: Connection(reader, stream, lost), host.strip("[]"), int(port)
                )
        except OSError as error:
            return f"cannot connect: {error}"
        try:
            return await lost
        finally:
            transport.abort()


class LoopLag:
    """How late this process is: lateness in ms of a timer that is due every 20 ms. It is in every latency we report."""

    def __init__(self) -> None:
        self.values_ms: list[float] = []

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            due = time.monotonic() + LAG_INTERVAL_S
            await asyncio.sleep(LAG_INTERVAL_S)
            self.values_ms.append((time.monotonic() - due) * 1000)


async def _input() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def _main(spec: SubscribersSpec) -> None:
    commands = await _input()
    crowd, lag = Crowd(spec), LoopLag()
    crowd.start()
    try:
        await crowd.until_welcomed(30.0)
    except TimeoutError:
        missing = sum(not reader.connections for reader in crowd.readers)
        say(Report(error=f"{missing} subscribers were not welcomed within 30 s: {crowd.failures[:3]}"))
        return
    measuring = asyncio.create_task(lag.run())
    say(Report(ready=len(crowd.readers)))
    line = await commands.readline()
    if line:
        await crowd.until_seen(msgspec.json.decode(line, type=Finish))
    measuring.cancel()
    failures = list(crowd.failures)
    await crowd.stop()
    if line:
        seen.save(Path(spec.directory), crowd.readers, failures, lag.values_ms)
        say(Report(done=True))


def main() -> None:
    """Entry point; the specification is the only argument."""
    uvloop.run(_main(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=SubscribersSpec)))


if __name__ == "__main__":
    main()
