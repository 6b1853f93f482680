"""Agents that call the tools of MCP servers, through agent_instance's dispatcher, over real gRPC."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
from pathlib import Path
from typing import Any

import orjson
import pytest

from carrel import Agent, AgentContext, Request
from carrel.errors import StartupError, ToolError
from carrel.v1 import agent_instance_pb2 as pb
from servicekit.settings import load_settings
from services.agent_instance import app
from services.agent_instance.config import AgentInstanceSettings
from services.agent_instance.domain.mcp_servers import McpToolServers
from services.agent_instance.domain.registry import AgentClassRegistry
from tests.conftest import Eventually
from tests.integration.agent_instance_support import Deployment, deployment
from tests.integration.mcp_support import children, logged, stdio
from tests.support.identity import session_context


class Caller(Agent):
    """Makes the calls that its parameters list, and returns what each gave."""

    name = "caller"
    mcp = ("notes",)
    isolation = "task"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        results: list[Any] = []
        for name, arguments in request.params["calls"]:
            try:
                results.append(await ctx.call_tool(name, **arguments))
            except ToolError as error:
                results.append({"code": error.code, "message": error.message, "retry_after_s": error.retry_after_s})
        return {"results": results, "tools": list(ctx.tools)}


class Parent(Agent):
    """Has another agent call."""

    name = "parent"
    mcp = ("notes",)
    isolation = "task"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        await ctx.call_tool("notes__remember", text="the parent's")
        found = await ctx.run_agent("caller", params={"calls": [["notes__recall", {}], ["notes__pid", {}]]})
        return {"found": found["results"][0], "code": found["results"][1].get("code", "")}


async def _results(running: Deployment, *calls: tuple[str, dict[str, Any]], **options: Any) -> list[Any]:
    attempt = await running.run("caller", params={"calls": calls}, **options)
    results: list[Any] = attempt.value["results"]
    return results


async def test_list_agents_shows_the_tools_of_servers() -> None:
    async with deployment(Caller, mcp={"notes": stdio(approval=["secret"])}) as running:
        answer = await running.stub.ListAgents(pb.ListAgentsRequest(context=session_context()))
        tools = {tool.name: tool for tool in answer.agents[0].tools}
        secret = tools["notes__secret"]
        assert (secret.server, secret.host, secret.approval) == ("notes", True, True)
        assert secret.permission == "mcp:notes:secret"
        assert orjson.loads(tools["notes__add"].input_schema_json)["required"] == ["a", "b"]


async def test_calls_pass_the_dispatcher_and_share_the_runs_session(eventually: Eventually) -> None:
    async with deployment(Caller, mcp={"notes": stdio()}) as running:
        calls = [("notes__remember", {"text": "a"}), ("notes__remember", {"text": "b"}), ("notes__recall", {})]
        attempt = await running.run("caller", params={"calls": calls})
        assert [item["structured"]["result"] for item in attempt.value["results"]] == [1, 2, ["a", "b"]]
        assert running.kinds(attempt).count("tool_executing") == running.kinds(attempt).count("tool_completed") == 3
        assert [entry.name for entry in attempt.of("journal_entry")] == ["notes__remember"] * 2 + ["notes__recall"]
        assert len(attempt.of("audit_record")) == 3
        await eventually(lambda: not children(), what="no process once the attempt has ended")
        assert (await _results(running, ("notes__recall", {})))[0]["structured"]["result"] == []


async def test_a_repeated_attempt_is_answered_from_the_journal_without_a_session(eventually: Eventually) -> None:
    async with deployment(Caller, mcp={"notes": stdio()}) as running:
        calls = [("notes__remember", {"text": "once"})]
        first = await running.run("caller", params={"calls": calls})
        servers = running.services.tool_servers
        assert isinstance(servers, McpToolServers)
        await eventually(lambda: servers.sessions("notes") == 0)
        again = await running.run("caller", params={"calls": calls}, journal=first.of("journal_entry"))
        assert again.value == first.value
        assert servers.sessions("notes") == 0


async def test_what_the_user_may_not_and_wrong_arguments_never_reach_the_server() -> None:
    async with deployment(Caller, mcp={"notes": stdio(permission={"recall": None})}) as running:
        calls = [("notes__secret", {}), ("notes__recall", {}), ("notes__add", {"a": 1}), ("notes__nothing", {})]
        found = await _results(running, *calls, permissions=("mcp:notes:add",))
        assert [item.get("code") for item in found] == [
            "TOOL_PERMISSION",
            None,
            "TOOL_ARGUMENTS",
            "UNKNOWN_TOOL",
        ]


async def test_a_tool_that_needs_approval_ends_the_attempt_with_a_question() -> None:
    async with deployment(Caller, mcp={"notes": stdio(approval=["secret"])}) as running:
        params: dict[str, Any] = {"calls": [("notes__secret", {})]}
        attempt = await running.start("caller", params=params)
        while not attempt.of("input_required"):
            assert await attempt.read() is not None
        question = attempt.of("input_required")[0]
        assert question.tool_name == "notes__secret"
        assert not children()
        await attempt.call.done_writing()
        answer = pb.ProvidedInput(
            input_id=question.input_id,
            value_json=orjson.dumps({"approved": True}),
            arguments_hash=question.arguments_hash,
        )
        again = await running.run("caller", params=params, inputs=[answer], quiet_until_input=question.input_id)
        assert again.value["results"][0]["text"] == "the secret"


async def test_a_hanging_server_is_cut_by_the_tools_timeout(tmp_path: Path, eventually: Eventually) -> None:
    async with deployment(Caller, mcp={"notes": stdio(tmp_path / "log", timeout=0.5)}) as running:
        # The first of them opens the session.
        found = await _results(running, ("notes__freeze", {}), ("notes__freeze", {}), ("notes__pid", {}))
        assert found[-1]["code"] == "TOOL_TIMEOUT"
        await eventually(lambda: not children())


async def test_a_cancelled_run_tells_the_server_and_leaves_no_process(tmp_path: Path, eventually: Eventually) -> None:
    async with deployment(Caller, mcp={"notes": stdio(tmp_path / "log")}) as running:
        attempt = await running.start("caller", params={"calls": [("notes__sleep", {"seconds": 30})]})
        await logged(tmp_path / "log", "sleep", eventually)
        await attempt.send(cancel=pb.CancelStage(reason="enough"))
        result = await attempt.finish()
        assert result.error.code == "CANCELLED_RUN"
        await logged(tmp_path / "log", "cancelled", eventually)
        await eventually(lambda: not children())


async def test_a_server_killed_in_the_middle_fails_the_call_and_not_the_run(
    tmp_path: Path, eventually: Eventually
) -> None:
    async with deployment(Caller, mcp={"notes": stdio(tmp_path / "log")}) as running:
        calls = [("notes__sleep", {"seconds": 30}), ("notes__recall", {})]
        attempt = await running.start("caller", params={"calls": calls})
        pid = int((await logged(tmp_path / "log", "sleep", eventually))[0].split()[1])
        os.kill(pid, signal.SIGKILL)
        await attempt.finish()
        found = attempt.value["results"]
        assert [item["code"] for item in found] == ["TOOL_UNAVAILABLE"] * 2
        assert found[1]["retry_after_s"] > 0


async def test_tools_of_a_server_that_was_never_reached_are_unavailable() -> None:
    async with deployment(Caller, mcp={"notes": {"command": "no-such-program"}}) as running:
        attempt = await running.run("caller", params={"calls": [("notes__recall", {}), ("other__recall", {})]})
        assert attempt.value["tools"] == []
        assert [item["code"] for item in attempt.value["results"]] == ["TOOL_UNAVAILABLE", "UNKNOWN_TOOL"]


async def test_a_sub_agent_works_in_the_session_of_its_run() -> None:
    async with deployment(Parent, Caller, mcp={"notes": stdio()}) as running:
        attempt = await running.run("parent")
        assert attempt.value["found"]["structured"]["result"] == ["the parent's"]


async def test_runs_at_once_see_nothing_of_one_another() -> None:
    async with deployment(Caller, mcp={"notes": stdio()}) as running:

        async def one(user: str) -> Any:
            calls = [("notes__remember", {"text": user}), ("notes__recall", {})]
            return (await _results(running, *calls, user=user))[1]["structured"]["result"]

        users = [f"user{number}" for number in range(3)]
        assert await asyncio.gather(*map(one, users)) == [[user] for user in users]


def test_without_the_package_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(
        AgentInstanceSettings, "agent_instance", {"CARREL_AGENT_INSTANCE_MCP": '{"notes": {"command": "x"}}'}
    )
    assert settings.mcp is not None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StartupError, match=r"install carrel\[mcp\]"):
        app.open_tool_servers(settings.mcp, AgentClassRegistry.of(Caller, servers={"notes": "1"}))
