"""The same bytes to many sockets with one system call: io_uring, where the kernel offers it.

Hot path, beside `audience.write_all`, which does the same with a system call per socket and is used where this is
missing (other systems, kernels before 6.1, containers whose seccomp profile forbids it, ARENACAST_IO_URING=off). What
is saved is a change to the kernel and back, the global interpreter lock and a Python call per socket; what is left is
TCP. Measured with 500 loopback sockets, a client that keeps up and frames of 294 bytes, in turns, on a busy machine:
C calling send() 11.6 us a socket, `write_all` 13.6 us, this 11.9 us; with a client that lags behind and need not be
woken 9.5, 10.7 and 7.5 us. `python -m loadtests.fanout` shows the whole, both ways.

Nothing is ever left under way: a send may not wait (MSG_DONTWAIT), so every one has completed when the call returns,
the frame needs to live no longer, and the ring is empty between calls. The layout is the kernel's ABI, the same on all
its architectures (linux/io_uring.h; man 7 io_uring).
"""

import ctypes
import errno
import mmap
import os
import socket
import struct
import sys
import weakref
from array import array

from core import logs
from core.settings import Settings
from gateway.audience import SendAll, Shortfalls, write_all

ENTRIES = 1024
"""Sends of one system call, a power of two: bounds how long one call takes, at some 6 ms."""

FEW = 40
"""Below this, calling `write` for each is as cheap as filling the ring (measured: even at 32)."""

_SETUP, _ENTER = 425, 426  # system calls, on every architecture
_SINGLE_MMAP = 1 << 0
_FLAGS = 1 << 12 | 1 << 13  # SINGLE_ISSUER, DEFER_TASKRUN: one thread, and completions when it asks for them
_GET_EVENTS = 1 << 0
_OFFSET_RING, _OFFSET_ENTRIES = 0, 0x1000_0000
_OP_SEND = 26
_PARAMS = struct.Struct("=10I8IQ8IQ")
_ENTRY_SIZE, _COMPLETION_SIZE = 64, 16

_AGAIN = (errno.EINTR, errno.EAGAIN, errno.EBUSY)
_TRIES = 100


def sender(settings: Settings) -> SendAll:
    """The best way there is to write to many sockets; call it in the thread that will use it."""
    if settings.io_uring == "auto" and sys.platform == "linux":
        try:
            return Ring().send_all
        except (OSError, AttributeError, ValueError) as error:
            logs.get().info("no io_uring, a system call per socket", reason=str(error))
    return write_all


class Ring:
    """An io_uring that only sends. For the thread that makes it."""

    def __init__(self, entries: int = ENTRIES, few: int = FEW) -> None:
        """Raises OSError where the kernel does not offer it, or forbids it."""
        self._few = few
        self._is_refused = False
        self._system_call = ctypes.CDLL(None, use_errno=True).syscall
        self._system_call.restype = ctypes.c_long
        params = ctypes.create_string_buffer(_PARAMS.pack(0, 0, _FLAGS, *[0] * (28 - 3)), _PARAMS.size)
        self._fd = self._system_call(_SETUP, entries, params)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._finalizer = weakref.finalize(self, os.close, self._fd)
        self._map(_PARAMS.unpack(params.raw))

    def _map(self, params: tuple[int, ...]) -> None:
        self._entries, completions, *_ = params
        _head, sq_tail, _mask, _count, _flags, _dropped, sq_array, *_ = params[10:19]
        cq_head, cq_tail, _mask, _count, _overflow, cqes, *_ = params[19:28]
        if not params[5] & _SINGLE_MMAP:
            raise OSError(errno.ENOSYS, "two mappings")
        size = max(sq_array + 4 * self._entries, cqes + _COMPLETION_SIZE * completions)
        flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
        ring = memoryview(mmap.mmap(self._fd, size, flags, offset=_OFFSET_RING))
        entries = memoryview(mmap.mmap(self._fd, _ENTRY_SIZE * self._entries, flags, offset=_OFFSET_ENTRIES))

        words = ring.cast("I")
        self._sq_tail, self._cq_head, self._cq_tail = (words[o // 4 : o // 4 + 1] for o in (sq_tail, cq_head, cq_tail))
        words[sq_array // 4 : sq_array // 4 + self._entries] = memoryview(array("I", range(self._entries)))
        self._completions = completions
        found = ring[cqes : cqes + _COMPLETION_SIZE * completions]
        self._tags, self._results = found.cast("Q")[0::2], found.cast("i")[2::4]

        # Columns of the table of entries. What is the same for every send is written once: the kernel changes nothing.
        self._fds = entries.cast("i")[1::16]
        self._addresses = entries.cast("Q")[2::8]
        self._sizes = entries.cast("I")[6::16]
        entries[0::_ENTRY_SIZE] = bytes([_OP_SEND]) * self._entries
        entries.cast("I")[7::16] = memoryview(array("I", [socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL]) * self._entries)
        entries.cast("Q")[4::8] = memoryview(array("Q", range(self._entries)))  # its tag, given back on completion
        self._tail = 0

    def close(self) -> None:
        """Give it back to the kernel; happens by itself when nobody refers to it."""
        self._finalizer()

    def send_all(self, descriptors: "array[int]", frame: bytes) -> Shortfalls:
        """See `gateway.audience.SendAll`."""
        total = len(descriptors)
        if total < self._few:
            return write_all(descriptors, frame)
        fds = memoryview(descriptors)
        address = ctypes.cast(ctypes.c_char_p(frame), ctypes.c_void_p).value or 0
        shortfalls: Shortfalls = []
        done = 0
        while done < total and not self._is_refused:
            at = self._tail % self._entries
            count = min(total - done, self._entries - at)  # up to where the ring begins anew
            part = slice(at, at + count)
            self._fds[part] = fds[done : done + count]
            self._addresses[part] = memoryview(array("Q", (address,)) * count)
            self._sizes[part] = memoryview(array("I", (len(frame),)) * count)
            for tag, taken in self._submit(count, len(frame)):
                shortfalls.append((done + tag - at, taken))
            done += count
        shortfalls.sort()
        if done < total:
            shortfalls += [(done + index, taken) for index, taken in write_all(descriptors[done:], frame)]
        return shortfalls

    def _submit(self, count: int, size: int) -> Shortfalls:
        """Send the next entries; (tag, bytes taken) of each that did not take all, or was not even looked at."""
        at = self._tail % self._entries
        self._sq_tail[0] = end = (self._tail + count) & 0xFFFF_FFFF
        looked_at = tries = 0
        while (looked_at < count or self._cq_tail[0] != end) and tries < _TRIES:
            accepted = self._system_call(_ENTER, self._fd, count - looked_at, count, _GET_EVENTS, None, 0)
            if accepted >= 0:
                looked_at += accepted
            elif ctypes.get_errno() not in _AGAIN:
                self._refuse(os.strerror(ctypes.get_errno()))
                break
            tries += 1
        else:
            if looked_at < count:
                self._refuse(f"still busy after {tries} tries")
        # All it looked at have completed (the frame is nobody's but ours again), each once: both rings wrap together.
        first = self._tail % self._completions
        found = slice(first, first + looked_at)
        self._tail = (self._tail + looked_at) & 0xFFFF_FFFF
        self._sq_tail[0] = self._tail  # what it did not look at is not to be sent later
        results = self._results[found]
        shortfalls: Shortfalls = []
        if results.tobytes() != (array("i", (size,)) * looked_at).tobytes():
            pairs = zip(self._tags[found].tolist(), results.tolist(), strict=True)
            shortfalls = [(tag, max(result, 0)) for tag, result in pairs if result != size]
        self._cq_head[0] = self._tail
        return shortfalls + [(at + index, 0) for index in range(looked_at, count)]

    def _refuse(self, reason: str) -> None:
        """The kernel gave it and takes it away: it is not asked again for every frame."""
        self._is_refused = True
        logs.get().error("no io_uring any more, a system call per socket from here on", reason=reason)
