"""JSON Schemas of everything in the contract, by name."""

from functools import cache
from typing import Any

import msgspec

from core import events
from gateway.contract import messages
from gateway.resume import Verdict

_READ: tuple[type, ...] = (
    messages.Tally, messages.PollChanged, messages.Poll, messages.PollList, messages.MapState, messages.Map,
    messages.Match, messages.MatchList, messages.Prediction, messages.StoredEvent, messages.EventPage,
    messages.Message, messages.Updates, messages.WelcomeData, messages.HeartbeatData, messages.ByeData,
    messages.SubscribedData, messages.UnsubscribedData, messages.SnapshotData, messages.Subscribe,
    messages.Unsubscribe, messages.Accepted, messages.Problem, messages.Readiness, Verdict,
)  # fmt: skip
_WRITTEN: tuple[type, ...] = (events.Vote, events.MatchEvent, events.PollDefinition)


def components(template: str) -> dict[str, Any]:
    """Name -> schema, references made from `template` (`…{name}…`)."""
    _, found = msgspec.json.schema_components([*_READ, *_WRITTEN], ref_template=template)
    return {name: _portable(schema) for name, schema in sorted(found.items())}


@cache
def documents() -> dict[str, dict[str, Any]]:
    """Name -> schema as a document of its own, for `/schemas/{name}.json`."""
    draft = "https://json-schema.org/draft/2020-12/schema"
    return {name: {"$schema": draft, **schema} for name, schema in components("/schemas/{name}.json").items()}


def _portable(schema: Any) -> Any:
    """Patterns in the dialect of JSON Schema: Python's `\\Z` is its `$`."""
    if isinstance(schema, dict):
        return {
            key: value.replace("\\Z", "$") if key == "pattern" and isinstance(value, str) else _portable(value)
            for key, value in schema.items()
        }
    return [_portable(part) for part in schema] if isinstance(schema, list) else schema
