"""Every route of the gateway against every kind of wrong token, over a running stack. Enumerated from its router."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final
from unittest.mock import MagicMock

import aiohttp
import pytest
from aiohttp import web
from grpc import aio

from carrel.ids import new_id
from carrel.v1.context_pb2 import UserExecutionContext
from gateway.rest.routes import CONSOLE_PATHS, DOCS_PATHS, OPEN_PATHS, add_routes
from tests.conftest import Eventually
from tests.security.forge import UNAUTHENTICATED, Forge
from tests.security.gateway_calls import ask, bearer, connected, refused
from tests.security.login_tokens import login_claims, login_jwt, wrong_headers, wrong_tokens
from tests.security.rpc_table import ROWS, SERVERS, call, request_for, unary_rows
from tests.support.awake import Awake
from tests.support.stack import RunningStack

# What a good caller is told at each route; everything asked for by id does not exist.
_ANSWERS: Final[Mapping[str, int]] = {
    "GET /": 200,
    "GET /healthz": 200,
    "GET /readyz": 200,
    "GET /ws": 400,
    "GET /ws/{user_id}": 400,
    "POST /api/agents/execute": 200,
    "GET /api/agents": 200,
    "GET /api/agents/status": 200,
    "GET /api/agents/status/{run_id}": 404,
    "GET /api/runs": 200,
    "GET /api/runs/{run_id}": 404,
    "POST /api/runs/{run_id}/cancel": 404,
    "POST /api/runs/{run_id}/input": 404,
    "GET /api/events": 200,
    "GET /api/runs/{run_id}/events": 404,
    "GET /api/runs/{run_id}/artifacts": 404,
    "GET /api/runs/{run_id}/artifacts/{name}": 404,
    "GET /api/threads": 200,
    "GET /api/threads/{thread_id}/messages": 404,
    "DELETE /api/threads/{thread_id}": 404,
    "POST /api/tickets": 200,
    "POST /api/socket-tokens": 201,
    "POST /api/logout": 200,
    "GET /api/operator/gateway": 403,
    "GET /api/operator/overview": 403,
    # No login is asked for; not of the page's own origin.
    "GET /console/{path}": 200,
    "POST /console/sign-in": 403,
    "GET /docs": 200,
    "GET /docs/{path}": 200,
    "POST /ag-ui": 400,
    "POST /ag-ui/{agent}": 200,
}
_OPEN: Final = {"GET /", "GET /healthz", "GET /readyz"}
_SOCKETS: Final = {"GET /ws", "GET /ws/{user_id}"}
_CONSOLE: Final = {"GET /console/{path}", "POST /console/sign-in"}
_DOCS: Final = {"GET /docs", "GET /docs/{path}"}
_LIST_AGENTS: Final = "carrel.v1.AgentInstanceService.ListAgents"
_CLOSED: Final = sorted(_ANSWERS.keys() - _OPEN - _SOCKETS - _CONSOLE - _DOCS)


async def _socket(_request: web.Request) -> web.StreamResponse:
    raise NotImplementedError


def _routes() -> set[str]:
    """Every route of the gateway's router."""
    application = web.Application()
    events = MagicMock(of_run=_socket, of_user=_socket)
    docs = MagicMock(index=_socket, page=_socket)
    console = MagicMock(root=lambda otherwise: otherwise, page=_socket, sign_in=_socket)
    add_routes(application, MagicMock(), MagicMock(), _socket, events, 1.0, console=console, docs=docs)
    found = set()
    for route in application.router.routes():
        assert route.resource is not None
        found.add(f"{route.method} {route.resource.canonical}")
    return found


# The tests.


def test_every_route_has_a_row() -> None:
    assert _routes() == set(_ANSWERS)
    assert {f"GET {path}" for path in OPEN_PATHS} == _OPEN | _SOCKETS
    assert {route.partition(" ")[2] for route in _CONSOLE} == CONSOLE_PATHS
    assert {route.partition(" ")[2] for route in _DOCS} == DOCS_PATHS


@pytest.mark.parametrize("route", sorted(_ANSWERS))
async def test_a_good_token_is_let_in(route: str, stack: RunningStack, http: aiohttp.ClientSession) -> None:
    user = new_id("user")
    status, _, body = await ask(http, route, bearer(stack.token(user)), user_id=user)
    assert status == _ANSWERS[route], body


@pytest.mark.parametrize("route", sorted(_OPEN))
async def test_open_routes_ask_for_nothing_and_tell_nothing_of_users(
    route: str, stack: RunningStack, http: aiohttp.ClientSession
) -> None:
    for headers in ({}, bearer("garbage")):
        status, _, body = await ask(http, route, headers)
        assert status == 200
        assert body.keys() <= {"name", "version", "websocket", "protocol", "execute", "status"}


@pytest.mark.parametrize("route", _CLOSED)
async def test_a_wrong_token_is_refused(
    route: str, stack: RunningStack, forge: Forge, http: aiohttp.ClientSession
) -> None:
    wrong = {name: bearer(token) for name, token in wrong_tokens(stack, forge).items()} | wrong_headers(stack)
    problems = []
    for name, headers in wrong.items():
        status, answer, body = await ask(http, route, headers)
        error = body.get("error", {})
        if status != 401:
            problems.append(f"{name}: {status} {body}")
        elif not answer.get("WWW-Authenticate", "").startswith("Bearer "):
            problems.append(f"{name}: WWW-Authenticate is {answer.get('WWW-Authenticate')!r}")
        elif error.get("code") != ("TOKEN_EXPIRED" if name == "expired" else "TOKEN"):
            problems.append(f"{name}: {error}")
        elif not (error["message"] and error["advice"]):
            problems.append(f"{name}: does not say what to do")
        elif answer.get("Cache-Control") != "no-store":
            problems.append(f"{name}: a cache may keep it")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("route", _CLOSED)
async def test_a_refused_request_s_body_is_not_looked_at(route: str, http: aiohttp.ClientSession) -> None:
    method, _, path = route.partition(" ")
    url = path.format(run_id="bad id", thread_id="default", name="..", agent="nobody")
    async with http.request(method, url, data=b"{not json", params={"unknown": "1"}) as response:
        # `..` as the last part of an address leads elsewhere before it is sent; nothing there is open either.
        assert response.status in {401, 404, 405}
        assert response.status == 401 or "{name}" in path


@pytest.mark.parametrize("path", ["/ws", "/ws/alice"])
async def test_a_wrong_token_is_refused_before_the_upgrade(
    path: str, stack: RunningStack, forge: Forge, http: aiohttp.ClientSession
) -> None:
    for name, token in wrong_tokens(stack, forge).items():
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await http.ws_connect(path, headers=bearer(token))
        assert caught.value.status == 401, name
        assert caught.value.headers is not None
        assert caught.value.headers["WWW-Authenticate"].startswith("Bearer "), name


async def test_a_wrong_token_in_a_connect_frame_closes_for_good(
    stack: RunningStack, forge: Forge, http: aiohttp.ClientSession
) -> None:
    for name, token in wrong_tokens(stack, forge).items():
        error, bye, code = await refused(http, "/ws", {"type": "connect", "token": token})
        assert error["code"] in {"TOKEN", "TOKEN_EXPIRED"}, name
        assert (bye["code"], bye["reconnect"], code) == (4500, False, 4500), name


async def test_a_token_beyond_all_bounds_is_refused(stack: RunningStack, http: aiohttp.ClientSession) -> None:
    secret = stack.state.login_secret.read_bytes().strip()
    token = login_jwt(secret, login_claims(extra="x" * 20_000))
    async with http.get("/api/runs", headers=bearer(token)) as response:
        assert response.status in {400, 401}
    error, _, code = await refused(http, "/ws", {"type": "connect", "token": token})
    assert error["code"] in {"FRAME", "TOKEN"}
    assert code in {4500, 4501}


async def test_a_socket_without_a_token_must_log_in_first(http: aiohttp.ClientSession) -> None:
    for frame in (
        {"type": "agent_execute", "message": "hello", "agent_name": "echo"},
        {"type": "ping"},
        {"type": "connect"},
        {"type": "connect", "token": ""},
    ):
        error, bye, code = await refused(http, "/ws", frame)
        assert error["code"] in {"TOKEN", "FRAME"}
        assert not bye["reconnect"]
        assert code >= 4500


async def test_another_user_s_address_is_refused(stack: RunningStack, http: aiohttp.ClientSession) -> None:
    for path in ("/ws/bob", "/ws/Alice", "/ws/alice%20", "/ws/alice%00", "/ws/alice%2Fbob", "/ws/default"):
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await http.ws_connect(path, headers=bearer(stack.token("alice")))
        assert caught.value.status in {403, 404}, path
    error, _, code = await refused(http, "/ws/bob", {"type": "connect", "token": stack.token("alice")})
    assert (error["code"], code) == ("PERMISSION_DENIED", 4503)
    async with connected(http, "/ws/alice", bearer(stack.token("alice"))) as socket:
        await socket.send_json({"type": "ping"})
        assert (await socket.receive_json(timeout=5))["type"] == "pong"


async def test_a_refresh_for_another_user_is_refused_and_changes_nothing(
    stack: RunningStack, http: aiohttp.ClientSession
) -> None:
    user = new_id("user")
    expired = stack.token(user, lifetime_s=-60)
    async with connected(http, "/ws", bearer(stack.token(user))) as socket:
        for token in (stack.token("bob"), expired, "garbage"):
            await socket.send_json({"type": "refresh", "token": token})
            error = await socket.receive_json(timeout=5)
            assert (error["type"], error["code"]) == ("error", "TOKEN_EXPIRED" if token is expired else "TOKEN")
        await socket.send_json({"type": "refresh", "token": stack.token(user)})
        assert (await socket.receive_json(timeout=5))["type"] == "refreshed"


async def test_no_wrong_token_refreshes_a_login(stack: RunningStack, forge: Forge, http: aiohttp.ClientSession) -> None:
    user = new_id("user")
    async with connected(http, "/ws", bearer(stack.token(user))) as socket:
        for name, token in wrong_tokens(stack, forge).items():
            await socket.send_json({"type": "refresh", "token": token})
            error = await socket.receive_json(timeout=5)
            assert (error["type"], error["code"] in {"TOKEN", "TOKEN_EXPIRED"}) == ("error", True), name
            # Many wrong ones in a row would end the connection.
            await socket.send_json({"type": "ping"})
            assert (await socket.receive_json(timeout=5))["type"] == "pong", name


@pytest.mark.parametrize("path", ["/api/events", "/api/runs/run-1/events"])
async def test_no_wrong_token_opens_a_stream_by_its_address(
    path: str, stack: RunningStack, forge: Forge, http: aiohttp.ClientSession
) -> None:
    wrong = {**wrong_tokens(stack, forge), "a login token": stack.token("alice")}
    for name, token in wrong.items():
        async with http.get(path, params={"socket_token": token}) as response:
            assert response.status == 401, name


async def test_a_signed_out_token_is_refused_at_every_door(
    stack: RunningStack, http: aiohttp.ClientSession, eventually: Eventually
) -> None:
    user = new_id("user")
    token, other = stack.token(user), stack.token(user, lifetime_s=1800)
    async with connected(http, "/ws", bearer(other)) as socket:
        status, _, ticket = await ask(http, "POST /api/tickets", bearer(token))
        assert status == 200
        status, _, _ = await ask(http, "POST /api/logout", bearer(token))
        assert status == 200
        for route in _CLOSED:
            status, _, body = await ask(http, route, bearer(token))
            assert (status, body["error"]["code"]) == (401, "TOKEN"), route
        for path in ("/ws", f"/ws/{user}"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await http.ws_connect(path, headers=bearer(token))
            assert caught.value.status == 401
        error, _, code = await refused(http, "/ws", {"type": "connect", "token": token})
        assert (error["code"], code) == ("TOKEN", 4500)
        await socket.send_json({"type": "refresh", "token": token})
        assert (await socket.receive_json(timeout=5))["code"] == "TOKEN"
        # The other login of the same user goes on.
        await socket.send_json({"type": "ping"})
        assert (await socket.receive_json(timeout=5))["type"] == "pong"
    context = UserExecutionContext(user_id=user, ticket=ticket["ticket"])
    # agent_instance hears of no revocations: what a session may ask of it is the list of agents, which is nobody's.
    asked = {name for name in unary_rows() if "session" in ROWS[name].scopes} - {_LIST_AGENTS}

    async def refused_at(name: str) -> bool:
        async with aio.insecure_channel(stack.address(SERVERS[name.rpartition(".")[0]])) as channel:
            return (await call(channel, name, request_for(name, context)))[0] is UNAUTHENTICATED

    with Awake() as took:
        for name in sorted(asked):
            await eventually(partial(refused_at, name), what=name)
    assert took.seconds < 8


async def test_a_connection_ends_with_its_token(stack: RunningStack, http: aiohttp.ClientSession) -> None:
    async with connected(http, "/ws", bearer(stack.token("alice", lifetime_s=3))) as socket:
        bye = await socket.receive_json(timeout=20)
        end = await socket.receive(timeout=20)
        assert (bye["type"], bye["code"], bye["reconnect"], end.data) == ("bye", 4002, True, 4002)
