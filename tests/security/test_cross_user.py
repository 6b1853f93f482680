"""One user's ids in another user's hands name nothing, by REST and by socket, and look like ids that exist nowhere."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import fields
from typing import Any, Final

import aiohttp
import pytest

from carrel.ids import new_id
from gateway import development
from gateway.frames import _RULES as FRAME_RULES
from gateway.requests import EXECUTE_RULES
from gateway.rest import logout, runs, tickets
from tests.conftest import Eventually
from tests.security.cross_user import (
    ALICE,
    BOB,
    Ids,
    belongings_of_alice,
    normal,
    nowhere,
)
from tests.security.test_every_route import _routes
from tests.support.stack import RunningStack


@pytest.fixture
async def alice(stack: RunningStack) -> AsyncIterator[Ids]:
    """What alice has."""
    async with belongings_of_alice(stack) as ids:
        yield ids


# REST.

_REST: Final[tuple[tuple[str, str, Mapping[str, Any] | None], ...]] = (
    ("GET", "/api/runs/{run}", None),
    ("GET", "/api/runs/{held}", None),
    ("GET", "/api/agents/status/{run}", None),
    ("POST", "/api/runs/{run}/cancel", {}),
    ("POST", "/api/runs/{held}/cancel", {"reason": "not yours"}),
    ("GET", "/api/runs/{waiting}", None),
    ("POST", "/api/runs/{waiting}/input", {"input_id": "{input}", "value": "mine"}),
    ("POST", "/api/runs/{waiting}/input", {"input_id": "another", "value": "mine"}),
    ("POST", "/api/runs/{waiting}/cancel", {}),
    ("POST", "/api/runs/{held}/input", {"input_id": "{input}", "value": True}),
    ("GET", "/api/runs/{run}/events", None),
    ("GET", "/api/runs/{run}/artifacts", None),
    ("GET", "/api/runs/{run}/artifacts/{artifact}", None),
    ("GET", "/api/runs?thread_id={thread}", None),
    ("GET", "/api/agents/status?thread_id={held_thread}", None),
    ("GET", "/api/threads/{thread}/messages", None),
    ("DELETE", "/api/threads/{thread}", None),
    ("DELETE", "/api/threads/{held_thread}", None),
    ("POST", "/api/tickets", {"scope": "run", "run_id": "{held}"}),
    ("POST", "/api/tickets", {"scope": "run", "run_id": "{run}", "thread_id": "{thread}"}),
)


# How the ids of the table are called in the router.
_NAMES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("run", "held", "waiting"), "run_id"),
    **dict.fromkeys(("thread", "held_thread"), "thread_id"),
    "artifact": "name",
}
# Shown elsewhere: the address of a socket (test_every_route), a run of one's own in a thread of her name (below), who
# a ticket stands for (test_gateway_doors).
_ELSEWHERE: Final = {
    ("GET /ws/{user_id}", "user_id"),
    ("POST /api/agents/execute", "thread_id"),
    ("POST /api/tickets", "user_id"),
    # A file's.
    ("GET /console/{path}", "path"),
    ("GET /docs/{path}", "path"),
    # An agent's. Ids in these bodies are AG-UI's (tests/ag_ui/test_service).
    ("POST /ag-ui/{agent}", "agent"),
}
# Fields of bodies, by route, as the handlers check them.
_FIELDS: Final[Mapping[str, Mapping[str, Any]]] = {
    "POST /api/agents/execute": EXECUTE_RULES,
    "POST /api/runs/{run_id}/cancel": runs._CANCEL_RULES,
    "POST /api/runs/{run_id}/input": runs._INPUT_RULES,
    "POST /api/tickets": tickets._RULES,
    "POST /api/logout": logout._RULES,
    "POST /api/socket-tokens": {},
    "POST /ag-ui": {},
    "POST /ag-ui/{agent}": {},
    "POST /console/sign-in": development._RULES,
}


def _is_id(field: str) -> bool:
    return field.endswith("_id") or field in {"resume", "position"}


def test_every_id_that_a_route_takes_has_a_row() -> None:
    routes = _routes()
    assert {route for route in routes if not route.startswith(("GET", "DELETE"))} == set(_FIELDS)
    taken = {(route, name) for route in routes for name in re.findall(r"{(\w+)}", route)}
    taken |= {(route, name) for route, rules in _FIELDS.items() for name in rules if _is_id(name)}
    shown = set()
    for method, path, body in _REST:
        route = f"{method} {path.partition('?')[0]}"
        for ours, theirs in _NAMES.items():
            route = route.replace("{" + ours + "}", "{" + theirs + "}")
        shown |= {(route, name) for name in re.findall(r"{(\w+)}", route)}
        shown |= {(route, name) for name in body or () if _is_id(name)}
    assert taken - _ELSEWHERE == shown


async def _rest(
    http: aiohttp.ClientSession, ids: Ids, method: str, path: str, body: Mapping[str, Any] | None
) -> tuple[int, Any]:
    names = {field.name: getattr(ids, field.name) for field in fields(ids)}
    filled = None
    if body is not None:
        filled = {key: value.format(**names) if isinstance(value, str) else value for key, value in body.items()}
    async with http.request(method, path.format(**names), json=filled) as response:
        return response.status, normal(await response.json(), ids)


@pytest.fixture
async def http(stack: RunningStack) -> AsyncIterator[aiohttp.ClientSession]:
    """Bob's REST client."""
    headers = {"Authorization": f"Bearer {stack.token(BOB)}"}
    async with aiohttp.ClientSession(stack.url, headers=headers, timeout=aiohttp.ClientTimeout(20)) as session:
        yield session


async def test_by_rest(alice: Ids, http: aiohttp.ClientSession) -> None:
    for method, path, body in _REST:
        answer = await _rest(http, alice, method, path, body)
        assert answer == await _rest(http, nowhere(alice), method, path, body), f"{method} {path}"
        status, told = answer
        if "thread_id=" in path:
            assert (status, told["runs"]) == (200, [])
        else:
            assert status == 404, f"{method} {path}: {told}"


async def test_listings_hold_one_s_own_only(alice: Ids, http: aiohttp.ClientSession) -> None:
    for path in ("/api/runs", "/api/agents/status", "/api/threads"):
        async with http.get(path) as response:
            text = await response.text()
        assert alice.run not in text
        assert alice.thread not in text


async def test_another_user_s_page_token_leads_nowhere_else(
    stack: RunningStack, alice: Ids, http: aiohttp.ClientSession
) -> None:
    hers = {"Authorization": f"Bearer {stack.token(ALICE)}"}
    for path in ("/api/runs", "/api/threads"):
        async with http.get(f"{path}?page_size=1", headers=hers) as response:
            token = (await response.json())["next_page_token"]
        assert token, "alice has two of each"
        async with http.get(path, params={"page_token": token}) as response:
            assert response.status == 200
            answer = await response.text()
        assert alice.run not in answer
        assert alice.thread not in answer


async def test_her_thread_s_name_is_a_new_thread_of_one_s_own(alice: Ids, http: aiohttp.ClientSession) -> None:
    body = {"message": "of bob", "agent_name": "keeper", "thread_id": alice.held_thread, "client_ref": alice.client_ref}
    async with http.post("/api/agents/execute", json=body) as response:
        answer = await response.json()
    # Neither is the thread busy with her run, nor does the client_ref name it, nor is her conversation his.
    assert (response.status, answer["status"]) == (200, "SUCCEEDED")
    assert answer["run_id"] not in {alice.run, alice.held}
    assert answer["result"]["history"] == []
    async with http.get(f"/api/threads/{alice.held_thread}/messages") as response:
        messages = (await response.json())["messages"]
    assert {message["run_id"] for message in messages} == {answer["run_id"]}
    async with http.delete(f"/api/threads/{alice.held_thread}") as response:
        assert response.status == 204


# Frames.


async def _frame(
    socket: aiohttp.ClientWebSocketResponse, ids: Ids, make: Callable[[Ids], Mapping[str, Any]]
) -> Mapping[str, Any]:
    await socket.send_json(make(ids))
    answer: Mapping[str, Any] = normal(await socket.receive_json(timeout=10), ids)
    return answer


# Every field of a frame that names something, and the test that shows it.
_IN_FRAMES: Final = {
    ("agent_cancel", "run_id"): "test_by_frame",
    ("input_provide", "run_id"): "test_by_frame",
    ("input_provide", "input_id"): "test_by_frame",
    ("connect", "thread_id"): "test_her_position_and_thread_show_a_connection_nothing",
    ("connect", "resume"): "test_her_position_and_thread_show_a_connection_nothing",
    ("agent_execute", "thread_id"): "test_a_frame_s_thread_of_hers_is_a_new_one_of_one_s_own",
}


def test_every_id_that_a_frame_takes_is_tested() -> None:
    taken = {(kind, field) for kind, rules in FRAME_RULES.items() for field in rules if _is_id(field)}
    assert taken == set(_IN_FRAMES)
    assert set(_IN_FRAMES.values()) <= set(globals())


@pytest.mark.parametrize(
    "make",
    [
        lambda ids: {"type": "agent_cancel", "run_id": ids.held},
        lambda ids: {"type": "agent_cancel", "run_id": ids.run, "reason": "not yours"},
        lambda ids: {"type": "input_provide", "run_id": ids.held, "input_id": ids.input, "value": 1},
        lambda ids: {"type": "input_provide", "run_id": ids.waiting, "input_id": ids.input, "value": "mine"},
        lambda ids: {"type": "agent_cancel", "run_id": ids.waiting},
    ],
)
async def test_by_frame(
    make: Callable[[Ids], Mapping[str, Any]], stack: RunningStack, alice: Ids, http: aiohttp.ClientSession
) -> None:
    async with http.ws_connect("/ws") as socket:
        assert (await socket.receive_json(timeout=5))["type"] == "connected"
        answer = await _frame(socket, alice, make)
        assert (answer["type"], answer["code"]) == ("error", "UNKNOWN_RUN")
        assert answer == await _frame(socket, nowhere(alice), make)


async def test_her_position_and_thread_show_a_connection_nothing(
    stack: RunningStack, alice: Ids, http: aiohttp.ClientSession
) -> None:
    for user in (new_id("user"), BOB):
        answers = []
        for ids in (alice, nowhere(alice)):
            async with http.ws_connect("/ws", headers={"Authorization": f"Bearer {stack.token(user)}"}) as socket:
                assert (await socket.receive_json(timeout=5))["type"] == "connected"
                resume = {"epoch": ids.epoch, "offset": 1, "event_id": ids.event}
                await socket.send_json({"type": "connect", "thread_id": ids.thread, "resume": resume})
                await socket.send_json({"type": "ping", "client_ref": "last"})
                said: list[dict[str, Any]] = []
                while not said or said[-1]["type"] != "pong":
                    said.append(await socket.receive_json(timeout=5))
                    assert "event_type" not in said[-1], "an event of a thread that is not the user's"
                    said[-1].pop("connection_id", None)
                answers.append(normal(said, ids))
        assert answers[0] == answers[1]
        assert any(frame["type"] == "reset" for frame in answers[0])


async def test_a_frame_s_thread_of_hers_is_a_new_one_of_one_s_own(
    alice: Ids, http: aiohttp.ClientSession, eventually: Eventually
) -> None:
    async with http.ws_connect("/ws") as socket:
        assert (await socket.receive_json(timeout=5))["type"] == "connected"
        ref = new_id("ref")
        run = {"type": "agent_execute", "message": "of bob", "agent_name": "keeper", "client_ref": ref}
        await socket.send_json({**run, "thread_id": alice.held_thread})
        said: list[dict[str, Any]] = []
        while not said or said[-1].get("event_type") != "run_completed":
            said.append(await socket.receive_json(timeout=10))
        # Neither is her thread busy for him, nor does he hear of her run in it or get her conversation.
        assert {frame["user_id"] for frame in said if "user_id" in frame} == {BOB}
        assert alice.held not in str(said)
        assert said[-1]["data"]["result"]["history"] == []

    async def deleted() -> bool:
        # Refused with 409 until the run's state follows its terminal event.
        async with http.delete(f"/api/threads/{alice.held_thread}") as response:
            assert response.status in {204, 409}
            return response.status == 204

    await eventually(deleted, within=10)


async def test_a_connection_hears_nothing_of_another_user_s_run(
    stack: RunningStack, http: aiohttp.ClientSession
) -> None:
    async with http.ws_connect(f"/ws/{BOB}") as socket:
        assert (await socket.receive_json(timeout=5))["type"] == "connected"
        hers = {"Authorization": f"Bearer {stack.token(ALICE)}"}
        body = {"message": "of alice", "agent_name": "keeper"}
        async with http.post("/api/agents/execute", json=body, headers=hers) as response:
            assert response.status == 200
        await socket.send_json({"type": "ping"})
        assert (await socket.receive_json(timeout=5))["type"] == "pong", "the next thing after her whole run"
