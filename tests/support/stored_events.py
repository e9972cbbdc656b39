"""Rows of `match_events` as the archive would have inserted them, for tests of reading."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from clickhouse.client import ClickHouse
from clickhouse.tables import MATCH_EVENTS

T0 = 1_795_300_000_000


def payload_of(ms: int, seq: int) -> bytes:
    """What `Stored.add` stores by default."""
    return f'{{"at":"{ms}.{seq}"}}'.encode()


class Stored:
    """Puts events of one shard into `match_events`; every call is an insert, hence a part of its own."""

    def __init__(self, clickhouse: ClickHouse) -> None:
        self.clickhouse = clickhouse
        self._inserts = 0

    async def add(self, *positions: tuple[int, int], payloads: Sequence[bytes] | None = None, **values: Any) -> None:
        """Events at (ms after T0, seq); `values` are columns that differ from the defaults."""
        rows = []
        for index, (ms, seq) in enumerate(positions):
            known: dict[str, Any] = {
                "stream_epoch": 1, "stream_ms": T0 + ms, "stream_seq": seq, "event_id": f"e{ms}.{seq}",
                "match_id": "m1", "map_id": "1", "type": "round_end", "revision": 1, "source": "api", "ts": T0 + ms,
                "received_at": T0 + ms,
                "payload": payloads[index] if payloads else payload_of(ms, seq), **values,
            }  # fmt: skip
            rows.append(tuple(known.get(field.name, _empty(field.type)) for field in MATCH_EVENTS.schema))
        self._inserts += 1
        settings = {"async_insert": 0, "insert_deduplication_token": f"t{self._inserts}"}
        await self.clickhouse.insert(
            MATCH_EVENTS.name, MATCH_EVENTS.columns, MATCH_EVENTS.encode(rows), settings, timeout_s=30.0
        )


def _empty(kind: pa.DataType) -> Any:
    return 0 if pa.types.is_integer(kind) or pa.types.is_timestamp(kind) else ""
