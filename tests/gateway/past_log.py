"""An archive behind the output log: rows as the archive consumer writes them, and its committed position."""

import json
import urllib.parse
import urllib.request
from typing import Any
from urllib.parse import unquote, urlsplit

from core import keys
from core.names import parse_topic, shard_of
from core.position import EntryId
from tests.gateway.output_log import OutputLog


class PastLog:
    """The archive consumer of one log. Rows are stored at once, in one insert."""

    def __init__(self, log: OutputLog, database_url: str) -> None:
        self._log = log
        self._url = urlsplit(database_url)

    def query(self, sql: str) -> str:
        """Run a statement."""
        where = f"{self._url.scheme}://{self._url.hostname}:{self._url.port}/?database={self._url.path[1:]}"
        headers = {"X-ClickHouse-User": "default", "X-ClickHouse-Key": unquote(self._url.password or "")}
        request = urllib.request.Request(where, sql.encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            text: str = answer.read().decode()
            return text

    def store(self, topic: str, events: list[tuple[EntryId, str, Any]], epoch: int = 1) -> None:
        """Store events of a topic: (entry, type, data)."""
        parsed = parse_topic(topic)
        rows = [
            {
                "shard": shard_of(topic, self._log.shards), "stream_epoch": epoch, "stream_ms": entry.ms,
                "stream_seq": entry.seq, "event_id": f"e{entry}", "match_id": parsed.id, "map_id": parsed.map_id,
                "type": kind, "ts": entry.ms, "received_at": entry.ms,
                "payload": json.dumps(data, separators=(",", ":")),
            }
            for entry, kind, data in events
        ]  # fmt: skip
        self.query("INSERT INTO match_events FORMAT JSONEachRow\n" + "\n".join(map(json.dumps, rows)))

    def commit(self, shard: int, entry: EntryId) -> None:
        """Everything up to an entry is archived."""
        self._log.client.hset(keys.archive(shard, "events"), "committed", str(entry))

    def selects(self) -> int:
        """SELECTs that the server has begun so far, this one not counted."""
        return int(self.query("SELECT sum(value) FROM system.events WHERE event = 'SelectQuery'")) - 1


def events_of(log: OutputLog, topic: str, first: int, last: int, pad: int = 0) -> list[tuple[EntryId, str, Any]]:
    """Publish events with the numbers `first` to `last` and return them as they are to be archived."""
    found: list[tuple[EntryId, str, Any]] = []
    for n in range(first, last + 1):
        data = {"n": n, "pad": "x" * pad}
        state = {"round_no": n}
        entry = log.apply((topic, [("round_end", False, data), ("state", True, state)], {**state, "status": "live"}))[0]
        found.append((entry, "round_end", data))
    return found
