"""Every route of the gateway, in one table. All need a login but those in OPEN_PATHS, CONSOLE_PATHS and DOCS_PATHS."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from aiohttp import web

from gateway.ag_ui import AgUiHandlers
from gateway.login import Login
from gateway.parts import Parts
from gateway.rest.console import ConsoleHandlers
from gateway.rest.docs import DocsHandlers
from gateway.rest.events import EventHandlers
from gateway.rest.health import HealthHandlers
from gateway.rest.http import Handler, authenticated
from gateway.rest.logout import LogoutHandlers
from gateway.rest.operator import OperatorHandlers
from gateway.rest.runs import RunHandlers
from gateway.rest.threads import ThreadHandlers
from gateway.rest.tickets import TicketHandlers
from servicekit.health import Readiness

__all__ = ["CONSOLE_PATHS", "DOCS_PATHS", "OPEN_PATHS", "add_routes"]

LoginHandler: TypeAlias = Callable[[web.Request, Login], Awaitable[web.StreamResponse]]

# Served without a login. Sockets may log in by their first frame; their handshake checks what they bring.
OPEN_PATHS = frozenset({"/", "/healthz", "/readyz", "/ws", "/ws/{user_id}"})
_PAGE = ("page_size", "page_token")
# The console, where it is served: files, and the sign-in for development. Nobody's data.
CONSOLE_PATHS = frozenset({"/console/{path}", "/console/sign-in"})
# Pages about the API, where they are served.
DOCS_PATHS = frozenset({"/docs", "/docs/{path}"})


@dataclass(frozen=True, slots=True)
class _Route:
    method: str
    path: str
    handler: LoginHandler
    # What its query may have.
    parameters: tuple[str, ...] = ()


def add_routes(  # noqa: PLR0913 -- called once, by the application
    app: web.Application,
    parts: Parts,
    readiness: Readiness,
    socket: Handler,
    events: EventHandlers,
    wait_s: float,
    *,
    console: ConsoleHandlers | None = None,
    docs: DocsHandlers | None = None,
) -> None:
    """Add everything that the gateway serves; the console and the pages about the API if there are any."""
    health = HealthHandlers(parts, readiness)
    router = app.router
    open_handlers: dict[str, Handler] = {
        "/": health.root if console is None else console.root(health.root),
        "/healthz": health.live,
        "/readyz": health.ready,
        "/ws": socket,
        "/ws/{user_id}": socket,
    }
    assert open_handlers.keys() == OPEN_PATHS
    for path, handler in open_handlers.items():
        router.add_route("GET", path, handler)
    if console is not None:
        router.add_route("GET", "/console/{path:.+}", console.page)
        router.add_route("POST", "/console/sign-in", console.sign_in)
    if docs is not None:
        router.add_route("GET", "/docs", docs.index)
        router.add_route("GET", "/docs/{path:.+}", docs.page)
    # An EventSource cannot send headers: these take a single-use token of the address, too.
    router.add_route("GET", "/api/events", events.of_user)
    router.add_route("GET", "/api/runs/{run_id}/events", events.of_run)
    # As streams are: they count as connections, and end with their login.
    ag_ui = AgUiHandlers(parts, events)
    router.add_route("POST", "/ag-ui", ag_ui.run)
    router.add_route("POST", "/ag-ui/{agent}", ag_ui.run)
    for route in _routes(parts, wait_s):
        router.add_route(route.method, route.path, authenticated(route.handler, parts.logins, route.parameters))


def _routes(parts: Parts, wait_s: float) -> list[_Route]:
    runs, threads, tickets = RunHandlers(parts, wait_s), ThreadHandlers(parts), TicketHandlers(parts)
    operator = OperatorHandlers(parts)
    of_runs = ("thread_id", "status", *_PAGE)
    return [
        _Route("POST", "/api/agents/execute", runs.execute),
        _Route("GET", "/api/agents", threads.agents),
        _Route("GET", "/api/agents/status", runs.list, of_runs),
        _Route("GET", "/api/agents/status/{run_id}", runs.get),
        _Route("GET", "/api/runs", runs.list, of_runs),
        _Route("GET", "/api/runs/{run_id}", runs.get),
        _Route("POST", "/api/runs/{run_id}/cancel", runs.cancel),
        _Route("POST", "/api/runs/{run_id}/input", runs.provide_input),
        _Route("GET", "/api/runs/{run_id}/artifacts", runs.artifacts),
        _Route("GET", "/api/runs/{run_id}/artifacts/{name}", runs.artifact),
        _Route("GET", "/api/threads", threads.list, _PAGE),
        _Route("GET", "/api/threads/{thread_id}/messages", threads.messages, _PAGE),
        _Route("DELETE", "/api/threads/{thread_id}", threads.delete),
        _Route("POST", "/api/tickets", tickets.ticket),
        _Route("POST", "/api/socket-tokens", tickets.socket_token),
        _Route("POST", "/api/logout", LogoutHandlers(parts).logout),
        _Route("GET", "/api/operator/gateway", operator.gateway),
        _Route("GET", "/api/operator/overview", operator.overview),
    ]
