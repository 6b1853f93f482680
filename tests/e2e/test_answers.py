"""Runs that wait for a person, over five processes: asked, answered in every way, through every restart."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from carrel.client import Endpoints, GatewayTickets, InternalClient, Position, Question
from carrel.client.http import GatewayHttp
from carrel.errors import InvalidInputError, NotWaitingError, UnknownRunError
from carrel.ids import new_id
from tests.conftest import Eventually
from tests.support.stack import SERVICES, RunningStack, carrel_command, clean_environment, run_carrel, running_stack

_AGENTS: Final = str(Path(__file__).with_name("asking_agents.py"))


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Five processes and the agents that ask."""
    with running_stack(tmp_path_factory.mktemp("asking"), agents=[_AGENTS]) as running:
        yield running


async def _waiting(http: GatewayHttp, agent: str) -> tuple[str, Question]:
    """A run that waits, as the request which waited for it was told."""
    run = await http.execute("hello", pipeline=(agent,))
    assert run["status"] == "WAITING"
    question = Question.from_json(run["waiting_for"])
    assert await http.waiting_for(run["run_id"]) == question
    return run["run_id"], question


async def _ended(http: GatewayHttp, run_id: str) -> dict[str, Any]:
    run: dict[str, Any] = {}
    async with asyncio.timeout(20):
        while run.get("status") not in {"SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT"}:
            run = await http.run(run_id)
            await asyncio.sleep(0.05)
    return run


async def _kinds(stack: RunningStack, user: str, run_id: str) -> list[tuple[str, dict[str, Any]]]:
    """The run's events from its first to its last."""
    found: list[tuple[str, dict[str, Any]]] = []
    async with stack.client(user, resume=Position()) as socket, asyncio.timeout(10):
        async for event in socket.events():
            if event.run_id == run_id:
                found.append((event.event_type, dict(event.data)))
                if event.terminal:
                    return found
    raise AssertionError


@pytest.mark.parametrize("way", ["socket", "rest", "rpc"])
async def test_asked_and_answered(asking: RunningStack, way: str) -> None:
    user = new_id("user")
    async with asking.http(user) as http:
        run_id, question = await _waiting(http, "ask")
        assert (question.prompt, question.schema["enum"]) == ("Which colour?", ["red", "green"])
        assert question.expires_at is not None
        assert not question.approval
        listed = await http.get("/api/agents/status?status=WAITING")
        assert [run["waiting_for"]["input_id"] for run in listed["runs"]] == [question.input_id]
        with pytest.raises(InvalidInputError) as caught:
            await http.provide_input(run_id, question.input_id, "blue")
        assert caught.value.details["where"] == "$"
        with pytest.raises(NotWaitingError):
            await http.provide_input(run_id, "input-of-another-question", "red")
        if way == "socket":
            async with asking.client(user) as socket:
                await socket.provide_input(run_id, question.input_id, "green")
        elif way == "rest":
            await http.provide_input(run_id, question.input_id, "green")
        else:
            endpoints = Endpoints(asking.address("execution"), asking.address("emitter"), asking.address("bridge"))
            async with (
                GatewayTickets(asking.url, asking.token(user)) as tickets,
                InternalClient(endpoints, tickets) as client,
            ):
                assert (await client.get_run(run_id)).waiting_for == question
                await client.provide_input(run_id, question.input_id, "green")
        run = await _ended(http, run_id)
        assert run["result"] == {"lot": {"lot": 7}, "colour": "green"}
        assert run["waiting_for"] is None
    kinds = await _kinds(asking, user, run_id)
    assert [kind for kind, _ in kinds].count("input_required") == 1
    executed = [data for kind, data in kinds if kind == "tool_executing" and not data.get("replayed")]
    assert len(executed) == 1, "what was done before the question is not done again"


async def test_the_same_answer_again_is_no_error_and_another_one_is(asking: RunningStack) -> None:
    async with asking.http(new_id("user")) as http:
        run = await http.execute("hello", pipeline=("ask",), params={"seconds": 60})
        run_id, input_id = run["run_id"], run["waiting_for"]["input_id"]
        for _ in range(2):
            await http.provide_input(run_id, input_id, "green")
        with pytest.raises(NotWaitingError):
            await http.provide_input(run_id, input_id, "red")
        await http.cancel(run_id)


async def test_all_five_processes_restart_while_it_waits(tmp_path: Path, eventually: Eventually) -> None:
    with running_stack(tmp_path, agents=[_AGENTS]) as stack:
        async with stack.http("alice") as http:
            run_id, question = await _waiting(http, "ask")
            pids = {service: stack.kill(service) for service in SERVICES}
            await eventually(lambda: all(stack.restarted(service, pid) for service, pid in pids.items()), within=30)
            assert await http.waiting_for(run_id) == question
            async with stack.client("alice") as socket:
                await socket.provide_input(run_id, question.input_id, "red")
            run = await _ended(http, run_id)
            assert (run["status"], run["result"]) == ("SUCCEEDED", {"lot": {"lot": 7}, "colour": "red"})


@pytest.mark.parametrize(
    ("answer", "status"), [(True, "SUCCEEDED"), (False, "FAILED"), ({"approved": False, "reason": "no"}, "FAILED")]
)
async def test_a_tool_runs_only_with_approval(asking: RunningStack, answer: object, status: str) -> None:
    user = new_id("user")
    async with asking.http(user) as http:
        run_id, question = await _waiting(http, "mail")
        assert question.approval
        assert (question.tool_name, question.arguments) == ("send_mail", {"to": "bob@example.com"})
        await http.provide_input(run_id, question.input_id, answer)
        run = await _ended(http, run_id)
        assert run["status"] == status
    kinds = await _kinds(asking, user, run_id)
    done = [data for kind, data in kinds if kind == "tool_completed" and data["status"] == "ok"]
    assert len(done) == (1 if answer is True else 0)


async def test_a_run_that_waits_can_be_cancelled_and_is_nobody_else_s(asking: RunningStack) -> None:
    user = new_id("user")
    async with asking.http(user) as http, asking.http(new_id("user")) as other:
        run_id, question = await _waiting(http, "ask")
        for named in (run_id, new_id("run")):
            with pytest.raises(UnknownRunError) as caught:
                await other.provide_input(named, question.input_id, "red")
            assert caught.value.message == "no such run"
        await http.cancel(run_id)
        assert (await _ended(http, run_id))["status"] == "CANCELLED"
        with pytest.raises(NotWaitingError):
            await http.provide_input(run_id, question.input_id, "red")


async def test_the_audit_tells_of_the_answer_and_not_what_it_was(asking: RunningStack, tmp_path: Path) -> None:
    user = new_id("user")
    async with asking.http(user) as http:
        run_id, question = await _waiting(http, "ask")
        await http.provide_input(run_id, question.input_id, "green")
        await _ended(http, run_id)
    command = ("audit", "--run", run_id, "--state", str(asking.folder / "state"))
    done = await asyncio.to_thread(run_carrel, *command, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert {record["user_id"] for record in records} == {user}
    assert {"input.provide", "tool.call"} <= {record["action"] for record in records}
    assert "green" not in done.stdout


# The command line.


def _command(stack: RunningStack, *arguments: str) -> list[str]:
    return [*arguments, "--state", str(stack.folder / "state")]


async def test_without_a_terminal_the_command_says_how_to_answer(asking: RunningStack, tmp_path: Path) -> None:
    user = new_id("user")
    for agent, wrong, right, end in (("ask", "blue", "red", "SUCCEEDED"), ("mail", "perhaps", "no", "FAILED")):
        started = _command(asking, "run", "hello", "--agent", agent, "--user", user)
        asked = await asyncio.to_thread(run_carrel, *started, cwd=tmp_path)
        assert asked.returncode == 4, asked.stdout + asked.stderr
        words = asked.stdout.rpartition("answer with:")[2].split()
        run_id, input_id = words[words.index("answer") + 1 : words.index("answer") + 3]
        refused = await asyncio.to_thread(
            run_carrel, *_command(asking, "answer", run_id, wrong, "--user", user), cwd=tmp_path
        )
        assert refused.returncode == 3, refused.stdout + refused.stderr
        answered = await asyncio.to_thread(
            run_carrel, *_command(asking, "answer", run_id, input_id, right, "--user", user), cwd=tmp_path
        )
        assert answered.returncode == 0, answered.stderr
        async with asking.http(user) as http:
            assert (await _ended(http, run_id))["status"] == end


async def test_cancel_from_another_terminal(asking: RunningStack, tmp_path: Path) -> None:
    user = new_id("user")
    async with asking.http(user) as http:
        run_id, _ = await _waiting(http, "ask")
        done = await asyncio.to_thread(run_carrel, *_command(asking, "cancel", run_id, "--user", user), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (await _ended(http, run_id))["status"] == "CANCELLED"


def _at_a_terminal(command: list[str], cwd: Path, answers: list[tuple[str, str]]) -> tuple[int, str]:
    """Run a command at a terminal, typing each answer once its prompt is shown; the exit code and what was shown."""
    person, program = pty.openpty()
    process = subprocess.Popen(
        carrel_command(*command), cwd=cwd, env=clean_environment(), stdin=program, stdout=program, stderr=program
    )
    os.close(program)
    shown, deadline = "", time.monotonic() + 40
    try:
        while time.monotonic() < deadline:
            if select.select([person], [], [], 0.1)[0]:
                try:
                    shown += os.read(person, 65536).decode("utf-8", "replace")
                except OSError:
                    break
            if answers and answers[0][0] in shown:
                os.write(person, answers.pop(0)[1].encode() + b"\n")
        return process.wait(10), shown
    finally:
        process.kill()
        process.wait()
        os.close(person)


async def test_at_a_terminal_the_question_is_asked_and_answered(asking: RunningStack, tmp_path: Path) -> None:
    command = _command(asking, "run", "hello", "--agent", "ask", "--user", new_id("user"))
    answers = [("answer [red | green]: ", "blue"), ("that is no answer", "green")]
    code, shown = await asyncio.to_thread(_at_a_terminal, command, tmp_path, answers)
    assert code == 0, shown
    assert "Which colour?" in shown
    assert "the run succeeded" in shown


async def test_at_a_terminal_an_approval_shows_the_call(asking: RunningStack, tmp_path: Path) -> None:
    command = _command(asking, "run", "hello", "--agent", "mail", "--user", new_id("user"))
    code, shown = await asyncio.to_thread(_at_a_terminal, command, tmp_path, [("answer [yes | no]: ", "yes")])
    assert code == 0, shown
    assert "tool: send_mail" in shown
    assert "to = bob@example.com" in shown


@pytest.mark.parametrize("fails", ["true", "false"])
async def test_what_an_agent_printed_is_named_when_its_run_failed(
    asking: RunningStack, tmp_path: Path, fails: str
) -> None:
    command = _command(asking, "run", "hello", "--agent", "loud", "--user", new_id("user"), "-p", f"fails={fails}")
    done = await asyncio.to_thread(run_carrel, *command, cwd=tmp_path)
    assert done.returncode == (1 if fails == "true" else 0), done.stdout
    path = done.stdout.rpartition("what the agents printed:")[2].strip() if fails == "true" else ""
    assert ("what the agents printed" in done.stdout) == bool(path)
    if path:
        assert Path(path).name == "output-0-1-loud.txt"
        assert "something odd" in Path(path).read_text(encoding="utf-8")
