"""The machine-readable contract: valid, complete, and true of what is really sent."""

from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import msgspec
import pytest
from starlette.routing import Mount, Route

from consumers.reducers import poll as poll_reducer
from consumers.reducers.cs2_map import Cs2Map
from consumers.reducers.series import Series
from core.events import Option, PollDefinition
from core.settings import Settings
from gateway.contract import asyncapi, openapi
from gateway.contract.schemas import components, documents
from tests.gateway.output_log import OutputLog
from tests.gateway.readers import read, reading
from tests.gateway.server import Gateway
from tests.support.waiting import wait_until

DEFINITION = PollDefinition("p1", "Who?", (Option("a", "A"),), voting="last")


@pytest.fixture
def sink() -> str:
    """Documents do not depend on it."""
    return "takeover"


def validate(value: Any, name: str) -> None:
    found = components("#/components/schemas/{name}")
    schema = {**found[name], "components": {"schemas": found}}
    jsonschema.Draft202012Validator(schema).validate(msgspec.json.decode(msgspec.json.encode(value)))


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "$ref":
                yield inner
            else:
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


@pytest.mark.parametrize("document", [openapi.document(Settings()), asyncapi.document()], ids=["openapi", "asyncapi"])
def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = list(references(document))
    assert found
    for reference in found:
        place: Any = document
        for key in reference.removeprefix("#/").split("/"):
            place = place[key.replace("~1", "/")]


def test_schemas_are_schemas_and_stand_alone() -> None:
    for name, schema in documents().items():
        jsonschema.Draft202012Validator.check_schema(schema)
        for reference in references(schema):
            assert reference.removeprefix("/schemas/").removesuffix(".json") in documents(), name


def test_what_the_reducers_write_is_what_the_schemas_say() -> None:
    poll = poll_reducer.create(DEFINITION, 0)
    validate(poll.tally(), "Tally")
    validate(poll.described(), "PollChanged")
    validate({**poll.snapshot(), "cursor": "x"}, "Poll")
    validate(poll.snapshot(), "SnapshotData")
    one_map = Cs2Map("m1", "1")
    validate(one_map.view(), "MapState")
    validate({**one_map.snapshot(), "cursor": "x"}, "Map")
    series = Series("m1")
    validate(series.view(), "MapState")
    validate({**series.snapshot(), "cursor": "x"}, "Map")


@pytest.mark.redis
async def test_documents_are_served_and_cover_every_route(gateway: Gateway) -> None:
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        described = (await client.get("/openapi.json")).json()
        assert described["openapi"].startswith("3.1")
        streams = (await client.get("/asyncapi.json")).json()
        assert streams["asyncapi"].startswith("3.0")
        for name in documents():
            answer = await client.get(f"/schemas/{name}.json")
            assert answer.status_code == 200
            assert answer.json()["$schema"]
        assert (await client.get("/schemas/None.json")).status_code == 404
    served = {route.path for route in _routes(gateway) if not isinstance(route, Mount)}
    pages = {"/", "/docs", "/overlay/{poll_id}", "/openapi.json", "/asyncapi.json", "/schemas/{name}.json"}
    assert served - pages <= set(described["paths"])
    written = {path for path, item in described["paths"].items() if item.keys() & {"put", "post"}}
    assert written == {
        "/api/v1/polls/{poll_id}", "/api/v1/polls/{poll_id}/close", "/api/v1/votes", "/api/v1/events",
        "/hooks/matchzy/{server}",
    }  # fmt: skip


def _routes(gateway: Gateway) -> list[Route]:
    from clickhouse.client import ClickHouse
    from core.redis_client import connect
    from gateway.app import make_app

    settings = gateway.inside.settings
    app = make_app(gateway.inside, connect(settings), ClickHouse(settings.clickhouse_target))
    routes: list[Route] = app._app.routes
    return routes


@pytest.mark.redis
async def test_real_messages_are_as_described(gateway: Gateway, log: OutputLog) -> None:
    payloads = asyncapi.document()["components"]["messages"]
    schemas = asyncapi.document()["components"]["schemas"]
    async with reading(gateway, "ws", ["poll.p1", "match.m1.1"]) as reader:
        messages = await read(reader, 3)
        poll, one_map = poll_reducer.create(DEFINITION, 0), Cs2Map("m1", "1")
        log.apply(("poll.p1", [("poll", True, poll.described()), ("tally", True, poll.tally())], poll.snapshot()))
        event = {"event_id": "e", "match_id": "m1", "map_id": "1", "type": "going_live"}
        log.apply(("match.m1.1", [("going_live", False, event), ("state", True, one_map.view())], one_map.snapshot()))
        messages += await read(reader, 4)
        for message in messages:
            name = message["event"] if message["event"] in payloads else "match_event"
            payload = {**payloads[name]["payload"], "components": {"schemas": schemas}}
            jsonschema.Draft202012Validator(payload).validate(message)
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        for path, name in (
            ("/api/v1/polls", "PollList"), ("/api/v1/polls/p1", "Poll"), ("/api/v1/matches", "MatchList"),
            ("/api/v1/matches/m1", "Match"), ("/api/v1/matches/m1/maps/1", "Map"),
            ("/api/v1/updates?topics=poll.p1", "Updates"), ("/api/v1/polls/none", "Problem"), ("/readyz", "Readiness"),
        ):  # fmt: skip

            async def answers() -> Any:
                return (await client.get(path)).json()  # noqa: B023

            validate(await wait_until(answers), name)


def test_every_operation_has_an_id_of_its_own() -> None:
    paths = openapi.document(Settings())["paths"]
    ids = [operation["operationId"] for methods in paths.values() for operation in methods.values()]
    assert len(ids) == len(set(ids))


def test_a_reserved_type_and_a_definition_without_its_id_are_described_as_ingest_takes_them() -> None:
    event = {"event_id": "e", "match_id": "m", "map_id": "1", "type": "round_end"}
    validate(event, "MatchEvent")
    with pytest.raises(jsonschema.ValidationError):
        validate(event | {"type": "tally"}, "MatchEvent")
    validate({"title": "t", "options": [{"id": "a", "label": "A"}]}, "PollDefinition")


def test_kinds_are_found_by_their_own_names() -> None:
    assert documents()["tally"] == documents()["Tally"]
