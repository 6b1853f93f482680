"""Questions of runs at the gateway: shown everywhere, answered by socket and REST, refused with what is wrong."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from carrel.errors import RateLimitError, UnendedRunsError
from tests.conftest import Eventually
from tests.unit.gateway.harness import Gateway, gateway, token

EXECUTE = "/api/agents/execute"
APPROVAL = {"tool_name": "send_mail", "arguments_json": b'{"to":"bob"}', "arguments_hash": "ab12"}
QUESTION = {
    "input_id": "input-1",
    "prompt": "Go on?",
    "schema": {"type": "boolean"},
    "expires_at": "2030-03-17T17:46:40.000000Z",
}


async def _ask(g: Gateway, method: str, path: str, **options: Any) -> tuple[int, Any, dict[str, str]]:
    headers = {"Authorization": f"Bearer {token(options.pop('user', 'alice'))}"} | options.pop("headers", {})
    async with g.http.request(method, g.url + path, headers=headers, **options) as response:
        return response.status, await response.json(), dict(response.headers)


async def _waiting(g: Gateway, **question: Any) -> str:
    status, run, _ = await _ask(g, "POST", EXECUTE, json={"message": "m"}, headers={"Prefer": "respond-async"})
    assert status == 202
    g.execution.ask("alice", run["run_id"], **question)
    return str(run["run_id"])


async def test_a_waiting_run_shows_its_question_wherever_runs_are_shown(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        run_id = await _waiting(g)
        for path in (f"/api/runs/{run_id}", f"/api/agents/status/{run_id}"):
            _, run, _ = await _ask(g, "GET", path)
            assert (run["status"], run["waiting_for"]) == ("WAITING", QUESTION)
        for path in ("/api/runs?status=WAITING", "/api/agents/status?status=waiting"):
            _, page, _ = await _ask(g, "GET", path)
            assert [run["waiting_for"] for run in page["runs"]] == [QUESTION]


async def test_an_approval_shows_the_tool_and_its_arguments(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        run_id = await _waiting(g, **APPROVAL)
        _, run, _ = await _ask(g, "GET", f"/api/runs/{run_id}")
        assert run["waiting_for"] == QUESTION | {"tool_name": "send_mail", "arguments": {"to": "bob"}}


async def test_a_request_that_waits_is_answered_with_the_question(tmp_path: Path, eventually: Eventually) -> None:
    async with gateway(tmp_path) as g:
        asking = asyncio.create_task(_ask(g, "POST", EXECUTE, json={"message": "m"}))
        await eventually(lambda: g.execution.runs)
        ((_, run_id),) = g.execution.runs
        g.execution.ask("alice", run_id)
        status, body, headers = await asking
        assert (status, body["status"], body["waiting_for"]) == (202, "WAITING", QUESTION)
        assert headers["Location"] == f"/api/runs/{run_id}"


async def test_a_queued_run_is_said_to_be_queued(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        g.execution.first_state = "QUEUED"
        body = {"message": "m", "strategy": "enqueue", "thread_id": "thread-1"}
        status, run, _ = await _ask(g, "POST", EXECUTE, json=body, headers={"Prefer": "respond-async"})
        assert (status, run["status"]) == (202, "QUEUED")
        socket, _ = await g.ready()
        await socket.send(type="agent_execute", **body)
        assert (await socket.control("run_accepted"))["status"] == "QUEUED"
        _, page, _ = await _ask(g, "GET", "/api/agents/status?status=QUEUED")
        assert len(page["runs"]) == 2


@pytest.mark.parametrize("way", ["socket", "rest"])
async def test_an_answer_is_passed_on_as_it_was_given(tmp_path: Path, way: str) -> None:
    async with gateway(tmp_path) as g:
        run_id = await _waiting(g)
        if way == "rest":
            body = {"input_id": "input-1", "value": True}
            status, run, _ = await _ask(g, "POST", f"/api/runs/{run_id}/input", json=body)
            assert (status, run["status"], run["waiting_for"]) == (202, "QUEUED", None)
        else:
            socket, _ = await g.ready()
            await socket.send(type="input_provide", run_id=run_id, input_id="input-1", value=True, client_ref="a")
            answer = await socket.control("input_accepted")
            told = {"run_id": run_id, "input_id": "input-1", "status": "QUEUED", "client_ref": "a"}
            assert answer == {"type": "input_accepted", **told}
        assert [orjson.loads(request.value_json) for request in g.execution.answers] == [True]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"input_id": "input-2", "value": True}, 409, "NOT_WAITING"),
        ({"input_id": "input-1", "value": "perhaps"}, 400, "INVALID_INPUT"),
        ({"input_id": "input-1"}, 400, "INVALID_REQUEST"),
        ({"input_id": "input 1", "value": True}, 400, "INVALID_ID"),
        ({"input_id": "input-1", "value": "x" * 262_143}, 413, "TOO_LARGE"),
    ],
)
async def test_a_wrong_answer_is_refused_with_what_is_wrong(
    tmp_path: Path, body: dict[str, Any], status: int, code: str
) -> None:
    async with gateway(tmp_path) as g:
        run_id = await _waiting(g)
        told, answer, _ = await _ask(g, "POST", f"/api/runs/{run_id}/input", json=body)
        assert (told, answer["error"]["code"]) == (status, code)
        if code == "INVALID_INPUT":
            assert answer["error"]["details"]["fields"] == {"value": "must be true or false"}
        if len(str(body)) < 1000:
            socket, _ = await g.ready()
            await socket.send(type="input_provide", run_id=run_id, **body)
            assert (await socket.control("error"))["code"] == code
        _, run, _ = await _ask(g, "GET", f"/api/runs/{run_id}")
        assert run["status"] == "WAITING"


async def test_null_is_an_answer(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        run_id = await _waiting(g)
        await _ask(g, "POST", f"/api/runs/{run_id}/input", json={"input_id": "input-1", "value": None})
        assert [request.value_json for request in g.execution.answers] == [b"null"]


async def test_another_user_s_question_is_not_there(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        run_id = await _waiting(g)
        for named in (run_id, "run-nowhere"):
            body = {"input_id": "input-1", "value": True}
            status, answer, _ = await _ask(g, "POST", f"/api/runs/{named}/input", json=body, user="bob")
            assert (status, answer["error"]["code"]) == (404, "UNKNOWN_RUN")


async def test_a_client_that_lost_its_place_is_told_the_question(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        run_id = await _waiting(g)
        socket, _ = await g.ready()
        await socket.send(type="connect", resume={"epoch": "0" * 16, "offset": 7, "event_id": "evt-gone"})
        assert (await socket.control("reset"))["reason"] == "epoch_changed"
        told = await socket.control("run_state")
        assert (told["run_id"], told["status"], told["waiting_for"]) == (run_id, "WAITING", QUESTION)


async def test_a_limit_is_told_with_its_size_its_use_and_when_to_come_again(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        for kind, limit in ((RateLimitError, "runs_per_minute"), (UnendedRunsError, "max_unended_runs_per_user")):
            g.execution.error = kind("no more", limit=limit, limit_value=5, use=5, retry_after_s=2.2)
            status, body, headers = await _ask(g, "POST", EXECUTE, json={"message": "m"})
            # Rounded up: whoever comes when told must not come too early.
            assert (status, headers["Retry-After"]) == (429, "3")
            details = {"limit": limit, "limit_value": 5, "use": 5}
            assert body["error"]["details"] == details
            socket, _ = await g.ready()
            await socket.send(type="agent_execute", message="m")
            frame = await socket.control("error")
            assert (frame["code"], frame["details"], frame["retry_after_s"]) == (kind.code, details, 2.2)
