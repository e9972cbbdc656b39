"""AsyncAPI 3.0 of the streams: what is sent on SSE and WebSocket, and what a WebSocket client may ask for."""

from typing import Any

from gateway.contract.openapi import VERSION
from gateway.contract.schemas import components

Json = dict[str, Any]

_KINDS: dict[str, tuple[str, str]] = {
    "welcome": ("WelcomeData", "Always first, no id: the verdict on the cursor, per topic. On SSE with `retry:`."),
    "snapshot": ("SnapshotData", "State: full hot state of a topic; live messages continue right after its id."),
    "poll": ("PollChanged", "State: the definition of a poll, when it changes."),
    "tally": ("Tally", "State: counts of a poll, absolute."),
    "state": ("MapState", "State: hot state of a map, absolute."),
    "prediction": ("Prediction", "State: win probability after a round."),
    "match_event": ("StoredEvent", "Event: `round_end`, `going_live`, …; never dropped, never reordered, none twice."),
    "heartbeat": ("HeartbeatData", "At least every 15 s on an idle connection; its id moves the cursor."),
    "bye": ("ByeData", "No id: the server is about to close, reconnect after `retry_ms`."),
}
_ANSWERS: dict[str, tuple[str, str]] = {
    "subscribed": ("SubscribedData", "Answer to `subscribe`, with its `ref`."),
    "unsubscribed": ("UnsubscribedData", "Answer to `unsubscribe`, with its `ref`."),
    "error": ("Problem", "A request was wrong; the connection stays unless it cannot go on."),
}
_WITHOUT_TOPIC = {"welcome", "heartbeat", "bye", *_ANSWERS}
_WITHOUT_ID = {"welcome", "bye", *_ANSWERS}

_CODES = {
    1001: "shutdown", 1012: "drain, reconnect now", 1013: "overloaded, come back later", 4000: "bad request",
    4001: "unauthorised", 4003: "forbidden (origin)", 4008: "too slow, reconnect with your cursor",
}  # fmt: skip


def document() -> Json:
    """The whole description."""
    told = [*_KINDS]
    codes = "; ".join(f"{code} {meaning}" for code, meaning in _CODES.items())
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Arenacast streams",
            "version": VERSION,
            "description": "The same messages on every transport. A slow reader gets every event, and of state "
            "messages only the newest of each kind; past a bound its connection is closed, and its cursor stays good.",
        },
        "channels": {
            "sse": {
                "address": "/api/v1/stream",
                "title": "Server-Sent Events",
                "description": "`id:` the cursor, `event:` the kind, `data:` the data with `topic` as its first key; "
                "with `envelope=1` plain `message` events whose data is the message as described here.",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in told},
            },
            "ws": {
                "address": "/api/v1/ws",
                "title": "WebSocket, subprotocol arenacast.v1",
                "description": f"A text message holds one or more messages, one a line. Close codes: {codes}.",
                "messages": {
                    name: {"$ref": f"#/components/messages/{name}"}
                    for name in (*told, *_ANSWERS, "subscribe", "unsubscribe")
                },
            },
        },
        "operations": {
            "streamEvents": _operation("send", "sse", told, "live messages of the topics in the URL"),
            "sendMessages": _operation("send", "ws", [*told, *_ANSWERS], "live messages and answers to requests"),
            "takeRequests": _operation("receive", "ws", ["subscribe", "unsubscribe"], "requests"),
        },
        "components": {
            "messages": {name: _message(name, *part) for name, part in (_KINDS | _ANSWERS).items()} | _requests(),
            "schemas": components("#/components/schemas/{name}"),
        },
    }


def _operation(action: str, channel: str, names: list[str], summary: str) -> Json:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": summary,
        "messages": [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in names],
    }


def _message(name: str, schema: str, summary: str) -> Json:
    event: Json = {"type": "string", "description": "The type of the event."}
    properties: Json = {"event": event if name == "match_event" else {"const": name}}
    required = ["event", "data"]
    if name not in _WITHOUT_TOPIC:
        properties["topic"] = {"type": "string"}
        required.append("topic")
    if name not in _WITHOUT_ID:
        properties["id"] = {"type": "string", "description": "The cursor."}
        required.append("id")
    if name in _ANSWERS:
        properties["ref"] = {"type": ["string", "integer"]}
    properties["data"] = {"$ref": f"#/components/schemas/{schema}"}
    payload = {"type": "object", "required": required, "properties": properties}
    return {"name": name, "summary": summary, "contentType": "application/json", "payload": payload}


def _requests() -> Json:
    return {
        name: {
            "name": name,
            "summary": summary,
            "contentType": "application/json",
            "payload": {"$ref": f"#/components/schemas/{schema}"},
        }
        for name, schema, summary in (
            ("subscribe", "Subscribe", "Request: follow topics, from a cursor if there is one."),
            ("unsubscribe", "Unsubscribe", "Request: stop following topics."),
        )
    }
