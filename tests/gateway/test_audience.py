"""One frame to many sockets: the same bytes reach everybody as by writing to one sink after the other."""

import os
import random
import socket
from array import array
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import structlog

from core.settings import Settings
from gateway.audience import Audience, SendAll, plain_write, write_all
from gateway.uring import Ring, sender

FRAME = b"x" * 400 + b"\n"


class Sink:
    """The sending end of a real connection, which keeps what the kernel does not take."""

    def __init__(self, *, is_direct: bool) -> None:
        self.ours, self.theirs = socket.socketpair()
        for end in (self.ours, self.theirs):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.fd = self.ours.fileno() if is_direct else -1
        self.kept = b""
        self.is_broken = False

    def write(self, data: bytes) -> None:
        if not self.kept and not self.is_broken:
            try:
                data = data[self.ours.send(data) :]
            except BlockingIOError:
                pass
            except OSError:
                self.is_broken = True
        self.kept += data

    def received(self) -> bytes:
        found = b""
        while True:
            try:
                part = self.theirs.recv(65_536)
            except (BlockingIOError, ConnectionResetError):
                return found + self.kept
            if not part:
                return found + self.kept
            found += part

    def fill(self, spare: int) -> None:
        """Leave the connection unable to take more than about `spare` bytes."""
        with suppress(BlockingIOError):
            while True:
                self.ours.send(b"-" * 1000)
        while spare > 0:
            spare -= len(self.theirs.recv(spare))

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


class Reader:
    def __init__(self, sink: Sink) -> None:
        self.sink = sink


Crowd = list[Any]


def crowd() -> Crowd:
    """Everybody there can be: direct, queued, full, gone."""
    found = [Reader(Sink(is_direct=n % 4 != 1)) for n in range(20)]
    found[3].sink.fill(0)
    found[4].sink.fill(2500)
    found[6].sink.theirs.close()
    found[19].sink.fill(0)
    return found


@pytest.fixture
def crowds() -> Iterator[tuple[Crowd, Crowd]]:
    pair = crowd(), crowd()
    yield pair
    for each in (*pair[0], *pair[1]):
        each.sink.close()


@pytest.fixture(params=["write", "io_uring"])
def send_all(request: pytest.FixtureRequest) -> Iterator[SendAll]:
    if request.param == "write":
        yield write_all
        return
    try:
        ring = Ring(entries=8, few=0)  # so few that it begins anew all the time
    except OSError as error:
        pytest.skip(f"this kernel offers no io_uring: {error}")
    yield ring.send_all
    ring.close()


def audience_of(subscribers: Crowd, send_all: SendAll = write_all) -> Audience:
    audience = Audience(send_all)
    for subscriber in subscribers:
        audience.add(subscriber)
    return audience


def test_everybody_gets_what_the_plain_loop_would_give(crowds: tuple[Crowd, Crowd], send_all: SendAll) -> None:
    fast, plain = crowds
    frames = [b"1" + FRAME, b"2" + FRAME, b"3" + FRAME * 100, b"4" + FRAME]  # nobody can take all of the third at once
    for frame in frames:
        assert audience_of(fast, send_all).write(frame) == plain_write(audience_of(plain), frame) == 20
        for each in (*fast, *plain):  # as `Connection` does: whoever keeps something offers no descriptor
            if each.sink.kept:
                each.sink.fd = -1
    for one, other in zip(fast, plain, strict=True):
        assert one.sink.is_broken == other.sink.is_broken
        if not one.sink.is_broken:
            got = one.sink.received()
            assert got == other.sink.received()
            assert got.endswith(b"".join(frames))
    assert fast[6].sink.is_broken
    assert fast[3].sink.kept


def test_whoever_leaves_during_a_write_disturbs_nobody(crowds: tuple[Crowd, Crowd], send_all: SendAll) -> None:
    fast, _ = crowds
    audience = audience_of(fast, send_all)
    full = fast[3].sink
    write = full.write

    def leave(data: bytes) -> None:
        write(data)
        for each in fast[3:]:
            audience.discard(each)

    full.write = leave
    assert audience.write(FRAME) == 20
    assert len(audience) == 3
    assert fast[18].sink.received() == FRAME
    assert fast[17].sink.received() == FRAME, "queued, and gone from the audience when its turn came"


def test_a_sink_that_takes_its_descriptor_back_is_written_to_through_itself() -> None:
    sink = Sink(is_direct=True)
    subscriber: Any = Reader(sink)
    audience = audience_of([subscriber])
    sink.fd = -1
    audience.reroute(subscriber)
    sink.kept = b"before "
    audience.write(FRAME)
    assert sink.received() == b"before " + FRAME
    sink.fd, sink.kept = sink.ours.fileno(), b""
    audience.reroute(subscriber)
    audience.write(FRAME)
    assert sink.received() == FRAME
    audience.discard(subscriber)
    audience.reroute(subscriber)
    assert len(audience) == 0, "nobody comes back by a change of descriptor"
    assert list(audience) == []
    sink.close()


def test_a_descriptor_that_fails_is_left_to_its_sink(send_all: SendAll) -> None:
    sink, other = Sink(is_direct=True), Sink(is_direct=True)
    closed = os.dup(sink.fd)
    os.close(closed)
    sink.fd = closed
    audience = audience_of([Reader(sink), Reader(other)], send_all)
    assert audience.write(FRAME) == 2
    assert sink.received() == other.received() == FRAME
    sink.close()
    other.close()


@pytest.mark.parametrize("seed", range(20))
def test_results_are_those_of_writing_one_by_one(send_all: SendAll, seed: int) -> None:
    """In order, whatever the number, wherever the ring stands, whoever fails or is full."""
    rng = random.Random(seed)
    sinks = [Sink(is_direct=True) for _ in range(20)]
    full = [sink for sink in sinks if rng.random() < 0.2]
    for sink in full:
        sink.fill(0)
    gone = os.dup(sinks[0].fd)
    os.close(gone)
    for number in range(30):
        some = rng.sample(sinks, rng.randint(0, len(sinks)))
        frame = b"%d:" % number + b"x" * rng.randint(0, 300)
        fds = [gone if rng.random() < 0.1 else sink.fd for sink in some]
        expected = [(n, 0) for n, (fd, sink) in enumerate(zip(fds, some, strict=True)) if fd == gone or sink in full]
        assert send_all(array("i", fds), frame) == expected
        for fd, sink in zip(fds, some, strict=True):
            assert sink in full or sink.received() == (b"" if fd == gone else frame)
    for sink in sinks:
        sink.close()


def test_a_kernel_that_takes_it_back_is_told_of_once_and_asked_no_more() -> None:
    try:
        ring = Ring(entries=8, few=0)
    except OSError as error:
        pytest.skip(f"this kernel offers no io_uring: {error}")
    sinks = [Sink(is_direct=True) for _ in range(20)]
    audience = audience_of([Reader(sink) for sink in sinks], ring.send_all)
    with structlog.testing.capture_logs() as logged:
        assert audience.write(FRAME) == 20
        ring.close()
        for _ in range(3):
            assert audience.write(FRAME) == 20
    assert [line["reason"] for line in logged] == ["Bad file descriptor"]
    for sink in sinks:
        assert sink.received() == FRAME * 4
        sink.close()


def test_a_kernel_without_it_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_ring: Ring, *_: object) -> None:
        raise PermissionError("not in this container")

    assert sender(Settings(io_uring="off")) is write_all
    monkeypatch.setattr(Ring, "__init__", refuse)
    assert sender(Settings()) is write_all
