"""The pages: live demo, overlay, documentation, and the files they need."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from core.names import is_id
from core.problem import Problem

STATIC = Path(__file__).parent.parent / "static"

_REVALIDATE = {"Cache-Control": "no-cache"}
"""Files have no version in their names, so a browser asks every time whether its copy is still good."""


class Files(StaticFiles):
    """Static files, always revalidated."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The file, or 304."""
        response = await super().get_response(path, scope)
        response.headers.update(_REVALIDATE)
        return response


def routes() -> list[BaseRoute]:
    """The pages and files."""

    def page(name: str) -> Response:
        return FileResponse(STATIC / name, headers=_REVALIDATE)

    async def index(_request: Request) -> Response:
        return page("index.html")

    async def docs(_request: Request) -> Response:
        return page("docs.html")

    async def overlay(request: Request) -> Response:
        if not is_id(request.path_params["poll_id"]):
            raise Problem(404, "poll_id is not an id")
        return page("overlay.html")

    return [
        Route("/", index),
        Route("/docs", docs),
        Route("/overlay/{poll_id}", overlay),
        Mount("/static", Files(directory=STATIC)),
    ]
