"""The gateway's other doors: pages of foreign origins, socket tokens, tickets in exchange for tokens."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
import pytest

from carrel.errors import TokenError
from carrel.ids import new_id
from gateway.login import Login
from gateway.socket_tokens import SignedSocketTokens
from servicekit.identity.keys import load_signing_key
from servicekit.identity.principals import OPERATOR_READ
from tests.security.forge import Forge
from tests.security.gateway_calls import ask, bearer, connected, refused
from tests.support.claims import MemoryClaims
from tests.support.stack import RunningStack

_FOREIGN: Final = (
    "https://evil.example",
    "null",
    "http://localhost.evil.example",
    "http://127.0.0.1.evil.example",
    "http://evil.example#@localhost",
    "http://localhost@evil.example",
    "http://evil.example\\@localhost",
    "https://localhost:443@evil.example:443",
    "http://[::1].evil.example",
    "file://",
    "chrome-extension://abcdef",
    "*",
    "http://*",
    "http://localhost http://evil.example",
    "http://evil.example, http://localhost",
    "http://localhost:0x50",
    "http://2130706433",
)


@pytest.mark.parametrize("origin", _FOREIGN)
async def test_a_page_of_a_foreign_origin_is_refused(
    origin: str, stack: RunningStack, http: aiohttp.ClientSession
) -> None:
    headers = {**bearer(stack.token("alice")), "Origin": origin}
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await http.ws_connect("/ws", headers=headers)
    assert caught.value.status == 403
    for route in ("GET /api/runs", "POST /api/socket-tokens", "POST /api/tickets"):
        status, answer, body = await ask(http, route, headers)
        assert (status, body["error"]["code"]) == (403, "ORIGIN"), route
        assert "Access-Control-Allow-Origin" not in answer
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    async with http.options("/api/tickets", headers=asked) as response:
        assert response.status == 403
        assert "Access-Control-Allow-Origin" not in response.headers


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:8080", "HTTP://LOCALHOST"]
)
async def test_a_page_of_this_machine_is_let_in_in_development(
    origin: str, stack: RunningStack, http: aiohttp.ClientSession
) -> None:
    headers = {**bearer(stack.token("alice")), "Origin": origin}
    async with connected(http, "/ws", headers) as socket:
        await socket.send_json({"type": "ping"})
        assert (await socket.receive_json(timeout=5))["type"] == "pong"
    status, answer, _ = await ask(http, "GET /api/runs", headers)
    assert (status, answer["Access-Control-Allow-Origin"]) == (200, origin)
    assert "Access-Control-Allow-Credentials" not in answer


# Socket tokens.


async def _socket_token(http: aiohttp.ClientSession, stack: RunningStack, user: str) -> str:
    status, _, body = await ask(http, "POST /api/socket-tokens", bearer(stack.token(user)))
    assert status == 201
    token: str = body["socket_token"]
    return token


async def test_a_socket_token_logs_in_once(stack: RunningStack, http: aiohttp.ClientSession) -> None:
    user = new_id("user")
    frame = {"type": "connect", "socket_token": await _socket_token(http, stack, user)}
    async with http.ws_connect(f"/ws/{user}") as socket:
        await socket.send_json(frame)
        assert (await socket.receive_json(timeout=5))["type"] == "connected"
    error, _, code = await refused(http, "/ws", frame)
    assert (error["code"], code) == ("TOKEN", 4500)


async def test_a_socket_token_that_failed_elsewhere_is_used_up(
    stack: RunningStack, http: aiohttp.ClientSession
) -> None:
    frame = {"type": "connect", "socket_token": await _socket_token(http, stack, "alice")}
    error, _, code = await refused(http, "/ws/bob", frame)
    assert (error["code"], code) == ("PERMISSION_DENIED", 4503)
    error, _, _ = await refused(http, "/ws", frame)
    assert error["code"] == "TOKEN"


async def test_a_socket_token_is_no_bearer_token_and_no_other_text_is_one(
    stack: RunningStack, http: aiohttp.ClientSession
) -> None:
    token = await _socket_token(http, stack, "alice")
    status, _, _ = await ask(http, "GET /api/runs", bearer(token))
    assert status == 401
    for frame in (
        {"type": "connect", "socket_token": stack.token("alice")},
        {"type": "connect", "socket_token": "st-" + "A" * 43},
        {"type": "connect", "token": token},
    ):
        error, _, code = await refused(http, "/ws", frame)
        assert (error["code"], code) == ("TOKEN", 4500)
    error, _, _ = await refused(http, "/ws", {"type": "connect", "socket_token": token, "token": token})
    assert error["code"] == "FRAME"


async def test_a_socket_token_expires(stack: RunningStack, http: aiohttp.ClientSession) -> None:
    status, _, body = await ask(http, "POST /api/socket-tokens", bearer(stack.token("alice")))
    assert (status, body["expires_in"]) == (201, 30)
    # The gateway's own with a shorter life: half a minute is too long to wait for here.
    tokens = SignedSocketTokens(load_signing_key(stack.state.gateway_key), MemoryClaims(), lifetime_s=-20.0)
    issued = await tokens.issue(Login("alice", time.time() + 60))
    with pytest.raises(TokenError, match="too old"):
        await tokens.redeem(issued)
    error, _, code = await refused(http, "/ws", {"type": "connect", "socket_token": issued})
    assert (error["code"], code) == ("TOKEN", 4500)


# Tickets.


async def _ticket(
    http: aiohttp.ClientSession, stack: RunningStack, permissions: list[str], body: Mapping[str, Any]
) -> tuple[int, dict[str, Any]]:
    token = stack.token("alice", permissions=permissions)
    async with http.post("/api/tickets", json=body, headers=bearer(token)) as response:
        return response.status, await response.json()


@pytest.mark.parametrize(
    ("body", "permissions"),
    [
        ({"scope": "session", "user_id": "bob"}, ["trace:read"]),
        ({"scope": "run", "user_id": "bob"}, ["trace:read"]),
        ({"scope": "service"}, ["trace:read"]),
        ({"scope": "service"}, ["operator", "Operator:read", "operators:read"]),
        ({"scope": "service", "permissions": ["trace:read"]}, ["trace:read", OPERATOR_READ]),
        ({"scope": "service", "permissions": ["operator:revoke"]}, [OPERATOR_READ]),
        ({"scope": "service", "permissions": ["audit:write"]}, ["audit:write", OPERATOR_READ]),
        ({"scope": "session", "user_id": "bob"}, [OPERATOR_READ, "operator:revoke"]),
        ({"scope": "session", "user_id": "bob"}, ["ACT_AS", "act_as:all", "act-as"]),
        ({"permissions": ["trace:query"]}, ["trace:read"]),
        ({"permissions": [OPERATOR_READ]}, ["trace:read"]),
        ({"scope": "session", "user_id": "bob", "permissions": [OPERATOR_READ]}, ["act_as", OPERATOR_READ]),
        ({"scope": "session", "user_id": "bob", "permissions": ["act_as"]}, ["act_as"]),
        ({"scope": "service", "permissions": ["act_as"]}, ["act_as", OPERATOR_READ]),
        ({"scope": "service", "permissions": [OPERATOR_READ]}, ["act_as"]),
    ],
)
async def test_a_ticket_never_holds_more_than_its_token(
    body: dict[str, Any], permissions: list[str], stack: RunningStack, http: aiohttp.ClientSession
) -> None:
    status, answer = await _ticket(http, stack, permissions, body)
    assert (status, answer["error"]["code"]) == (403, "PERMISSION_DENIED"), answer


@pytest.mark.parametrize(
    "body",
    [
        {"scope": "admin"},
        {"scope": "session", "run_id": "run-1"},
        {"scope": "service", "user_id": "bob"},
        {"scope": "run", "thread_id": "default"},
        {"scope": "run", "lifetime_s": 10_000_000},
        {"scope": "session", "limits": {"max_engines_per_user": 100}},
        {"lifetime_s": -5},
        {"user_id": "../bob"},
    ],
)
async def test_a_ticket_that_makes_no_sense_is_refused(
    body: dict[str, Any], stack: RunningStack, http: aiohttp.ClientSession
) -> None:
    status, answer = await _ticket(http, stack, ["act_as", OPERATOR_READ], body)
    assert (status, answer["error"]["status"]) == (400, "INVALID_ARGUMENT"), answer
    assert answer["error"]["message"]


async def test_a_service_acts_for_a_user_with_what_it_may_itself(
    stack: RunningStack, forge: Forge, http: aiohttp.ClientSession
) -> None:
    held = ["act_as", OPERATOR_READ, "trace:read"]
    status, answer = await _ticket(http, stack, held, {"scope": "session", "user_id": "bob"})
    assert (status, answer["user_id"], answer["scope"]) == (200, "bob", "session")
    claims = payload_of(answer["ticket"])
    assert (claims["sub"], claims["perms"]) == ("bob", ["trace:read"]), "neither act_as nor an operator's permission"
    status, answer = await _ticket(http, stack, held, {"scope": "service"})
    assert (status, payload_of(answer["ticket"])["perms"]) == (200, [OPERATOR_READ, "trace:read"])


async def test_a_ticket_ends_with_its_token_at_the_latest(stack: RunningStack, http: aiohttp.ClientSession) -> None:
    token = stack.token("alice", lifetime_s=60)
    async with http.post("/api/tickets", json={"lifetime_s": 3600}, headers=bearer(token)) as response:
        answer = await response.json()
    assert payload_of(answer["ticket"])["exp"] <= time.time() + 61


def payload_of(ticket: str) -> dict[str, Any]:
    part = ticket.split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return claims
