"""Options of a subscriber's socket: bounded kernel memory, and an end for peers that vanished without a word."""

import contextlib
import socket

SNDBUF_BYTES = 64 * 1024
"""Asked for; Linux doubles it. It holds 100 ms of 5 Mbit/s, and 10,000 readers that stand still cost 1.3 GB at most
instead of the 40 GB that automatic tuning would allow them."""

DEAD_AFTER_SPARE_S = 15.0
"""TCP_USER_TIMEOUT beyond the longest lag: it also counts while a reader that is alive keeps its window closed, and who
reads too slowly is to be told so with a close code, not cut off by the kernel."""

IDLE_S, PROBE_S, PROBES = 30, 10, 3


def tune(sock: socket.socket, lag_max_s: float) -> None:
    """Set what the platform has; a unix socket has none of it. `lag_max_s`: after this the hub evicts by itself."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    options = [
        (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
        (socket.SOL_SOCKET, "SO_SNDBUF", SNDBUF_BYTES),
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", IDLE_S),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", PROBE_S),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", PROBES),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", int((lag_max_s + DEAD_AFTER_SPARE_S) * 1000)),
    ]
    for level, name, value in options:
        option = getattr(socket, name, None)
        if option is not None:
            with contextlib.suppress(OSError):  # the peer may be gone already; its end is noticed at the first write
                sock.setsockopt(level, option, value)
