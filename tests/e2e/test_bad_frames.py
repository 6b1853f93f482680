"""Frames and bodies that are none: each gets one clear error, and the connection lives on or says why not."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import aiohttp
import pytest
from aiohttp import ClientWebSocketResponse, WSMsgType

from tests.e2e.rest_user import User, new_user, told
from tests.support.stack import RunningStack

_LIMIT: Final = 64 * 1024


@pytest.fixture
def stack(probe_stack: RunningStack) -> RunningStack:
    """Five processes with the packaged agents and the probes, for users of the test's own."""
    return probe_stack


@pytest.fixture
async def user(stack: RunningStack) -> AsyncIterator[User]:
    """A user of the test's own."""
    async with new_user(stack) as found:
        yield found


@asynccontextmanager
async def _socket(user: User) -> AsyncIterator[ClientWebSocketResponse]:
    """A socket that is logged in, on which a run must still succeed at the end of the block."""
    async with user.http.ws_connect("/ws", max_msg_size=0) as socket:
        assert (await socket.receive_json(timeout=5))["type"] == "connected"
        yield socket
        frame = {"type": "agent_execute", "message": "still here", "agent_name": "echo"}
        await socket.send_json(frame)
        said: dict[str, Any] = {}
        while said.get("event_type") != "run_completed":
            said = await socket.receive_json(timeout=10)
            assert said.get("type") != "error", said
        assert said["data"]["status"] == "SUCCEEDED"


async def _error(socket: ClientWebSocketResponse) -> dict[str, Any]:
    said = await socket.receive_json(timeout=5)
    assert said["type"] == "error", said
    return told(said)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "{",
        '{"type":"ping"',
        '{"type":"ping"} {"type":"ping"}',
        "not JSON",
        "{'type':'ping'}",
        '{"type":"ping","x":NaN}',
        '["ping"]',
        '"ping"',
        "7",
        "null",
        "{}",
        '{"type":null}',
        '{"type":7}',
        '{"Type":"ping"}',
        "[" * 10_000,
        '{"a":' * 10_000,
    ],
)
async def test_text_that_is_no_frame(text: str, user: User) -> None:
    async with _socket(user) as socket:
        await socket.send_str(text)
        error = await _error(socket)
        assert error["code"] == "FRAME"


@pytest.mark.parametrize("kind", ["", "execute", "AGENT_EXECUTE", "run_accepted", "error", "bye", "x" * 1000, "é"])
async def test_an_unknown_frame_type(kind: str, user: User) -> None:
    async with _socket(user) as socket:
        await socket.send_json({"type": kind})
        error = await _error(socket)
        assert error["code"] == "UNKNOWN_FRAME"
        assert "agent_execute" in error["advice"], "the advice names the types that there are"
        assert len(str(error)) < 1000, "the error does not repeat what was sent"


@pytest.mark.parametrize(
    ("frame", "field"),
    [
        ({"type": "agent_execute"}, "message"),
        ({"type": "agent_execute", "message": 7}, "message"),
        ({"type": "agent_execute", "message": "m", "params": "p"}, "params"),
        ({"type": "agent_execute", "message": "m", "agnt_name": "echo"}, "agnt_name"),
        ({"type": "agent_cancel"}, "run_id"),
        ({"type": "agent_cancel", "run_id": 7}, "run_id"),
        ({"type": "input_provide", "run_id": "run-1", "value": 1}, "input_id"),
        ({"type": "refresh"}, "token"),
        ({"type": "ack"}, "offset"),
        ({"type": "ack", "offset": -1}, "offset"),
        ({"type": "ack", "offset": "1"}, "offset"),
        ({"type": "ack", "offset": True}, "offset"),
        ({"type": "ping", "hello": 1}, "hello"),
    ],
)
async def test_a_frame_with_wrong_fields(frame: Mapping[str, Any], field: str, user: User) -> None:
    async with _socket(user) as socket:
        await socket.send_json(frame)
        error = await _error(socket)
        assert error["code"] in {"FRAME", "INVALID_REQUEST"}
        assert field in error["details"]["fields"]
        assert field in error["message"]


async def test_a_binary_frame(user: User) -> None:
    async with _socket(user) as socket:
        await socket.send_bytes(b'{"type":"ping"}')
        error = await _error(socket)
        assert error["code"] == "FRAME"
        assert "binary" in error["message"]


@pytest.mark.parametrize("frame", [{"type": "connect"}, {"type": "connect", "thread_id": "default"}])
async def test_a_connect_that_comes_too_late(frame: Mapping[str, Any], user: User) -> None:
    async with _socket(user) as socket:
        await socket.send_json({"type": "ping"})
        assert (await socket.receive_json(timeout=5))["type"] == "pong"
        await socket.send_json(frame)
        assert (await _error(socket))["code"] in {"FRAME", "INVALID_ID"}


def _frame_of(size: int) -> str:
    frame = json.dumps({"type": "agent_execute", "agent_name": "echo", "message": ""})
    text = frame[:-2] + "m" * (size - len(frame)) + '"}'
    assert len(text) == size
    return text


async def test_a_frame_of_just_64_kib_is_taken(user: User) -> None:
    async with _socket(user) as socket:
        await socket.send_str(_frame_of(_LIMIT))
        said: dict[str, Any] = {}
        while said.get("event_type") != "run_completed":
            said = await socket.receive_json(timeout=10)
        assert said["data"]["status"] == "SUCCEEDED"


@pytest.mark.parametrize("size", [_LIMIT + 1, 200_000, 1_000_000])
async def test_a_frame_over_64_kib_names_the_way_by_post_and_closes(size: int, user: User) -> None:
    async with user.http.ws_connect("/ws") as socket:
        assert (await socket.receive_json(timeout=5))["type"] == "connected"
        await socket.send_str(_frame_of(size))
        error = await _error(socket)
        assert (error["code"], error["details"]["limit_value"], error["details"]["use"]) == ("TOO_LARGE", _LIMIT, size)
        assert "POST /api/agents/execute" in error["advice"]
        bye = await socket.receive_json(timeout=5)
        assert (bye["type"], bye["code"], bye["reconnect"]) == ("bye", 4501, False)
        end = await socket.receive(timeout=5)
        assert (end.type, end.data) == (WSMsgType.CLOSE, 4501)
    # What it names works.
    if size < 256 * 1024:
        status, answer = await user.execute(agent_name="echo", message="m" * size)
        assert (status, answer["status"]) == (200, "SUCCEEDED")


async def test_a_frame_beyond_what_is_read_at_all_closes(user: User) -> None:
    async with user.http.ws_connect("/ws") as socket:
        assert (await socket.receive_json(timeout=5))["type"] == "connected"
        # The gateway may cut the connection while this is still being sent.
        with suppress(ConnectionError):
            await socket.send_str("x" * (3 << 20))
        while (message := await socket.receive(timeout=5)).type is WSMsgType.TEXT:
            assert json.loads(message.data)["type"] in {"error", "bye"}
        assert message.type in {WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.ERROR}


async def test_ten_wrong_frames_in_a_row_close(user: User) -> None:
    async with user.http.ws_connect("/ws") as socket:
        assert (await socket.receive_json(timeout=5))["type"] == "connected"
        for _ in range(10):
            await socket.send_str("{")
        said = [await socket.receive_json(timeout=5) for _ in range(11)]
        assert [frame["type"] for frame in said] == ["error"] * 10 + ["bye"]
        assert said[-1]["code"] == 4501


async def test_a_wrong_frame_now_and_then_does_not_close(user: User) -> None:
    async with _socket(user) as socket:
        for _ in range(25):
            await socket.send_str("{")
            assert (await _error(socket))["code"] == "FRAME"
            await socket.send_json({"type": "ping"})
            assert (await socket.receive_json(timeout=5))["type"] == "pong"


# Bodies.


@pytest.mark.parametrize(
    ("data", "content_type", "status", "code"),
    [
        (b"", "application/json", 400, "INVALID_REQUEST"),
        (b"{", "application/json", 400, "INVALID_REQUEST"),
        (b"[]", "application/json", 400, "INVALID_REQUEST"),
        (b'{"message":"\xff"}', "application/json", 400, "INVALID_REQUEST"),
        (b'{"message":NaN}', "application/json", 400, "INVALID_REQUEST"),
        (b"message=hello", "application/x-www-form-urlencoded", 415, "UNSUPPORTED_MEDIA_TYPE"),
        (b'{"message":"hello"}', "text/plain", 415, "UNSUPPORTED_MEDIA_TYPE"),
        (b"x" * ((1 << 20) + 1), "application/json", 413, "TOO_LARGE"),
    ],
)
@pytest.mark.parametrize("path", ["/api/agents/execute", "/api/tickets", "/api/runs/run-1/input"])
async def test_a_body_that_is_no_request(
    path: str, data: bytes, content_type: str, status: int, code: str, user: User
) -> None:
    async with user.http.post(path, data=io.BytesIO(data), headers={"Content-Type": content_type}) as response:
        answer = await response.json()
        assert (response.status, answer["error"]["code"]) == (status, code)
        told(answer["error"])


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "NO_SUCH_ROUTE"),
        ("GET", "/api/../api/runs/", 404, "NO_SUCH_ROUTE"),
        ("PUT", "/api/runs", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/api/agents/execute", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/api/runs?page_size=0", 400, "INVALID_REQUEST"),
        ("GET", "/api/runs?page_size=201", 400, "INVALID_REQUEST"),
        ("GET", "/api/runs?page_size=many", 400, "INVALID_REQUEST"),
        ("GET", "/api/runs?page_token=nonsense", 400, "INVALID_REQUEST"),
        ("GET", "/api/runs?status=DONE", 400, "INVALID_REQUEST"),
        ("GET", "/api/runs?user_id=bob", 400, "INVALID_REQUEST"),
        ("GET", "/api/runs?page_size=1&page_size=2", 400, "INVALID_REQUEST"),
        ("GET", "/api/runs?thread_id=default", 400, "INVALID_ID"),
        ("GET", "/api/runs/a%20b", 400, "INVALID_ID"),
        ("GET", "/api/runs/" + "r" * 129, 400, "INVALID_ID"),
        ("GET", "/api/runs/run-1", 404, "UNKNOWN_RUN"),
        ("POST", "/api/runs/run-1/cancel", 404, "UNKNOWN_RUN"),
        ("GET", "/api/threads/thread-1/messages", 404, "UNKNOWN_THREAD"),
        ("DELETE", "/api/threads/thread-1", 404, "UNKNOWN_THREAD"),
        ("GET", "/api/runs/run-1/artifacts/x", 404, "UNKNOWN_ARTIFACT"),
        ("GET", "/ws", 400, "INVALID_REQUEST"),
        ("GET", "/api/runs/run-1/events", 404, "UNKNOWN_RUN"),
    ],
)
async def test_an_address_or_query_that_names_nothing(
    method: str, path: str, status: int, code: str, user: User
) -> None:
    async with user.http.request(method, path) as response:
        answer = await response.json()
        assert (response.status, answer["error"]["code"]) == (status, code), answer
        told(answer["error"])
        assert "carrel" in response.headers["Server"]
        assert "aiohttp" not in str(response.headers)


async def test_a_websocket_of_another_version_is_told(user: User) -> None:
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "99",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    async with user.http.get("/ws", headers=headers) as response:
        assert response.status in {400, 426}
        assert response.status == 426 or told((await response.json())["error"])


async def test_a_client_that_says_nothing_sensible_leaves_others_alone(stack: RunningStack, user: User) -> None:
    host, _, port = stack.address("gateway").partition(":")
    async with aiohttp.ClientSession() as http, http.get(f"http://{host}:{port}/healthz") as response:
        assert response.status == 200
    for garbage in (b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 1000, b"A" * 100_000):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(garbage)
        writer.write_eof()
        async with asyncio.timeout(5):
            answer = await reader.read()
        writer.close()
        assert b"Traceback" not in answer
