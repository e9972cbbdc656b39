"""`/openapi.json`, `/asyncapi.json`, `/schemas/{name}.json`."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from core.http import json_response
from core.problem import Problem
from core.settings import Settings
from gateway.contract import asyncapi, openapi
from gateway.contract.schemas import documents
from gateway.frames import encode_json


def routes(settings: Settings) -> list[Route]:
    """The endpoints."""

    async def openapi_json(_request: Request) -> Response:
        return json_response(openapi.document(settings))

    async def asyncapi_json(_request: Request) -> Response:
        return json_response(asyncapi.document())

    async def schema(request: Request) -> Response:
        found = documents().get(request.path_params["name"])
        if found is None:
            raise Problem(404, "no such schema")
        return Response(encode_json(found), media_type="application/schema+json")

    return [
        Route("/openapi.json", openapi_json),
        Route("/asyncapi.json", asyncapi_json),
        Route("/schemas/{name}.json", schema),
    ]
