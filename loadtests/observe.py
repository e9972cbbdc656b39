"""Asking a running pipeline what it believes: hot state over REST, the archive over ClickHouse's HTTP, metrics."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import msgspec
import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from core.digest import format_digest

TIMEOUT_S = 30.0

_COUNT = "SELECT count(), uniqExact(event_hash), sum(vote_hash) FROM votes WHERE poll_id = {id:String}"
_OPTIONS = "SELECT option_id, count() FROM votes WHERE poll_id = {id:String} GROUP BY option_id"
_MINUTES = "SELECT option_id, sum(votes) FROM votes_per_minute WHERE poll_id = {id:String} GROUP BY option_id"


class Endpoints(Struct, frozen=True):
    """Where a pipeline is. `clickhouse_url` carries user, password and database; `state_url` serves its metrics."""

    ingest_url: str
    gateway_urls: list[str]
    clickhouse_url: str
    state_url: str
    key: str


class HotPoll(Struct):
    """Fields of `GET /api/v1/polls/{id}` that a proof needs."""

    applied: int = 0
    digest: str = ""
    options: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    voters: int = 0
    replaced: int = 0


class ColdPoll(Struct):
    """What ClickHouse holds of a poll; `minutes` are the sums of `votes_per_minute` by option."""

    rows: int = 0
    ids: int = 0
    digest: str = ""
    options: dict[str, int] = field(default_factory=dict)
    minutes: dict[str, int] = field(default_factory=dict)


class Gateway:
    """One gateway's REST side."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False)

    def poll(self, poll_id: str) -> HotPoll:
        """Hot state of a poll. Raises httpx.HTTPError when there is none."""
        answer = self._client.get(f"/api/v1/polls/{poll_id}").raise_for_status()
        return msgspec.json.decode(answer.content, type=HotPoll)


class ClickHouse:
    """Queries over HTTP, the way an analyst asks them."""

    def __init__(self, url: str) -> None:
        """`url` as in ARENACAST_CLICKHOUSE_URL."""
        parts = urlsplit(url)
        self._client = httpx.Client(
            base_url=f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}",
            headers={
                "X-ClickHouse-User": unquote(parts.username or ""),
                "X-ClickHouse-Key": unquote(parts.password or ""),
            },
            params={"database": parts.path.strip("/") or "default", "output_format_json_quote_64bit_integers": "0"},
            timeout=TIMEOUT_S,
            trust_env=False,
        )  # fmt: skip

    def poll(self, poll_id: str) -> ColdPoll:
        """Raw votes of a poll and its aggregates."""
        found = ColdPoll()
        for rows, ids, digest in self._rows(_COUNT, poll_id):
            found.rows, found.ids, found.digest = rows, ids, format_digest(digest)
        found.options = dict(self._rows(_OPTIONS, poll_id))
        found.minutes = dict(self._rows(_MINUTES, poll_id))
        return found

    def votes(self, poll_id: str) -> int:
        """Number of raw votes of a poll."""
        return int(self._rows("SELECT count() FROM votes WHERE poll_id = {id:String}", poll_id)[0][0])

    def order(self, poll_id: str) -> NDArray[np.uint64]:
        """Event hashes of a poll's votes in the order of the log."""
        sql = "SELECT event_hash FROM votes WHERE poll_id = {id:String} ORDER BY stream_ms, stream_seq FORMAT RowBinary"
        return np.frombuffer(self._ask(sql, poll_id), dtype="<u8").astype(np.uint64)

    def events(self, match_id: str) -> list[str]:
        """Ids of a match's events in the order of the log."""
        sql = "SELECT event_id FROM match_events WHERE match_id = {id:String} ORDER BY stream_ms, stream_seq"
        return [row[0] for row in self._rows(sql, match_id)]

    def _rows(self, sql: str, id_: str) -> list[list[Any]]:
        answer = self._ask(f"{sql} FORMAT JSONCompactEachRow", id_)
        return [msgspec.json.decode(line) for line in answer.splitlines()]

    def _ask(self, sql: str, id_: str) -> bytes:
        answer = self._client.post("/", content=sql, params={"param_id": id_})
        if answer.is_error:
            raise httpx.HTTPStatusError(answer.text[:500], request=answer.request, response=answer)
        return answer.content


class Metrics:
    """One scrape of a service."""

    def __init__(self, url: str) -> None:
        text = httpx.get(f"{url}/metrics", timeout=TIMEOUT_S, trust_env=False).raise_for_status().text
        self._samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def total(self, name: str, **labels: str) -> float | None:
        """Sum over the samples of this name that have these labels; None when there is no such sample."""
        found = [s.value for s in self._samples if s.name == name and labels.items() <= s.labels.items()]
        return sum(found) if found else None

    def buckets(self, name: str, **labels: str) -> dict[float, float]:
        """Upper bound to cumulative count of a histogram, summed over its other labels."""
        found: dict[float, float] = {}
        for sample in self._samples:
            if sample.name == f"{name}_bucket" and labels.items() <= sample.labels.items():
                bound = float(sample.labels["le"])
                found[bound] = found.get(bound, 0.0) + sample.value
        return found


def create_polls(endpoints: Endpoints, definitions: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """PUT every (poll id, definition). Raises httpx.HTTPError."""
    with httpx.Client(base_url=endpoints.ingest_url, timeout=TIMEOUT_S, trust_env=False) as client:
        for poll_id, definition in definitions:
            headers = {"Authorization": f"Bearer {endpoints.key}"}
            client.put(f"/api/v1/polls/{poll_id}", json=definition, headers=headers).raise_for_status()


def quantile(before: dict[float, float], after: dict[float, float], q: float) -> float:
    """The q-th percentile of what a histogram counted between two scrapes, interpolated within its bucket as
    `histogram_quantile` does; 0 when it counted nothing, the last finite bound when it lies above."""
    bounds = sorted(after)
    if any(after[bound] < before.get(bound, 0.0) for bound in bounds):
        before = {}  # the service was restarted in between: its counters began anew
    counts = [after[bound] - before.get(bound, 0.0) for bound in bounds]
    if not counts or counts[-1] <= 0:
        return 0.0
    wanted, below, low = counts[-1] * q / 100, 0.0, 0.0
    for bound, count in zip(bounds, counts, strict=True):
        if count >= wanted:
            return low if bound == float("inf") else low + (bound - low) * (wanted - below) / (count - below)
        below, low = count, bound
    return low
