"""`/openapi.json`, `/asyncapi.json`, `/schemas/{name}.json`."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from core.problem import Problem
from core.settings import Settings
from gateway.contract import asyncapi, openapi
from gateway.contract.schemas import documents
from gateway.frames import encode_json

CACHED = {"Cache-Control": "public, max-age=3600"}


def routes(settings: Settings) -> list[Route]:
    """The endpoints. The documents are encoded once."""
    of_http, of_streams = encode_json(openapi.document(settings)), encode_json(asyncapi.document())

    async def openapi_json(_request: Request) -> Response:
        return Response(of_http, headers=CACHED, media_type="application/json")

    async def asyncapi_json(_request: Request) -> Response:
        return Response(of_streams, headers=CACHED, media_type="application/json")

    async def schema(request: Request) -> Response:
        found = documents().get(request.path_params["name"])
        if found is None:
            raise Problem(404, "no such schema")
        return Response(encode_json(found), headers=CACHED, media_type="application/schema+json")

    return [
        Route("/openapi.json", openapi_json),
        Route("/asyncapi.json", asyncapi_json),
        Route("/schemas/{name}.json", schema),
    ]
