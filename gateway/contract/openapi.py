"""OpenAPI 3.1 of the gateway and, with its own server URL, of the write side."""

import re
from typing import Any

from clickhouse.audit import LIMIT_MAX as AUDIT_LIMIT_MAX
from clickhouse.history import LIMIT_MAX as EVENTS_LIMIT_MAX
from clickhouse.replay import SPEED_MAX, SPEED_MIN
from core.names import TOPICS_MAX
from core.settings import Settings
from gateway.api.history import LIMIT_DEFAULT as EVENTS_DEFAULT
from gateway.api.state import LIMIT_DEFAULT, LIMIT_MAX
from gateway.api.updates import WAIT_DEFAULT_S, WAIT_MAX_S
from gateway.contract.schemas import components

Json = dict[str, Any]

VERSION = "1.0.0"
"""Of the contract, not of the software."""

ITEMS_MAX = 10_000
"""Items of one body, as the contract has it."""


def document(settings: Settings) -> Json:
    """The whole description."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Arenacast",
            "version": VERSION,
            "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
            "description": "Votes and match events in, live to every browser. Every error is an RFC 9457 problem. "
            "The messages of the streams are described in /asyncapi.json.",
        },
        "servers": [{"url": "/", "description": "gateway, the read side"}],
        "paths": _named({**_live(), **_state(), **_history(), **_operations(), **_merge(_write(settings))}),
        "components": {
            "schemas": components("#/components/schemas/{name}"),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "ARENACAST_INGEST_KEY"}},
            "responses": {"Problem": _answer("Problem", "A problem.", media="application/problem+json")},
        },
    }


# -- read


def _live() -> Json:
    asked = [
        _query("topics", {"type": "string"}, f"Comma list of up to {TOPICS_MAX} topics.", required=True),
        _query("cursor", {"type": "string"}, "Continue right after this position; an unusable one is a `reset`."),
        _query("types", {"type": "string"}, "Comma list of event types to receive; state kinds come always."),
    ]
    last_id = {
        "name": "Last-Event-ID", "in": "header", "schema": {"type": "string"},
        "description": "What an EventSource sends by itself; wins over `cursor`.",
    }  # fmt: skip
    envelope = _query("envelope", {"const": "1"}, "Every message as a plain `message` event whose data is all of it.")
    wait = _query(
        "wait",
        {"type": "number", "minimum": 0, "maximum": WAIT_MAX_S, "default": WAIT_DEFAULT_S},
        "Seconds to wait for news. Without a cursor the answer comes at once.",
    )
    stream = {
        "200": {
            "description": "Events until the connection ends; as gzip where it is on and accepted.",
            "content": {"text/event-stream": {}},
        }
    }
    switch = {"101": {"description": "Subprotocol `arenacast.v1`; messages as in /asyncapi.json."}}
    return {
        "/api/v1/stream": _get("stream", "Server-Sent Events", stream, [*asked, envelope, last_id], 400),
        "/api/v1/ws": _get("stream", "WebSocket", switch, [{**asked[0], "required": False}, *asked[1:]]),
        "/api/v1/updates": _get("stream", "Long-poll", _ok("Updates"), [*asked, wait, last_id], 400, 503),
    }


def _state() -> Json:
    page = [
        _query("limit", {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT_DEFAULT}, "Items."),
        _query("after", {"type": "string"}, "The `next` of the page before."),
    ]
    match, map_ = _path("match_id"), _path("map_id")
    return {
        "/api/v1/polls": _get("state", "Polls, the newest change first", _ok("PollList"), page, 400, 503),
        "/api/v1/polls/{poll_id}": _get("state", "One poll", _ok("Poll"), [_path("poll_id")], 404, 503),
        "/api/v1/matches": _get("state", "Matches, the newest change first", _ok("MatchList"), page, 400, 503),
        "/api/v1/matches/{match_id}": _get("state", "One match", _ok("Match"), [match], 404, 503),
        "/api/v1/matches/{match_id}/maps/{map_id}": _get("state", "One map", _ok("Map"), [match, map_], 404, 503),
    }


def _history() -> Json:
    map_id = _query("map_id", {"type": "string"}, "Only this map.")
    asked = [
        map_id,
        _query("from", {"type": "string", "format": "date-time"}, "Received at or after."),
        _query("to", {"type": "string", "format": "date-time"}, "Received before."),
        _query(
            "limit",
            {"type": "integer", "minimum": 1, "maximum": EVENTS_LIMIT_MAX, "default": EVENTS_DEFAULT},
            "Events at most; a page may have fewer, even none, and still a `next`.",
        ),
        _query("after", {"type": "string"}, "The `next` of the page before."),
    ]
    replayed = [
        map_id,
        _query(
            "speed",
            {"type": "number", "minimum": SPEED_MIN, "maximum": SPEED_MAX},
            "1 = as it was received; without it as fast as it can be read.",
        ),
        _query(
            "as_of",
            {"type": "string", "format": "date-time"},
            "What was known at that moment: corrections made until then stand in the place of what they correct.",
        ),
        _query("after", {"type": "string"}, "Go on after this position."),
        {
            "name": "Last-Event-ID", "in": "header", "schema": {"type": "string"},
            "description": "What an EventSource sends by itself; wins over `after`.",
        },
    ]  # fmt: skip
    lines = {
        "200": {
            "description": "One event a line, in log order; with `Accept: text/event-stream` as events with the "
            "position as `id` and `bye` at the end. A body that is cut off is not the whole replay.",
            "content": {"application/x-ndjson": {}, "text/event-stream": {}},
        },
        "204": {"description": "An event stream that had everything: stop."},
    }
    paged = [
        _query(
            "limit",
            {"type": "integer", "minimum": 1, "maximum": AUDIT_LIMIT_MAX, "default": EVENTS_DEFAULT},
            "Entries.",
        ),
        asked[-1],
    ]
    match = _path("match_id")
    audit = _get(
        "history", "Who wrote, corrected and read a match", _ok("AuditPage"), [match, *paged], 400, 401, 404, 503
    )
    audit["get"]["security"] = [{"key": []}]
    return {
        "/api/v1/events/{match_id}": _get("history", "Stored events", _ok("EventPage"), [match, *asked], 400, 404, 503),
        "/api/v1/replay/{match_id}": _get(
            "history", "Every stored event", lines, [match, *replayed], 400, 404, 422, 503
        ),
        "/api/v1/audit/{match_id}": audit,
    }


def _operations() -> Json:
    unready = {"503": _answer("Readiness", "Not ready.")}
    metrics = {"200": {"description": "Prometheus text.", "content": {"text/plain": {}}}}
    return {
        "/healthz": _get("operations", "Alive", {"200": {"description": "Alive."}}),
        "/readyz": _get("operations", "Ready, with the state of each dependency", _ok("Readiness") | unready),
        "/metrics": _get("operations", "Metrics", metrics),
    }


# -- write


def _write(settings: Settings) -> Json:
    server = [{"url": f"http://{settings.ingest_host}:{settings.ingest_port}", "description": "ingest, the write side"}]
    poll = _path("poll_id")
    hook = {"name": "server", "in": "path", "required": True, "schema": {"type": "string"}}
    any_json = {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
    changed = {"200": _answer("PollChanged", "Changed, or equal to what it was.")}
    created = {"201": _answer("PollChanged", "Created.")}
    stored = {"202": _answer("Accepted", "In the log.")}
    refusals = (400, 408, 413, 415, 422, 429)
    calls = [
        ("put", "/api/v1/polls/{poll_id}", "Create or change a poll", changed | created, [poll],
         _body("PollDefinition", is_list=False), (400, 408, 409, 413, 415, 422, 429)),
        ("post", "/api/v1/polls/{poll_id}/close", "Close a poll; closing twice is fine",
         {"200": _answer("PollChanged", "Closed.")}, [poll], None, (404, 429)),
        ("post", "/api/v1/votes", "Votes: one, an array, or NDJSON", stored, [], _body("Vote"), (404, *refusals)),
        ("post", "/api/v1/events", "Match events: one, an array, or NDJSON", stored, [], _body("MatchEvent"), refusals),
        ("post", "/hooks/matchzy/{server}", "An event as MatchZy or Get5 sends it",
         {"200": _answer("Accepted", "In the log.")}, [hook], any_json, refusals),
    ]  # fmt: skip
    paths: Json = {}
    for method, path, summary, answers, parameters, body, problems in calls:
        call = _operation("write", summary, answers, parameters, 401, *problems, 503)
        call |= {"security": [{"key": []}], "servers": server}
        if body is not None:
            call["requestBody"] = body
        paths.setdefault(path, {})[method] = call
    return paths


def _merge(paths: Json) -> Json:
    """Write calls beside the read call of the same path."""
    read = _state()
    return {path: {**read.get(path, {}), **calls} for path, calls in paths.items()}


# -- building blocks


def _named(paths: Json) -> Json:
    """Every operation with an id, for generated clients: `put_polls_poll_id`."""
    for path, methods in paths.items():
        words = re.findall(r"[A-Za-z0-9_]+", path.removeprefix("/api/v1"))
        for method, operation in methods.items():
            operation["operationId"] = "_".join((method, *words))
    return paths


def _get(tag: str, summary: str, answers: Json, parameters: list[Json] | None = None, *problems: int) -> Json:
    return {"get": _operation(tag, summary, answers, parameters or [], *problems)}


def _operation(tag: str, summary: str, answers: Json, parameters: list[Json], *problems: int) -> Json:
    refused = {str(status): {"$ref": "#/components/responses/Problem"} for status in sorted(problems)}
    return {"tags": [tag], "summary": summary, "parameters": parameters, "responses": {**answers, **refused}}


def _ok(schema: str) -> Json:
    return {"200": _answer(schema, "As described.")}


def _answer(schema: str, description: str, media: str = "application/json") -> Json:
    return {"description": description, "content": {media: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}}


def _body(schema: str, *, is_list: bool = True) -> Json:
    one = {"$ref": f"#/components/schemas/{schema}"}
    if not is_list:
        return {"required": True, "content": {"application/json": {"schema": one}}}
    many = {"anyOf": [one, {"type": "array", "items": one, "maxItems": ITEMS_MAX}]}
    return {
        "required": True,
        "content": {"application/json": {"schema": many}, "application/x-ndjson": {"schema": one}},
    }


def _query(name: str, schema: Json, description: str, *, required: bool = False) -> Json:
    return {"name": name, "in": "query", "required": required, "schema": schema, "description": description}


def _path(name: str) -> Json:
    schema = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}
    return {"name": name, "in": "path", "required": True, "schema": schema}
