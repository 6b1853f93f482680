"""``POST /ag-ui/{agent}`` over the real gateway and log: names, retries, resuming, answers, resets, refusals."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from services.bridge.models import Retention
from tests.ag_ui.reader import Stream, ask, body, opened, publish, read
from tests.ag_ui.rules import Rules
from tests.conftest import Eventually
from tests.unit.gateway.harness import Gateway, gateway

BEGIN: Final[list[tuple[str, dict[str, Any]]]] = [
    ("run_accepted", {}),
    ("agent_started", {"agent_name": "data", "stage": 0}),
    ("agent_thinking", {"text": "hm"}),
    ("tool_executing", {"tool_name": "t", "tool_call_id": "c", "arguments": {"a": 1}}),
    ("agent_message", {"message_id": "m", "delta": "Hello "}),
]
END: Final[list[tuple[str, dict[str, Any]]]] = [
    ("tool_completed", {"tool_name": "t", "tool_call_id": "c", "status": "ok", "duration_ms": 1, "result": [1]}),
    ("agent_message", {"message_id": "m", "delta": "you"}),
    ("agent_completed", {"agent_name": "data", "result": {"a": 1}}),
    ("run_completed", {"status": "SUCCEEDED", "result": {"a": 1}}),
]


def run_of(g: Gateway, user: str = "alice", at: int = 0) -> str:
    """Our run, as execution has it."""
    return [run_id for owner, run_id in g.execution.runs if owner == user][at]


async def whole(g: Gateway, eventually: Eventually, user: str = "alice", **changes: Any) -> Stream:
    """A run that is read while it happens."""
    reading = asyncio.ensure_future(read(g, body(**changes), user))
    await eventually(lambda: any(owner == user for owner, _ in g.execution.runs))
    await publish(g, user, run_of(g, user), [*BEGIN, *END])
    return await reading


def check(events: list[dict[str, Any]]) -> None:
    """A stream that is a whole run, in order."""
    rules = Rules()
    for event in events:
        rules.take(event)
    assert rules.ended


async def test_a_run_is_told_and_read_on_after_each_of_its_records(tmp_path: Path, eventually: Eventually) -> None:
    async with gateway(tmp_path, max_events_per_user=16) as g:
        run = await whole(g, eventually)
        # What is read again is read from the log, and not from memory.
        await g.publish("alice", "run-another", 20)
        check(run.events)
        assert run.events[0]["threadId"] == "a thread of theirs"
        assert run.events[0]["metadata"]["carrel"]["run_id"] == run_of(g)
        assert run.last["result"] == {"a": 1}
        assert len({block.id for block in run.blocks}) == len(run.blocks)
        # A repetition of the request, and going on with it, begin nothing.
        assert (await read(g, body())).blocks == run.blocks
        for at, block in enumerate(run.blocks, 1):
            assert block.id is not None
            assert (await read(g, body(), after=block.id)).blocks == run.blocks[at:]
        assert len(g.execution.runs) == 1
        assert len(g.execution.requests) == 2


async def test_a_stream_that_is_cut_is_read_on_while_the_run_goes_on(tmp_path: Path, eventually: Eventually) -> None:
    async with gateway(tmp_path) as g:
        first = Stream()
        async with opened(g, body()) as reader:
            await eventually(lambda: bool(g.execution.runs))
            await publish(g, "alice", run_of(g), BEGIN)
            while not first.blocks or first.last.get("delta") != "Hello ":
                first.blocks.append(await reader.next())
        rest = asyncio.ensure_future(read(g, body(), after=reader.last_event_id))
        await publish(g, "alice", run_of(g), END)
        check([*first.events, *(await rest).events])


async def test_two_users_with_the_same_names_do_not_meet(tmp_path: Path, eventually: Eventually) -> None:
    async with gateway(tmp_path) as g:
        alice = await whole(g, eventually, "alice")
        bob = await whole(g, eventually, "bob")
        assert alice.events[0]["threadId"] == bob.events[0]["threadId"]
        own = [stream.events[0]["metadata"]["carrel"] for stream in (alice, bob)]
        assert own[0]["run_id"] != own[1]["run_id"]
        assert own[0]["thread_id"] != own[1]["thread_id"]
        # Alice's run, named by the ids of her records and questions, is nobody else's.
        after = alice.blocks[3].id or ""
        assert (await ask(g, body(), "bob", after))[0] == 404
        answer = [{"interruptId": f"{own[0]['run_id']}:input-1", "status": "resolved", "payload": True}]
        assert (await ask(g, body("r2", resume=answer), "bob"))[0] == 404
        assert g.execution.answers == []


def _more_runs(g: Gateway, count: int) -> bool:
    return len(g.execution.runs) > count


async def test_threads_keep_their_names(tmp_path: Path, eventually: Eventually) -> None:
    async with gateway(tmp_path) as g:
        for at, thread_id in enumerate(("thread-ours", "default", "ein Gespräch", "default")):
            async with opened(g, body(f"run {at}", thread_id)):
                await eventually(partial(_more_runs, g, at))
        threads = [run.thread_id for run in g.execution.runs.values()]
        assert threads[0] == "thread-ours"
        assert threads[1] == threads[3]
        assert len(set(threads)) == 3


async def test_what_agents_are_given(tmp_path: Path, eventually: Eventually) -> None:
    asked = body(
        messages=[
            {"id": "1", "role": "user", "content": "before"},
            {"id": "2", "role": "assistant", "content": "yes"},
            {"id": "3", "role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ],
        forwardedProps={"days": 7},
        context=[{"description": "page", "value": "/home"}],
        state={"theirs": 1, "carrel": {"status": "SUCCEEDED"}},
    )
    async with gateway(tmp_path) as g:
        async with opened(g, asked, agent="data,report") as reader:
            await eventually(lambda: bool(g.execution.runs))
            await publish(g, "alice", run_of(g), BEGIN)
            started, state = [(await reader.next()).data for _ in range(2)]
        request = g.execution.requests[0]
        assert (request.message, list(request.pipeline)) == ("a\nb", ["data", "report"])
        context = b'"context":[{"description":"page","value":"/home"}]'
        assert request.params_json == b'{"days":7,"ag_ui":{' + context + b',"state":{"theirs":1}}}'
        assert started["metadata"]["carrel"]["messages_left_out"] == 2
        assert state["snapshot"]["theirs"] == 1
        assert state["snapshot"]["carrel"]["status"] == "RUNNING"


async def test_an_answer_goes_on_with_the_run_and_is_given_once(tmp_path: Path, eventually: Eventually) -> None:
    async with gateway(tmp_path) as g:
        reading = asyncio.ensure_future(read(g, body()))
        await eventually(lambda: bool(g.execution.runs))
        run_id = run_of(g)
        question = {"input_id": "input-1", "prompt": "Go on?", "schema": {"type": "boolean"}}
        await publish(g, "alice", run_id, [*BEGIN, ("input_required", question)])
        first = await reading
        check(first.events)
        (interrupt,) = first.last["outcome"]["interrupts"]
        answer = [{"interruptId": interrupt["id"], "status": "resolved", "payload": True}]
        second = asyncio.ensure_future(read(g, body("r2", messages=[], resume=answer)))
        # The question is in the log before the run waits for its answer.
        await eventually(lambda: g.execution.watchers > 0)
        g.execution.ask("alice", run_id)
        await eventually(lambda: bool(g.execution.answers))
        await publish(g, "alice", run_id, END)
        g.execution.finish("alice", run_id)
        stream = await second
        check(stream.events)
        assert stream.events[0]["runId"] == "r2"
        assert stream.last["result"] == {"a": 1}
        assert [answer.value_json for answer in g.execution.answers] == [b"true"]
        # Asked again, it is told again; cut, it is read on.
        assert (await read(g, body("r2", messages=[], resume=answer))).blocks == stream.blocks
        for at in (1, 2, 4):
            again = await read(g, body("r2", messages=[], resume=answer), after=stream.blocks[at - 1].id or "")
            assert again.blocks == stream.blocks[at:]
        assert len(g.execution.answers) == 1
        other = body("r2", "another thread", messages=[], resume=answer)
        assert (await ask(g, other))[1]["code"] == "INVALID_REQUEST"


@pytest.mark.parametrize("tool", ["send_mail", ""])
async def test_an_abandoned_question_refuses_the_call_or_ends_the_run(
    tmp_path: Path, eventually: Eventually, tool: str
) -> None:
    async with gateway(tmp_path) as g:
        async with opened(g, body()):
            await eventually(lambda: bool(g.execution.runs))
        run_id = run_of(g)
        g.execution.ask("alice", run_id, tool_name=tool)
        answer = [{"interruptId": f"{run_id}:input-1", "status": "cancelled"}]
        if tool:
            # The fake takes true or false only: what it was given is what counts.
            assert (await ask(g, body("r2", resume=answer)))[1]["code"] == "INVALID_INPUT"
            assert b'"approved":false' in g.execution.answers[0].value_json
        else:
            async with opened(g, body("r2", resume=answer)):
                assert g.execution.runs["alice", run_id].ended_at.seconds > 0


async def test_an_unusable_position_is_told(tmp_path: Path, eventually: Eventually) -> None:
    async with gateway(tmp_path) as g:
        run = await whole(g, eventually)
        number, run_id, epoch, offset, _ = (run.blocks[5].id or "").split(":")
        wrong = await read(g, body(), after=f"{number}:{run_id}:{epoch}:{offset}:evt-another")
        assert wrong.kinds == ["CUSTOM", "RUN_ERROR"]
        assert wrong.last["code"] == "EVENTS_LOST"
        assert "without Last-Event-ID" in wrong.last["message"]
        beyond = await read(g, body(), after=f"1:{run_id}:{epoch}:99:evt-lost")
        assert beyond.kinds == ["CUSTOM", "RUN_ERROR"]
        assert beyond.events[0]["value"]["reason"] == "beyond_top"
        status, error = await ask(g, body("another run"), after=run.blocks[5].id or "")
        assert (status, error["details"]["fields"].keys()) == (400, {"Last-Event-ID"})
        assert (await ask(g, body(), after="41"))[0] == 400


async def test_a_log_without_its_first_or_last_events_is_told_as_far_as_it_goes(
    tmp_path: Path, eventually: Eventually
) -> None:
    async with gateway(tmp_path) as g:
        async with opened(g, body()):
            await eventually(lambda: bool(g.execution.runs))
        run_id = run_of(g)
        await publish(g, "alice", run_id, [*BEGIN, *END[:-1]])
        g.execution.finish("alice", run_id)
        async with opened(g, body()) as reader:
            begun = Stream([await reader.next() for _ in range(3)])
        assert begun.kinds[:2] == ["RUN_STARTED", "STATE_SNAPSHOT"]
        await publish(g, "alice", run_id, END[-1:])
        g.log.retain(Retention(max_entries=4))
        _ = await g.log.sweep()
        stream = await read(g, body())
        check(stream.events)
        assert [event["name"] for event in stream.events if event["type"] == "CUSTOM"] == ["carrel.reset"]


async def test_a_gateway_that_shuts_down_says_to_come_back(tmp_path: Path, eventually: Eventually) -> None:
    async with gateway(tmp_path) as g, opened(g, body()) as reader:
        await eventually(lambda: bool(g.execution.runs))
        await publish(g, "alice", run_of(g), BEGIN)
        await reader.next("message")
        leaving = asyncio.ensure_future(g.server.drain())
        bye = await reader.next("bye")
        assert bye.id is None
        assert bye.data["type"] == "RUN_ERROR"
        assert bye.data["code"] == "STREAM_DRAIN"
        assert bye.data["metadata"]["carrel"]["reconnect"] is True
        assert bye.data["metadata"]["carrel"]["retry_ms"] >= 1000
        await leaving


USER: Final = {"id": "1", "role": "user", "content": "hello"}
TOOL: Final = {"name": "t", "description": "d", "parameters": {}}
IMAGE: Final = {"type": "image", "source": {"type": "url", "value": "https://x", "mimeType": "image/png"}}


def deep(levels: int) -> dict[str, Any]:
    """A value that is deep."""
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


REFUSED: Final[list[tuple[dict[str, Any], str]]] = [
    ({"tools": [TOOL]}, "tools"),
    ({"messages": []}, "messages"),
    ({"messages": [{"id": "1", "role": "assistant", "content": "x"}]}, "messages"),
    ({"messages": [{**USER, "content": ""}]}, "messages"),
    ({"messages": [{**USER, "content": [IMAGE]}]}, "messages"),
    ({"messages": [{**USER, "content": 7}]}, "messages.0.user.content.str"),
    ({"messages": "x"}, "messages"),
    ({"threadId": ""}, "threadId"),
    ({"threadId": "x" * 1025}, "threadId"),
    ({"runId": None}, "runId"),
    ({"state": [1]}, "state"),
    ({"forwardedProps": "x"}, "forwardedProps"),
    ({"forwardedProps": {"ag_ui": 1}, "state": {"a": 1}}, "forwardedProps"),
    ({"resume": [{"interruptId": "x", "status": "resolved", "payload": 1}]}, "resume.0.interruptId"),
    ({"resume": [{"interruptId": "run-1:i", "status": "resolved"}]}, "resume.0.payload"),
    ({"resume": [{"interruptId": "run-1:i", "status": "perhaps"}]}, "resume.0.status"),
    ({"resume": [{"interruptId": "run-1:i", "status": "cancelled"}] * 2}, "resume"),
    ({"resume": [{"interruptId": "run-1:i", "status": "resolved", "payload": deep(300)}]}, "resume"),
    ({"state": deep(40)}, "state"),
    ({"state": deep(900)}, "state"),
    ({"forwardedProps": {"a": deep(300)}}, "forwardedProps"),
]


async def test_refusals_name_the_field(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        for wrong, named in REFUSED:
            status, error = await ask(g, body(**wrong))
            assert (status, error["code"]) == (400, "INVALID_REQUEST"), wrong
            assert named in error["details"]["fields"], wrong
            assert error["advice"], wrong
        assert not g.execution.requests


async def test_lists_without_end_are_refused_before_anybody_waits_for_their_faults(tmp_path: Path) -> None:
    many = [0] * 300_000
    async with gateway(tmp_path) as g:
        for field, wrong in (
            ("tools", {"tools": many}),
            ("context", {"context": many}),
            ("resume", {"resume": many}),
            ("messages", {"messages": [{**USER, "content": many}]}),
        ):
            before = time.process_time()
            status, error = await ask(g, body(**wrong))
            assert (status, error["details"]["fields"].keys()) == (400, {field})
            assert time.process_time() - before < 1.0, field


async def test_refusals_of_other_kinds(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        assert (await ask(g, ["x"]))[0] == 400
        assert (await ask(g, body(), agent="a,,b"))[0] == 400
        assert (await ask(g, body(messages=[{**USER, "content": "x" * 300_000}])))[1]["code"] == "TOO_LARGE"
        large = [{"interruptId": "run-nobody:i", "status": "resolved", "payload": "x" * 300_000}]
        assert (await ask(g, body(resume=large)))[1]["code"] == "TOO_LARGE"
        answer = [{"interruptId": "run-nobody:i", "status": "cancelled"}]
        assert (await ask(g, body(resume=answer)))[1]["code"] == "UNKNOWN_RUN"
        async with g.http.post(f"{g.url}/ag-ui", json=body()) as response:
            assert response.status == 401
        async with g.http.post(f"{g.url}/ag-ui", json=body(), headers={"Origin": "https://evil"}) as response:
            assert response.status == 403
        assert not g.execution.requests
