"""Bounds of what clients can make the process do."""

import msgspec


class Limits(msgspec.Struct, frozen=True):
    """Units are the last word of a name."""

    body_max_bytes: int = 256 * 1024 * 1024  # of one request, as sent and as decoded
    bodies_max_bytes: int = 1024 * 1024 * 1024  # of all requests together
    running_max: int = 16  # statements at a time; each takes as many threads of the engine as there are cores
    waiting_max: int = 128  # statements that wait for a place; beyond it 503
    wait_max_s: float = 30.0  # for a place
    receive_timeout_s: float = 30.0  # between two pieces of a body
    send_timeout_s: float = 30.0  # for a reader to take a piece of a result
    sessions_max: int = 1000
    connections_max: int = 1024
    drain_s: float = 5.0  # SIGTERM: statements may go on this long, then they are cancelled
