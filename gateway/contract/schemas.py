"""JSON Schemas of everything in the contract, by name."""

from functools import cache
from typing import Any

import msgspec

from clickhouse.audit import AuditPage
from core import events
from core.names import RESERVED_TYPES
from gateway.contract import messages
from gateway.resume import Verdict

_READ: tuple[type, ...] = (
    messages.Tally, messages.PollChanged, messages.Poll, messages.PollList, messages.MapState, messages.Map,
    messages.Match, messages.MatchList, messages.Prediction, messages.StoredEvent, messages.EventPage, AuditPage,
    messages.Message, messages.Updates, messages.WelcomeData, messages.HeartbeatData, messages.ByeData,
    messages.SubscribedData, messages.UnsubscribedData, messages.SnapshotData, messages.Subscribe,
    messages.Unsubscribe, messages.Accepted, messages.Problem, messages.Readiness, Verdict,
)  # fmt: skip
_WRITTEN: tuple[type, ...] = (events.Vote, events.MatchEvent, events.PollDefinition)


KINDS = {
    "tally": "Tally", "poll": "PollChanged", "state": "MapState", "prediction": "Prediction",
    "snapshot": "SnapshotData",
    "welcome": "WelcomeData", "heartbeat": "HeartbeatData", "bye": "ByeData", "vote": "Vote", "event": "MatchEvent",
    "message": "Message", "problem": "Problem", "updates": "Updates",
}  # fmt: skip
"""Name of a message kind, or of what a client writes -> its schema."""


def components(template: str) -> dict[str, Any]:
    """Name -> schema, references made from `template` (`…{name}…`)."""
    _, found = msgspec.json.schema_components([*_READ, *_WRITTEN], ref_template=template)
    schemas = {name: _portable(schema) for name, schema in sorted(found.items())}
    # What ingest checks beyond the struct: names that would forge another message, and the id in the path.
    schemas["MatchEvent"]["properties"]["type"]["not"] = {"enum": sorted(RESERVED_TYPES)}
    schemas["PollDefinition"]["required"].remove("poll_id")
    return schemas


@cache
def documents() -> dict[str, dict[str, Any]]:
    """Name -> schema as a document of its own, for `/schemas/{name}.json`."""
    draft = "https://json-schema.org/draft/2020-12/schema"
    found = {name: {"$schema": draft, **schema} for name, schema in components("/schemas/{name}.json").items()}
    # Kinds are written in lower case in messages, and looked up like that too.
    return found | {kind: found[name] for kind, name in KINDS.items()}


def _portable(schema: Any) -> Any:
    """Patterns in the dialect of JSON Schema: Python's `\\Z` is its `$`."""
    if isinstance(schema, dict):
        return {
            key: value.replace("\\Z", "$") if key == "pattern" and isinstance(value, str) else _portable(value)
            for key, value in schema.items()
        }
    return [_portable(part) for part in schema] if isinstance(schema, list) else schema
