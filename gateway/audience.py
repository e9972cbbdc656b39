"""The live subscribers of one channel, and how a frame gets to all of them at once.

Hot path: `Audience.write`. Budget per subscriber: one `write` to its socket, which the kernel makes cost what it costs,
and a quarter of a microsecond around it. So there is no Python frame, attribute or comparison per subscriber in the
normal case: all descriptors are written to in one call (`SendAll`), and the results are looked at as a whole.
`python -m loadtests.fanout` measures it beside the same loop in C; `plain_write` is what it must be equal to.

A sink offers its descriptor while everything before has left its own buffer (`Sink.fd`); without one, and for what the
kernel did not take, a frame goes through `Sink.write`, which keeps the order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from itertools import chain, repeat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.hub import Subscriber


SendAll = Callable[[Collection[int], bytes], list[int]]
"""Writes a frame to each of some descriptors without waiting. Returns how many bytes each took, in order; 0 also for
one that failed, of which its sink finds out when it tries again. See `write_all` and `gateway.uring`."""


def write_all(descriptors: Collection[int], frame: bytes) -> list[int]:
    """`SendAll` with what every system has."""
    sent: list[int] = []
    writes = map(os.write, descriptors, repeat(frame))
    while True:
        try:
            sent.extend(writes)  # what was appended before an exception stays, and the iterator goes on after it
            return sent
        except OSError:
            sent.append(0)


class Audience:
    """Subscribers; no two of them have the same sink."""

    __slots__ = ("_direct", "_queued", "_send_all")

    def __init__(self, send_all: SendAll = write_all) -> None:
        self._send_all = send_all
        self._direct: dict[Subscriber, int] = {}  # those whose sink offers its descriptor, with it
        self._queued: dict[Subscriber, None] = {}  # the others

    def __len__(self) -> int:
        return len(self._direct) + len(self._queued)

    def __iter__(self) -> Iterator[Subscriber]:
        return chain(self._direct, self._queued)

    def add(self, subscriber: Subscriber) -> None:
        """Write to it from now on."""
        fd = subscriber.sink.fd
        if fd >= 0:
            self._direct[subscriber] = fd
        else:
            self._queued[subscriber] = None

    def discard(self, subscriber: Subscriber) -> None:
        """Write to it no more. Harmless when it is not here."""
        self._direct.pop(subscriber, None)
        self._queued.pop(subscriber, None)

    def reroute(self, subscriber: Subscriber) -> None:
        """Its sink's descriptor has changed. Harmless when it is not here."""
        if subscriber in self._direct or subscriber in self._queued:
            self.discard(subscriber)
            self.add(subscriber)

    def write(self, frame: bytes) -> int:
        """Give everybody a frame; returns how many that were. Whoever cannot take it all may be paused or gone then."""
        queued = tuple(self._queued)
        sent = self._send_all(self._direct.values(), frame)
        size = len(frame)
        if sent.count(size) < len(sent):
            for subscriber, taken in [(each, n) for each, n in zip(self._direct, sent, strict=True) if n < size]:
                subscriber.sink.write(frame[taken:])
        for subscriber in queued:
            subscriber.sink.write(frame)
        return len(sent) + len(queued)


def plain_write(audience: Audience, frame: bytes) -> int:
    """What `Audience.write` amounts to. The tests hold it against this."""
    subscribers = tuple(audience)
    for subscriber in subscribers:
        subscriber.sink.write(frame)
    return len(subscribers)
