"""docs/protocol.md names what there is: every route, close code, frame, kind of event and reason for a reset."""

from __future__ import annotations

import re
from pathlib import Path
from unittest.mock import MagicMock

from aiohttp import web

from carrel.events import EVENTS
from gateway.close_codes import CloseCode
from gateway.frames import _RULES
from gateway.rest.routes import add_routes
from gateway.tally import GatewayStatistics, Tally
from tests.support.asyncapi import GATEWAY, messages_of, schema_of

PAGE = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text(encoding="utf-8")
_STREAMED = re.compile(r"`(GET|POST|DELETE) (/[^`?]*)`")


async def _nothing(_request: web.Request) -> web.StreamResponse:
    raise NotImplementedError


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_route_is_there_and_no_other() -> None:
    application = web.Application()
    events = MagicMock(of_run=_nothing, of_user=_nothing)
    console = MagicMock(root=lambda otherwise: otherwise, page=_nothing, sign_in=_nothing)
    docs = MagicMock(index=_nothing, page=_nothing)
    add_routes(application, MagicMock(), MagicMock(), _nothing, events, 1.0, console=console, docs=docs)
    served = {f"{route.method} {route.resource.canonical}" for route in application.router.routes() if route.resource}
    told = {f"{method} {path}" for method, path in _STREAMED.findall(PAGE)}
    # An address after "·" that belongs to the one before it is written without its beginning.
    told |= {"GET /api/runs/{run_id}/artifacts/{name}"} if "`GET …/artifacts/{name}`" in PAGE else set()
    told = {route for route in told if "…" not in route}
    assert told == served


def test_every_close_code_has_its_row_and_no_other() -> None:
    rows = re.findall(r"^\| (4\d{3}) \| `(\w+)` \|", PAGE, re.MULTILINE)
    assert rows == [(str(int(code)), code.name.lower()) for code in CloseCode]


def test_every_frame_kind_and_reason_is_there() -> None:
    rows = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    assert set(_RULES) <= rows
    assert {name for name in messages_of(GATEWAY) if not name.startswith("event:")} <= rows
    assert set(EVENTS) <= rows
    assert set(schema_of("reset")["properties"]["reason"]["enum"]) <= rows


def test_every_figure_that_operators_read_has_its_row() -> None:
    part = PAGE.split("### What a gateway has open", 1)[1].split("\n### ", 1)[0]
    rows = {name for row in re.findall(r"^\| (`.*?) \|", part, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    told = GatewayStatistics.of(Tally(), [], connections=0, users=0, ring_bytes=0).to_json()
    assert rows == {*told, *told["totals"]}


def test_links_within_the_page_lead_somewhere() -> None:
    assert set(re.findall(r"\]\(#([a-z0-9-]+)\)", PAGE)) <= _anchors(PAGE)
