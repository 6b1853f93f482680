"""Calls of the gateway as the tests here make them: with any header, by any first frame."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
from aiohttp import WSMsgType

# What is sent to the routes that take a body.
BODIES: Final[Mapping[str, Mapping[str, Any]]] = {
    "POST /api/agents/execute": {"message": "hello", "agent_name": "echo"},
    "POST /api/runs/{run_id}/cancel": {"reason": "no more"},
    "POST /api/runs/{run_id}/input": {"input_id": "input-1", "value": True},
    "POST /api/tickets": {"scope": "session"},
    "POST /api/socket-tokens": {},
    "POST /api/logout": {},
    "POST /ag-ui": {},
    "POST /ag-ui/{agent}": {
        "threadId": "a thread of theirs",
        "runId": "run 1",
        "messages": [{"id": "1", "role": "user", "content": "hello"}],
    },
    "POST /console/sign-in": {"user": "alice"},
}


async def ask(
    http: aiohttp.ClientSession, route: str, headers: Mapping[str, str], **ids: str
) -> tuple[int, Mapping[str, str], dict[str, Any]]:
    method, _, path = route.partition(" ")
    names = {
        "run_id": "run-1",
        "thread_id": "thread-1",
        "name": "report.md",
        "user_id": "alice",
        "path": "openapi.json" if path.startswith("/docs") else "about.json",
        "agent": "echo",
    } | ids
    body = BODIES.get(route)
    async with http.request(method, path.format_map(names), json=body, headers=dict(headers)) as response:
        # A stream of events has no end of its own, and a page is no JSON.
        text = "" if response.content_type.startswith("text/") else await response.text()
        return response.status, response.headers, json.loads(text) if text else {}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@asynccontextmanager
async def connected(
    http: aiohttp.ClientSession, path: str, headers: Mapping[str, str]
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A socket that is logged in by its header."""
    async with http.ws_connect(path, headers=dict(headers)) as socket:
        assert (await socket.receive_json(timeout=5))["type"] == "connected"
        yield socket


async def refused(
    http: aiohttp.ClientSession, path: str, frame: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """What a socket says to a first frame before it closes: the error, the good-bye, the close code."""
    async with http.ws_connect(path) as socket:
        await socket.send_json(frame)
        error, bye = await socket.receive_json(timeout=5), await socket.receive_json(timeout=5)
        end = await socket.receive(timeout=5)
        assert (error["type"], bye["type"]) == ("error", "bye")
        assert end.type is WSMsgType.CLOSE
        return error, bye, int(end.data)
