"""Hostile JSON at every door: bodies, frames, the contract's fields. Answered or refused, never a fault."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any, Final

import aiohttp
import grpc
import pytest
from aiohttp import WSMsgType
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from grpc import aio

from carrel.ids import new_id
from carrel.v1 import agent_instance_pb2, events_pb2
from gateway.frames import _RULES as FRAME_RULES
from tests.security.forge import Forge, Who
from tests.security.gateway_calls import ask, bearer, connected
from tests.security.hostile_json import BYTES, NASTY, filled, json_fields
from tests.security.rpc_table import ROWS, SERVERS, methods, request_for
from tests.security.test_every_route import _routes
from tests.support.stack import RunningStack

_FAULTS: Final = ("unexpected error", "could not be judged", "Traceback", "Exception in callback")
_FAULTY: Final = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE}
_LONGEST_S: Final = 3.0
_RUN_INSTANCE: Final = "carrel.v1.AgentInstanceService.RunInstance"


@pytest.fixture(autouse=True)
def no_faults(stack: RunningStack) -> Iterator[None]:
    """No process has had to say that something was not foreseen, and none was started again."""
    before, pids = len(stack.log()), {name: stack.pid(name) for name in SERVERS.values()}
    yield
    said = stack.log()[before:]
    assert not [line[:2000] for line in said.splitlines() if any(fault in line for fault in _FAULTS)]
    assert {name: stack.pid(name) for name in SERVERS.values()} == pids


# REST.

_BODIES: Final[dict[str, str]] = {
    "POST /api/agents/execute": '{{"message":"hello","agent_name":"nobody","params":{{"x":{}}}}}',
    "POST /api/runs/{run_id}/cancel": '{{"reason":{}}}',
    "POST /api/runs/{run_id}/input": '{{"input_id":"input-1","value":{}}}',
    "POST /api/tickets": '{{"scope":"session","permissions":{}}}',
    "POST /api/socket-tokens": '{{"x":{}}}',
    "POST /api/logout": '{{"everywhere":{}}}',
    "POST /ag-ui": (
        '{{"threadId":"t","runId":"r","messages":[],'
        '"resume":[{{"interruptId":"run-nobody:i","status":"resolved","payload":{}}}]}}'
    ),
    "POST /ag-ui/{agent}": '{{"threadId":"t","runId":"r","messages":[{{"id":"1","role":"user","content":{}}}]}}',
    "POST /console/sign-in": '{{"user":{}}}',
}


def test_every_route_with_a_body_has_a_row() -> None:
    assert {route for route in _routes() if not route.startswith(("GET", "DELETE"))} == set(_BODIES)


async def _answer(request: Any, body: bytes) -> tuple[int, Any, float]:
    """The status, what was said, and seconds: what is slow is so each time, a machine that stands still once."""
    for again in (True, True, False):
        began = time.monotonic()
        async with request(data=body) as response:
            answer = await response.json()
        took = time.monotonic() - began
        if took <= _LONGEST_S or not again:
            return response.status, answer, took
    raise AssertionError


@pytest.mark.parametrize("route", sorted(_BODIES))
async def test_bodies(route: str, stack: RunningStack, http: aiohttp.ClientSession) -> None:
    method, _, path = route.partition(" ")
    before, _, after = _BODIES[route].format("|").partition("|")
    problems = []
    for name, value in {**NASTY, **BYTES}.items():
        for body in (value, before.encode() + value + after.encode()):
            # A user for each: a logout that is taken ends no other's login.
            headers = bearer(stack.token(new_id("user"))) | {"Content-Type": "application/json"}
            request = partial(http.request, method, path.format(run_id="run-1", agent="nobody"), headers=headers)
            status, answer, took = await _answer(request, body)
            if status >= 500:
                problems.append(f"{name}: {status} {answer}")
            elif status >= 400 and not answer["error"]["advice"]:
                problems.append(f"{name}: does not say what to do")
            if took > _LONGEST_S:
                problems.append(f"{name}: takes {took:.1f} s")
    assert not problems, "\n".join(problems)


async def test_a_name_that_comes_twice_in_a_body_is_refused(stack: RunningStack, http: aiohttp.ClientSession) -> None:
    headers = bearer(stack.token(new_id("user"))) | {"Content-Type": "application/json"}
    for body in (
        '{"message":"a","message":"b","agent_name":"echo"}',
        '{"message":"a","agent_name":"echo","params":{"x":1,"x":2}}',
        '{"message":"a","agent_name":"echo","agent_\\u006eame":"keeper"}',
        '{"message":"a","agent_name":"echo","params":{' + ",".join(['"x":1'] * 20_000) + "}}",
    ):
        async with http.post("/api/agents/execute", data=body, headers=headers) as response:
            answer = await response.json()
        assert response.status == 400, answer
        assert "twice" in answer["error"]["message"]


# Frames.


async def _until_pong(socket: aiohttp.ClientWebSocketResponse, ref: str) -> list[dict[str, Any]] | None:
    """What is said up to the answer to a ping; None when the connection ends."""
    said: list[dict[str, Any]] = []
    await socket.send_json({"type": "ping", "client_ref": ref})
    while True:
        message = await socket.receive(timeout=10)
        if message.type is not WSMsgType.TEXT:
            return None
        frame = message.json()
        if (frame.get("type"), frame.get("client_ref")) == ("pong", ref):
            return said
        said.append(frame)


def _frames(kind: str) -> Iterator[tuple[str, str]]:
    fields = {"agent_execute": '"message":"hello","agent_name":"nobody",', "agent_cancel": '"run_id":"run-1",'}
    fields["input_provide"] = '"run_id":"run-1","input_id":"input-1",'
    for name, value in NASTY.items():
        text = value.decode()
        yield f"{name} as the frame", text
        for field in FRAME_RULES[kind]:
            known = "" if f'"{field}"' in fields.get(kind, "") else fields.get(kind, "")
            inner = f'{{"x":{text}}}' if field == "params" else text
            yield f"{name} in {field}", f'{{"type":"{kind}",{known}"{field}":{inner}}}'


@pytest.mark.parametrize("kind", sorted(FRAME_RULES))
async def test_frames(kind: str, stack: RunningStack, http: aiohttp.ClientSession) -> None:
    user, problems = new_id("user"), []
    frames = iter(_frames(kind))
    name, text = next(frames)
    done = False
    while not done:
        async with connected(http, "/ws", bearer(stack.token(user))) as socket:
            while True:
                began = time.monotonic()
                await socket.send_str(text)
                said = await _until_pong(socket, new_id("ref"))
                if time.monotonic() - began > _LONGEST_S:
                    problems.append(f"{name}: takes {time.monotonic() - began:.1f} s")
                if said is None and (socket.close_code or 0) == 4004:
                    problems.append(f"{name}: closed by a fault")
                problems += [f"{name}: {frame}" for frame in said or () if "INTERNAL" in str(frame)]
                following = next(frames, None)
                done = following is None
                if following is not None:
                    name, text = following
                if said is None or done:
                    break
    assert not problems, "\n".join(problems)


async def test_binary_frames(stack: RunningStack, http: aiohttp.ClientSession) -> None:
    for name, data in {**NASTY, **BYTES}.items():
        async with connected(http, "/ws", bearer(stack.token(new_id("user")))) as socket:
            await socket.send_bytes(data)
            said = await _until_pong(socket, new_id("ref"))
            assert socket.close_code != 4004, name
            assert said is None or said[0]["code"] == "FRAME", name


# The contract's fields.


@pytest.fixture
async def channels(stack: RunningStack) -> AsyncIterator[dict[str, aio.Channel]]:
    """Plain channels to the four services."""
    opened = {name: aio.insecure_channel(stack.address(name)) for name in SERVERS.values()}
    yield opened
    await asyncio.gather(*(channel.close() for channel in opened.values()))


def _requests(name: str, way: tuple[FieldDescriptor, ...], value: bytes, forge: Forge) -> list[Message]:
    who = Who("run", new_id("user"), new_id("thread"), new_id("run"), new_id("req"))
    context = forge.good(who if "run" in ROWS[name].scopes else Who(min(ROWS[name].scopes), who.user))
    method = methods()[name]
    if not method.client_streaming:
        return [filled(request_for(name, context), way, value)]
    request: Any = message_factory.GetMessageClass(method.input_type)
    if way[0].is_repeated:
        item = events_pb2.ProducerEvents(context=context, producer_id=new_id("prod"), fence=1, attempt=1)
        event = item.events.add(event_id=new_id("ev"), number=1, event_type="agent_thinking", agent_name="echo")
        event.timestamp.GetCurrentTime()
        return [filled(request(items=[item]), way, value)]
    start = agent_instance_pb2.StartStage(
        agent_name="echo", attempt=1, fence=1, producer_id=new_id("prod"), message="hello"
    )
    first = request(context=context, start=start)
    if way[0].name == "start":
        return [filled(first, way, value)]
    return [first, filled(request(context=context), way, value)]


async def _as_execution(running: Any, first: Any, answer: Any) -> None:
    """What execution does with a message: acknowledge the journal, close the stream after the result."""
    if answer.HasField("journal_entry"):
        stored = agent_instance_pb2.JournalStored(through=answer.journal_entry.number)
        await running.write(agent_instance_pb2.RunInstanceRequest(context=first.context, journal_stored=stored))
    elif answer.HasField("result") or answer.HasField("input_required"):
        await running.done_writing()


async def _outcome(channel: aio.Channel, name: str, requests: list[Message]) -> tuple[grpc.StatusCode, list[Any]]:
    method = methods()[name]
    response: Any = message_factory.GetMessageClass(method.output_type)
    path = f"/{method.containing_service.full_name}/{method.name}"
    answers = []
    try:
        if method.client_streaming:
            open_stream: Any = channel.stream_stream(
                path, request_serializer=type(requests[0]).SerializeToString, response_deserializer=response.FromString
            )
            running = open_stream(timeout=10)
            for request in requests:
                await running.write(request)
            if name != _RUN_INSTANCE:
                await running.done_writing()
            async for answer in running:
                answers += [answer]
                if name == _RUN_INSTANCE:
                    await _as_execution(running, requests[0], answer)
        else:
            call: Any = channel.unary_unary(
                path, request_serializer=type(requests[0]).SerializeToString, response_deserializer=response.FromString
            )
            answers.append(await call(requests[0], timeout=10))
    except aio.AioRpcError as error:
        return error.code(), answers
    return grpc.StatusCode.OK, answers


@pytest.mark.parametrize(
    ("name", "way"),
    [pytest.param(name, way, id=f"{name} {'.'.join(field.name for field in way)}") for name, way in json_fields()],
)
async def test_fields_of_the_contract(
    name: str, way: tuple[FieldDescriptor, ...], forge: Forge, channels: dict[str, aio.Channel]
) -> None:
    problems = []
    for nasty, value in {**NASTY, **BYTES}.items():
        for wrapped in (value, b'{"text":"x","more":' + value + b"}"):
            status, answers = await _outcome(
                channels[SERVERS[name.rpartition(".")[0]]], name, _requests(name, way, wrapped, forge)
            )
            if status in _FAULTY:
                problems.append(f"{nasty}: {status.name}")
            problems += [f"{nasty}: {answer}" for answer in answers if "INTERNAL" in str(answer)]
    assert not problems, "\n".join(problems)


async def test_an_honest_user_is_served_after_all_this(stack: RunningStack, http: aiohttp.ClientSession) -> None:
    status, _, body = await ask(http, "POST /api/agents/execute", bearer(stack.token(new_id("user"))))
    assert (status, body["status"]) == (200, "SUCCEEDED")
