"""Free TCP ports on loopback."""

import socket


def free_port() -> int:
    """A port that was free a moment ago. Bound first and closed, so the system will not hand it out again at once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
