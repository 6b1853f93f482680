"""docs/openapi.json as tests use it: loaded once, its operations, and the schemas of its answers as validators."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final
from unittest.mock import MagicMock

from aiohttp import web
from jsonschema import Draft202012Validator

from gateway.rest.routes import add_routes

__all__ = ["PATH", "at", "document", "operations", "problems", "served"]

PATH: Final = Path(__file__).resolve().parents[2] / "docs" / "openapi.json"


@cache
def document() -> Mapping[str, Any]:
    """The whole document."""
    loaded: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))
    return loaded


def operations() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every operation by its method and path: ``GET /api/runs``."""
    for path, item in document()["paths"].items():
        for method, operation in item.items():
            yield f"{method.upper()} {path}", operation


def at(reference: str) -> Any:
    """What a reference within the document leads to."""
    found: Any = document()
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


def problems(value: object, schema: Mapping[str, Any]) -> list[str]:
    """What of a value is not as a schema of the document says."""
    validator = Draft202012Validator({**schema, "components": document()["components"]})
    return [f"{list(error.absolute_path)}: {error.message}" for error in validator.iter_errors(value)]


async def _nothing(_request: web.Request) -> web.StreamResponse:
    raise NotImplementedError


def served() -> set[str]:
    """Every route that the gateway serves, with the console and the pages about the API: ``GET /api/runs``."""
    application = web.Application()
    events = MagicMock(of_run=_nothing, of_user=_nothing)
    console = MagicMock(root=lambda otherwise: otherwise, page=_nothing, sign_in=_nothing)
    docs = MagicMock(index=_nothing, page=_nothing)
    add_routes(application, MagicMock(), MagicMock(), _nothing, events, 1.0, console=console, docs=docs)
    return {f"{route.method} {route.resource.canonical}" for route in application.router.routes() if route.resource}
