"""MatchZy (CS2) and Get5 (CS:GO, and CS2 plugins that speak its format): one body, one match event. Pure.

What becomes of a body
    match_id   `<server>-<matchid>`; without a matchid (Get5 before a match, or "") `<server>-none`
    map_id     map_number as sent (0-based); `series` for what belongs to no map: events without a map_number, and
               vetoes and picks, where MatchZy counts maps from 1 and Get5 from 0
    type       `event`; reserved, or not of the contract's form: `x_` and what is left of it, so that a fork's
               "Round End" is never taken for a `round_end`
    round_no   the round that the event belongs to, counted from 1: for `round_end` the sum of both scores, where
               they are given (a restored round just shows lower ones); else MatchZy's `round_number` as it is
               (completed rounds), Get5's plus 1 (it counts from 0)
    source     `get5` when its headers say so or matchid is a text or missing, else `matchzy` (matchid is a number)
    data       the whole body, without `ip_address` at any depth (personal data that nobody needs)
    event_id   hash of (server, body) and the time of receipt: an equal body within 30 s is suppressed by that hash,
               later it is a new event

An id that is too long or holds other characters is replaced by its beginning, made harmless, and a hash of the whole,
so the same names always give the same id and different ones different ids. Unknown events are kept.

Sources: MatchZy 0.8.15 and Get5's documented events, with their differences, as they stand in the fixtures' README.
"""

import re
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from core.events import MatchEvent, header
from core.names import RESERVED_TYPES, SERIES, is_event_type, is_id, match_topic
from core.problem import ItemError
from ingest.append import Group
from ingest.decode import DEPTH_MAX, depth, event_entry, invalid_items, json_value

ROUND_NO_MAX = 10_000
_OF_NO_MAP = frozenset({"series_start", "series_end", "map_vetoed", "map_picked", "side_picked"})
_PERSONAL = frozenset({"ip_address"})


def group(body: bytes, server: str, headers: Mapping[str, str], received_us: int, correlation: str) -> Group:
    """The body as a group for the log. Raises Problem 400 when it is not JSON, 422 when it is no event."""
    event, suppression = match_event(body, server, headers, received_us)
    entry, fault = event_entry(event)
    if fault is not None:
        raise invalid_items([ItemError(0, *fault)])
    topic = match_topic(event.match_id, event.map_id)
    head = header("match", topic, received_us, correlation)
    return Group("match", topic, head, [event.event_id, entry], [event.source], suppression)


def match_event(body: bytes, server: str, headers: Mapping[str, str], received_us: int) -> tuple[MatchEvent, str]:
    """The event, and the hash by which an equal body within 30 s is recognised."""
    fields = json_value(body, dict[str, Any])
    if depth(fields) > DEPTH_MAX:
        raise invalid_items([ItemError(0, "", f"nested more than {DEPTH_MAX} levels deep")])
    name = fields.get("event")
    if not isinstance(name, str) or not name:
        raise invalid_items([ItemError(0, "event", "must be the name of an event")])
    source = _source(fields, headers)
    digest = _hash(f"{server}\0".encode() + body)
    event = MatchEvent(
        event_id=f"{digest}-{received_us}",
        match_id=safe_id(f"{server}-{_text(fields.get('matchid')) or 'none'}"),
        map_id=SERIES if name in _OF_NO_MAP else safe_id(_text(fields.get("map_number")) or SERIES),
        type=safe_type(name),
        round_no=_round_no(name, fields, source),
        source=source,
        data=_without_personal(fields),
    )
    return event, digest


def safe_id(text: str) -> str:
    """`text` if it is an id, else one made from it: the same for the same text, different for different texts."""
    if is_id(text):
        return text
    return f"{re.sub('[^A-Za-z0-9_-]', '_', text)[:47]}-{_hash(text.encode())}"


def safe_type(name: str) -> str:
    """`name` if it may be the type of an event, else `x_` and what is left of it."""
    if is_event_type(name):
        return name
    return "x_" + re.sub("[^a-z0-9_]", "_", name.lower())[:62] if name not in RESERVED_TYPES else f"x_{name}"


def _source(fields: Mapping[str, Any], headers: Mapping[str, str]) -> str:
    is_get5 = "get5-version" in headers or "get5-serverid" in headers or "Get5" in headers.get("user-agent", "")
    return "get5" if is_get5 or not isinstance(fields.get("matchid"), int | float) else "matchzy"


def _round_no(name: str, fields: Mapping[str, Any], source: str) -> int | None:
    number = None
    if name == "round_end":
        scores = [team.get("score") if isinstance(team, dict) else None for team in map(fields.get, ("team1", "team2"))]
        if all(_is_count(score) for score in scores):
            number = sum(scores)  # type: ignore[arg-type]
    if number is None and _is_count(fields.get("round_number")):
        number = fields["round_number"] + (source == "get5")
    return number if number is not None and number <= ROUND_NO_MAX else None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _text(value: object) -> str:
    """A number or text as part of an id, "" for everything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _without_personal(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_personal(item) for key, item in value.items() if key not in _PERSONAL}
    return [_without_personal(item) for item in value] if isinstance(value, list) else value


def _hash(text: bytes) -> str:
    return blake2b(text, digest_size=8).hexdigest()
