"""Connections kept between requests, by user and `session_id`. Thread-safe."""

import threading
import time
from collections.abc import Callable

from clickhouse.embedded.engine import Connection
from clickhouse.embedded.errors import ClickHouseError, Code

Key = tuple[str, str]


class Kept:
    """A session's connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.has_own_settings = False  # after a SET statement
        self.is_busy = True
        self.expires_at = 0.0


class Sessions:
    """At most `limit` of them (0.1 MB each and what their temporary tables hold); a further one is refused."""

    def __init__(
        self, connect: Callable[[str], Connection], limit: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._connect = connect
        self._limit = limit
        self._clock = clock
        self._sessions: dict[Key, Kept] = {}
        self._lock = threading.Lock()

    def take(self, key: Key, *, must_exist: bool) -> Kept:
        """The session, until `give_back`. Raises ClickHouseError when it is in use, missing, too many."""
        self.expire()
        with self._lock:
            session = self._sessions.get(key)
            if session is None:
                if must_exist:
                    raise ClickHouseError(Code.SESSION_NOT_FOUND, "Session not found")
                if len(self._sessions) >= self._limit:
                    raise ClickHouseError(
                        Code.TOO_MANY_SIMULTANEOUS_QUERIES, f"Too many sessions, at most {self._limit} at a time"
                    )
                session = self._sessions[key] = Kept(self._connect(key[0]))
            elif session.is_busy:
                raise ClickHouseError(Code.SESSION_IS_LOCKED, "Session is locked by a concurrent client")
            session.is_busy = True
        return session

    def give_back(self, key: Key, timeout_s: float) -> None:
        """Keep it for `timeout_s` from now on; 0 or less closes it."""
        with self._lock:
            session = self._sessions[key]
            session.is_busy = False
            session.expires_at = self._clock() + timeout_s
        self.expire()

    def expire(self) -> None:
        """Close what nobody has used in time."""
        now = self._clock()
        with self._lock:
            over = [key for key, session in self._sessions.items() if not session.is_busy and session.expires_at <= now]
            closing = [self._sessions.pop(key).connection for key in over]
        for connection in closing:
            connection.close()

    def close(self) -> None:
        """Close all that are not in use."""
        with self._lock:
            idle = [key for key, session in self._sessions.items() if not session.is_busy]
            closing = [self._sessions.pop(key).connection for key in idle]
        for connection in closing:
            connection.close()
