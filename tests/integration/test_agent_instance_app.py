"""agent_instance as a process starts it: phases, what stops a start, and a run through the whole object graph."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from grpc import aio

from carrel.errors import DrainingError, StartupError
from carrel.rpc_errors import from_rpc_error
from carrel.v1 import agent_instance_pb2 as pb
from carrel.v1 import agent_instance_pb2_grpc, emitter_pb2_grpc
from servicekit.lifecycle import Starter
from servicekit.rpc.channel import open_channel
from servicekit.settings import load_settings
from services.agent_instance.app import app
from services.agent_instance.config import AgentInstanceSettings
from tests.conftest import Eventually
from tests.integration.agent_instance_support import Attempt, FakeEmitter
from tests.support.identity import identity, new_run_context, session_context
from tests.support.rpc import serving

AGENT = """
from carrel import Agent

class Hello(Agent):
    name = "hello"
    async def run(self, ctx, request):
        await ctx.thinking("hm")
        return {"said": request.message}
"""


@pytest.fixture
def agent_file(tmp_path: Path) -> Path:
    path = tmp_path / "my_agents.py"
    path.write_text(AGENT, encoding="utf-8")
    return path


def settings_for(tmp_path: Path, **changes: Any) -> AgentInstanceSettings:
    jwks, _, _ = identity().write(tmp_path / "keys")
    values = {"listen": "127.0.0.1:0", "ticket_jwks": jwks, "downstream_wait_seconds": 0.2, "drain_seconds": 0.5}
    return AgentInstanceSettings.model_validate(values | changes)


def emitter_service(emitter: FakeEmitter) -> tuple[Any, FakeEmitter, str]:
    return (emitter_pb2_grpc.add_EmitterServiceServicer_to_server, emitter, "carrel.v1.EmitterService")


async def test_the_app_serves_a_file_of_agents(
    tmp_path: Path, agent_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    emitter = FakeEmitter()
    async with serving([emitter_service(emitter)]) as rpc:
        settings = settings_for(tmp_path, emitter=rpc.address, agents=(str(agent_file),), doctor=False)
        start = Starter("agent_instance")
        async with app(settings, start) as server, server, open_channel(server.address) as channel:
            stub = agent_instance_pb2_grpc.AgentInstanceServiceStub(channel)
            listed = await stub.ListAgents(pb.ListAgentsRequest(context=session_context()))
            assert [agent.name for agent in listed.agents] == ["hello"]
            (told,) = [vars(record)["fields"] for record in caplog.records if record.getMessage() == "how agents run"]
            assert told == {"process": ["hello"]}
            assert [agent.isolation for agent in listed.agents] == [pb.ISOLATION_PROCESS]
            context = new_run_context()
            attempt = Attempt(context, stub.RunInstance(), "p")
            await attempt.send(start=pb.StartStage(agent_name="hello", attempt=1, producer_id="p", message="hi"))
            await attempt.finish()
            assert attempt.value == {"said": "hi"}
            kinds = [event.kind for event in emitter.log[context.user_id, "p"]]
            assert kinds == ["agent_started", "agent_thinking", "agent_completed"]


async def test_a_class_that_asks_for_the_loop_gets_it_and_the_log_says_so(
    tmp_path: Path, agent_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    agent_file.write_text(AGENT.replace("    async def", '    isolation = "task"\n    async def'), encoding="utf-8")
    async with serving([emitter_service(FakeEmitter())]) as rpc:
        settings = settings_for(tmp_path, emitter=rpc.address, agents=(str(agent_file),), doctor=False)
        async with app(settings, Starter("agent_instance")) as server, server, open_channel(server.address) as channel:
            stub = agent_instance_pb2_grpc.AgentInstanceServiceStub(channel)
            listed = await stub.ListAgents(pb.ListAgentsRequest(context=session_context()))
            assert [agent.isolation for agent in listed.agents] == [pb.ISOLATION_TASK]
    (told,) = [vars(record)["fields"] for record in caplog.records if record.levelno == logging.WARNING]
    assert told["agents"] == ["hello"]
    assert "holds up every other run" in told["limit"]


async def test_a_drain_lets_short_attempts_end_and_gives_long_ones_back(tmp_path: Path, agent_file: Path) -> None:
    pause = '        import asyncio\n        await asyncio.sleep(request.params["pause_s"])\n'
    agent_file.write_text(AGENT.replace("        return", pause + "        return"), encoding="utf-8")
    async with serving([emitter_service(FakeEmitter())]) as rpc:
        settings = settings_for(tmp_path, emitter=rpc.address, agents=(str(agent_file),), drain_seconds=2.0)
        async with app(settings, Starter("agent_instance")) as server, server, open_channel(server.address) as channel:
            stub = agent_instance_pb2_grpc.AgentInstanceServiceStub(channel)
            attempts = []
            for name, params in (("short", b'{"pause_s": 0.5}'), ("long", b'{"pause_s": 60}')):
                attempt = Attempt(new_run_context(), stub.RunInstance(), name)
                start = pb.StartStage(agent_name="hello", attempt=1, producer_id=name, message="hi", params_json=params)
                await attempt.send(start=start)
                while (message := await attempt.read()) is not None and not message.HasField("accepted"):
                    pass
                attempts.append(attempt)
            draining = asyncio.create_task(server.drain())
            await attempts[0].finish()
            assert attempts[0].value == {"said": "hi"}
            with pytest.raises(aio.AioRpcError) as caught:
                await attempts[1].finish()
            assert isinstance(from_rpc_error(caught.value), DrainingError)
            await draining


async def test_a_start_without_emitter_says_what_to_do(tmp_path: Path, agent_file: Path) -> None:
    settings = settings_for(tmp_path, emitter="127.0.0.1:1", agents=(str(agent_file),))
    with pytest.raises(StartupError) as caught:
        async with app(settings, Starter("agent_instance")):
            pass
    assert caught.value.phase == "INTEGRATION"
    assert "127.0.0.1:1" in caught.value.what
    assert "CARREL_AGENT_INSTANCE_EMITTER" in caught.value.advice


async def test_a_start_with_a_broken_agent_names_its_file(tmp_path: Path, agent_file: Path) -> None:
    agent_file.write_text(AGENT + "\nraise OSError('disk')\n", encoding="utf-8")
    with pytest.raises(StartupError) as caught:
        async with app(settings_for(tmp_path, agents=(str(agent_file),)), Starter("agent_instance")):
            pass
    assert caught.value.phase == "CONFIGURATION"
    assert str(agent_file) in caught.value.message
    assert "disk" in caught.value.message


def test_settings_come_from_the_environment() -> None:
    environ = {
        "CARREL_AGENT_INSTANCE_AGENTS": "one.py,two",
        "CARREL_AGENT_INSTANCE_MAX_WORKERS": "7",
        "CARREL_AGENT_INSTANCE_TIMES__IDLE": "12.5",
    }
    settings = load_settings(AgentInstanceSettings, "agent_instance", environ)
    assert settings.agents == ("one.py", "two")
    assert settings.max_workers == 7
    assert settings.times.idle == 12.5
    with pytest.raises(StartupError, match="MAX_WORKER"):
        load_settings(AgentInstanceSettings, "agent_instance", {"CARREL_AGENT_INSTANCE_MAX_WORKER": "7"})


async def test_the_process_starts_serves_and_ends_on_sigterm(
    tmp_path: Path, agent_file: Path, eventually: Eventually
) -> None:
    jwks, _, _ = identity().write(tmp_path / "keys")
    async with serving([emitter_service(FakeEmitter())]) as rpc:
        ready = tmp_path / "ready"
        environ = {
            **os.environ,
            "CARREL_TICKET_JWKS": str(jwks),
            "CARREL_READY_FILE": str(ready),
            "CARREL_AGENT_INSTANCE_LISTEN": "127.0.0.1:0",
            "CARREL_AGENT_INSTANCE_EMITTER": rpc.address,
            "CARREL_AGENT_INSTANCE_AGENTS": str(agent_file),
        }
        command = [sys.executable, "-P", "-m", "services.agent_instance"]
        process = await asyncio.create_subprocess_exec(*command, env=environ, cwd=tmp_path)
        try:
            await eventually(lambda: ready.exists() or process.returncode is not None, within=40)
            assert process.returncode is None
            async with open_channel(ready.read_text(encoding="utf-8").strip()) as channel:
                stub = agent_instance_pb2_grpc.AgentInstanceServiceStub(channel)
                listed = await stub.ListAgents(pb.ListAgentsRequest(context=session_context()))
                assert [agent.name for agent in listed.agents] == ["carrel_doctor", "hello"]
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 10) == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
