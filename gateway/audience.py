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
from array import array
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.hub import Subscriber


Shortfalls = list[tuple[int, int]]
"""(index, bytes that were taken) of each descriptor that did not take all."""

SendAll = Callable[["array[int]", bytes], Shortfalls]
"""Writes a frame to each of some descriptors (C ints) without waiting. One that fails counts as one that took nothing:
its sink finds out when it tries again. See `write_all` and `gateway.uring`."""


def write_all(descriptors: array[int], frame: bytes) -> Shortfalls:
    """`SendAll` with what every system has."""
    taken: list[int] = []
    writes = map(os.write, descriptors, repeat(frame))
    while True:
        try:
            taken.extend(writes)  # what was appended before an exception stays, and the iterator goes on after it
            break
        except OSError:
            taken.append(0)
    size = len(frame)
    if taken.count(size) == len(taken):
        return []
    return [(index, n) for index, n in enumerate(taken) if n < size]


class Audience:
    """Subscribers; no two of them have the same sink."""

    __slots__ = ("_descriptors", "_direct", "_queued", "_send_all")

    def __init__(self, send_all: SendAll = write_all) -> None:
        self._send_all = send_all
        self._direct: dict[Subscriber, int] = {}  # those whose sink offers its descriptor, with it
        self._queued: dict[Subscriber, None] = {}  # the others
        self._descriptors: array[int] | None = None  # the values of `_direct`; None after a change

    def __len__(self) -> int:
        return len(self._direct) + len(self._queued)

    def __iter__(self) -> Iterator[Subscriber]:
        return chain(self._direct, self._queued)

    def add(self, subscriber: Subscriber) -> None:
        """Write to it from now on."""
        fd = subscriber.sink.fd
        if fd >= 0:
            self._direct[subscriber] = fd
            self._descriptors = None
        else:
            self._queued[subscriber] = None

    def discard(self, subscriber: Subscriber) -> None:
        """Write to it no more. Harmless when it is not here."""
        if self._direct.pop(subscriber, None) is not None:
            self._descriptors = None
        self._queued.pop(subscriber, None)

    def reroute(self, subscriber: Subscriber) -> None:
        """Its sink's descriptor has changed. Harmless when it is not here."""
        if subscriber in self._direct or subscriber in self._queued:
            self.discard(subscriber)
            self.add(subscriber)

    def write(self, frame: bytes) -> int:
        """Give everybody a frame; returns how many that were. Whoever cannot take it all may be paused or gone then."""
        queued = tuple(self._queued)
        if self._descriptors is None:
            self._descriptors = array("i", self._direct.values())
        direct = self._descriptors
        shortfalls = self._send_all(direct, frame)
        if shortfalls:
            subscribers = tuple(self._direct)
            for index, taken in shortfalls:
                subscribers[index].sink.write(frame[taken:])
        for subscriber in queued:
            subscriber.sink.write(frame)
        return len(direct) + len(queued)


def plain_write(audience: Audience, frame: bytes) -> int:
    """What `Audience.write` amounts to. The tests hold it against this."""
    subscribers = tuple(audience)
    for subscriber in subscribers:
        subscriber.sink.write(frame)
    return len(subscribers)
