"""What analysts may see of the raw tables: a decision about every column, and the key that hides voters.

The views stand in migrations/0012_analysts.sql. A raw column that is new reaches nobody by itself, because the views
name their columns; the tests fail until it stands here, so that leaving it out is a decision, too.
"""

import secrets
import time
from collections.abc import Mapping

import pyarrow as pa

from clickhouse.client import DATABASE, ClickHouse
from clickhouse.tables import Table

_POSITION = ("shard", "stream_epoch", "stream_ms", "stream_seq", "stream_k")

SHOWN: Mapping[str, frozenset[str]] = {
    "votes": frozenset({"poll_id", "option_id", "source", "weight", "ts", "received_at"}),
    "match_events": frozenset(
        {
            "match_id", "map_id", "round_no", "type", "revision", "source", "ts", "received_at", "stream_ms",
            "stream_seq",
        }
    ),
    "predictions": frozenset(
        {"match_id", "map_id", "round_no", "p_team1", "model", "ts", "stream_ms", "stream_seq"}
    ),
}  # fmt: skip
"""Columns that the view of the same name shows as they are."""

HIDDEN: Mapping[str, Mapping[str, str]] = {
    "votes": {
        **dict.fromkeys(_POSITION, "joins a vote to the live messages, and answers no question about polls"),
        "voter_hash": "the same in all polls; `voter` stands for it",
        "event_hash": "ids of events may be made from ids of persons, and a plain hash can be tried against guesses",
        "vote_hash": "the same",
        "archived_at": "in `latency`",
    },
    "match_events": {
        "shard": "answers no question about matches",
        "stream_epoch": "the same",
        "event_id": "made by sources as they like",
        "payload": "names, chat and ids of players",
        "corrects": "an event_id; `revision` tells that there is an earlier one",
        "correlation": "leads to logs, and chosen by senders as they like",
        "archived_at": "in `latency`",
    },
    "predictions": dict.fromkeys(("shard", "stream_epoch", "stream_k"), "answers no question about matches"),
    **{
        name: {"*": f"through {views}"}
        for name, views in {
            "rounds": "`round_metrics`",
            "map_states": "`map_metrics`",
            "match_states": "`matches` and `match_metrics`",
            "poll_states": "`polls`, `poll_lives`",
            "applied_batches": "`latency`",
            "ratings": "`elo_ratings` and `team_ratings`",
            "analyst_keys": "nothing: it is the secret",
            "audit": "nothing: who read what is for operators",
            "schema_migrations": "nothing",
            "rebuild_fences": "nothing: it keeps late statements of the archive out",
        }.items()
    },
}
"""Columns that they do not show, and why; "*" = the table has no view of its own."""

_KEYS = Table(
    "analyst_keys",
    pa.schema([("created_at", pa.timestamp("ms", tz="UTC")), ("k0", pa.uint64()), ("k1", pa.uint64())]),
    ("created_at",),
)


def analysts_database(database: str) -> str:
    """Name of the analysts' database that belongs to `database`."""
    return "an" if database == DATABASE else f"{database}_an"


async def ensure_key(clickhouse: ClickHouse, *, renew: bool = False) -> None:
    """Draw the key that `votes` hides voters with, unless there is one. `renew` puts a new one in its place.

    The key travels as data and not in a statement's text, which servers log.
    """
    if renew:
        await clickhouse.command("TRUNCATE TABLE analyst_keys")
    if not renew and await clickhouse.query("SELECT 1 FROM analyst_keys LIMIT 1"):
        return
    row = (time.time_ns() // 1_000_000, secrets.randbits(64), secrets.randbits(64))
    settings = {"async_insert": 0, "insert_deduplication_token": secrets.token_hex(16)}
    await clickhouse.insert(_KEYS.name, _KEYS.columns, _KEYS.encode([row]), settings, timeout_s=30.0)
