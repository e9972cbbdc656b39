"""The HTTP protocol of all our servers with the bounds of this one."""

from core.http_protocol import GuardedProtocol


class StatementProtocol(GuardedProtocol):
    """Statements and parameters may be in the URL, and bodies may be large."""

    head_bytes_max = 1024 * 1024  # as much as a ClickHouse server takes
    message_timeout_s = 600.0  # in all; the endpoint bounds the time between two pieces
