"""What users send wrongly, each with a clear error that says what to do; afterwards everything works as before.

SQL, paths and CSV files are in ``test_bad_data``, frames and bodies in ``test_bad_frames``, starts in
``test_bad_start``, full disks in ``test_full_disk``.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from itertools import product
from typing import Any, Final

import grpc
import pytest
from grpc import aio

from carrel.cli.tokens import DEFAULT_PERMISSIONS
from carrel.ids import new_id
from carrel.rpc_errors import from_rpc_error
from carrel.v1 import context_pb2, execution_pb2
from carrel.v1.execution_pb2_grpc import ExecutionServiceStub
from tests.e2e.rest_user import User, new_user, told
from tests.support.stack import RunningStack


@pytest.fixture
def stack(probe_stack: RunningStack) -> RunningStack:
    """Five processes with the packaged agents and the probes, for users of the test's own."""
    return probe_stack


@pytest.fixture
async def user(stack: RunningStack) -> AsyncIterator[User]:
    """A user of the test's own."""
    async with new_user(stack) as found:
        yield found


# Ids.

_PLACEHOLDERS: Final = (
    "default",
    "DEFAULT",
    "temp",
    "temp_x",
    "Temp_1",
    "placeholder",
    "placeholder_7",
    "registry",
    "registry_main",
    "none",
    "None",
    "null",
    "undefined",
    "example_thread",
    "default_thread",
)
_MALFORMED: Final = ("a b", "a/b", "../a", "é", "a\n", "a\x00b", "a" * 129)


@pytest.mark.parametrize("thread_id", [*_PLACEHOLDERS, *_MALFORMED])
async def test_a_placeholder_or_malformed_thread_id(thread_id: str, user: User) -> None:
    # What is too long is told as a field's length, everything else as an id.
    code = "INVALID_REQUEST" if len(thread_id) > 128 else "INVALID_ID"
    error = await user.refused(code, 400, agent_name="echo", thread_id=thread_id)
    assert "thread_id" in error["message"]
    assert "thread_id" in error["details"]["fields"]
    async with user.http.ws_connect("/ws") as socket:
        assert (await socket.receive_json(timeout=5))["type"] == "connected"
        frame = {"type": "agent_execute", "message": "hello", "thread_id": thread_id, "client_ref": "ref"}
        await socket.send_json(frame)
        said = told(await socket.receive_json(timeout=5))
        assert (said["type"], said["code"], said["client_ref"]) == ("error", code, "ref")
        await socket.send_json({"type": "ping"})
        assert (await socket.receive_json(timeout=5))["type"] == "pong"
    if thread_id.isprintable() and thread_id.isascii():
        async with user.http.get("/ws", headers={"thread-id": thread_id}) as response:
            assert response.status == 400


@pytest.mark.parametrize(
    ("field", "value"),
    # A root request's id has no "_", so that no ticket can be made for the prefixes.
    [*product(["thread_id", "run_id"], ["default", "temp_x", "placeholder_1"]), ("request_id", "none")],
)
async def test_a_placeholder_past_the_gateway(field: str, value: str, stack: RunningStack, user: User) -> None:
    ids = {"thread_id": new_id("thread"), "run_id": new_id("run"), "request_id": new_id("req")} | {field: value}
    ticket = stack.minter.mint_run(user.user, ids["thread_id"], ids["run_id"], ids["request_id"])
    context = context_pb2.UserExecutionContext(
        user_id=user.user,
        thread_id=ids["thread_id"],
        run_id=ids["run_id"],
        request_id=ids["request_id"],
        ticket=ticket,
    )
    async with aio.insecure_channel(stack.address("execution")) as channel:
        request = execution_pb2.ExecutePipelineRequest(context=context, message="hello", pipeline=["echo"])
        with pytest.raises(aio.AioRpcError) as caught:
            await ExecutionServiceStub(channel).ExecutePipeline(request, timeout=10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    error = from_rpc_error(caught.value)
    assert (error.code, error.details["field"]) == ("INVALID_ID", field)
    assert error.advice


# Agents and pipelines.


async def test_an_unknown_agent(user: User) -> None:
    error = await user.refused("UNKNOWN_AGENT", 404, agent_name="nobody")
    assert "nobody" in error["message"]
    assert "echo" in error["advice"], "the advice names those that there are"


async def test_an_unknown_agent_among_known_ones(user: User) -> None:
    await user.refused("UNKNOWN_AGENT", 404, pipeline=["echo", "nobody"])


async def test_unmet_requires(user: User) -> None:
    error = await user.refused("UNMET_REQUIREMENT", 400, pipeline=["needy"])
    assert "needy requires echo" in error["message"]
    assert "echo, needy" in error["advice"]
    # The advice is right, in any order.
    status, answer = await user.execute(pipeline=["needy", "echo"])
    assert (status, answer["status"], answer["result"]) == (200, "SUCCEEDED", {"heard": "hello"})


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"pipeline": ["echo", "echo"]}, "PLAN"),
        ({"pipeline": ["supervisor", "echo"]}, "PLAN"),
        ({"pipeline": []}, "INVALID_REQUEST"),
        ({"pipeline": ["echo"] * 33}, "INVALID_REQUEST"),
        ({"pipeline": "echo"}, "INVALID_REQUEST"),
        ({"pipeline": [7]}, "INVALID_REQUEST"),
        ({"pipeline": [""]}, "INVALID_REQUEST"),
        ({"agent_name": "echo", "pipeline": ["echo"]}, "INVALID_REQUEST"),
        ({"agent_name": ""}, "INVALID_REQUEST"),
        ({"message": None}, "INVALID_REQUEST"),
        ({"message": ""}, "INVALID_REQUEST"),
        ({"message": 7}, "INVALID_REQUEST"),
        ({"message": "m" * 262_145}, "INVALID_REQUEST"),
        ({"agent_name": "echo", "params": [1]}, "INVALID_REQUEST"),
        ({"agent_name": "echo", "strategy": "shout"}, "INVALID_REQUEST"),
        ({"agent_name": "echo", "bound": "yes"}, "INVALID_REQUEST"),
        ({"agent_name": "echo", "mesage": "hello"}, "INVALID_REQUEST"),
        ({"agent_name": "echo", "client_ref": "a b"}, "INVALID_ID"),
    ],
)
async def test_a_request_that_cannot_be_run(body: dict[str, Any], code: str, user: User) -> None:
    await user.refused(code, 400, **body)


@pytest.mark.parametrize("strategy", ["reject", "enqueue", "interrupt", "rollback"])
async def test_no_strategy_minds_a_free_thread(strategy: str, user: User) -> None:
    status, answer = await user.execute(agent_name="echo", strategy=strategy)
    assert (status, answer["status"]) == (200, "SUCCEEDED")


# Tools.


async def test_a_tool_without_permission(user: User) -> None:
    status, answer = await user.execute(agent_name="caller", params={"tool": "locked"})
    assert (status, answer["status"], answer["error"]["code"]) == (200, "FAILED", "TOOL_PERMISSION")
    error = told(answer["error"])
    assert "probe:locked" in error["message"]
    events = await user.events(answer["run_id"])
    assert "tool_executing" not in [event.event_type for event in events], "its body was never begun"
    (denied,) = [event for event in events if event.event_type == "tool_completed"]
    assert (denied.data["status"], denied.data["error"]["code"]) == ("error", "TOOL_PERMISSION")
    assert "inside" not in str(events)


async def test_a_token_without_trace_query_gets_no_query(stack: RunningStack) -> None:
    async with new_user(stack, permissions=sorted(set(DEFAULT_PERMISSIONS) - {"trace:query"})) as user:
        error = await user.failed("TOOL_PERMISSION", agent_name="data")
        assert "trace:query" in error["message"]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({}, "text"),
        ({"text": 7}, "text"),
        ({"text": "a", "times": "many"}, "times"),
        ({"text": "a", "loud": True}, "loud"),
    ],
)
async def test_wrong_arguments(arguments: dict[str, Any], field: str, user: User) -> None:
    status, answer = await user.execute(agent_name="caller", params={"tool": "echo", "arguments": arguments})
    assert (status, answer["status"], answer["error"]["code"]) == (200, "FAILED", "TOOL_ARGUMENTS")
    assert field in answer["error"]["details"]["fields"]
    assert field in answer["error"]["message"]


async def test_a_tool_that_the_agent_does_not_have(user: User) -> None:
    error = await user.failed("UNKNOWN_TOOL", agent_name="caller", params={"tool": "query_database"})
    assert "echo" in error["advice"]


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"min_large_share": 7}, "min_large_share"),
        ({"tokens_per_minute": "much"}, "tokens_per_minute"),
        ({"baseline_modl": "gpt-5"}, "baseline_modl"),
        ({"trace": 7}, "trace"),
    ],
)
async def test_wrong_parameters_of_the_packaged_agents(params: dict[str, Any], field: str, user: User) -> None:
    error = await user.failed("INVALID_REQUEST", agent_name="data", params=params)
    assert field in error["details"]["fields"]


# Faults of an agent's author.


async def test_an_agent_that_raises(user: User) -> None:
    error = await user.failed("AGENT_FAILED", agent_name="caller")
    assert "KeyError" in error["message"]


async def test_a_tool_that_raises(user: User) -> None:
    error = await user.failed("TOOL_FAILED", agent_name="caller", params={"tool": "broken"})
    assert "broken" in error["message"]
    assert "hunter2" not in str(error), "what an exception says may hold a secret"


# Over a bound: nothing is lost, it becomes an artifact.


async def _artifact(user: User, run_id: str, name: str) -> Any:
    async with user.http.get(f"/api/runs/{run_id}/artifacts/{name}") as response:
        assert response.status == 200
        assert response.content_type == "application/json"
        return json.loads(await response.read())


async def test_a_result_over_its_bound_becomes_an_artifact(user: User) -> None:
    size = 300_000
    status, answer = await user.execute(agent_name="bulky", params={"result": size})
    assert (status, answer["status"]) == (200, "SUCCEEDED"), answer
    reference = answer["result"]["artifact"]
    assert reference["size"] > size
    assert await _artifact(user, answer["run_id"], reference["name"]) == {"big": "r" * size}
    events = await user.events(answer["run_id"])
    for kind in ("agent_completed", "run_completed"):
        (event,) = [event for event in events if event.event_type == kind]
        assert reference["name"] in str(event.data), kind
        assert len(str(event.data)) < 64 * 1024


@pytest.mark.parametrize(
    ("kind", "params"), [("agent_thinking", {"thinking": 200_000}), ("tool_completed", {"tool": 200_000})]
)
async def test_an_event_over_its_bound_becomes_an_artifact(kind: str, params: dict[str, int], user: User) -> None:
    status, answer = await user.execute(agent_name="bulky", params=params)
    assert (status, answer["status"]) == (200, "SUCCEEDED"), answer
    events = await user.events(answer["run_id"])
    assert "event_rejected" not in [event.event_type for event in events]
    (event,) = [event for event in events if event.event_type == kind]
    assert len(str(event.data)) < 32 * 1024
    artifacts = [artifact["name"] for artifact in answer["artifacts"]]
    assert len(artifacts) == 1
    assert artifacts[0] in str(event.data)
    assert ("t" if kind == "agent_thinking" else "o") * 200_000 in str(
        await _artifact(user, answer["run_id"], artifacts[0])
    )
