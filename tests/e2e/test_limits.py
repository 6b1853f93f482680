"""How much one user may have at once, asked for all at once: engines, unended runs, the same request repeated."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import aiohttp
import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # ships no types
from grpc import aio

from carrel.ids import new_id
from carrel.rpc_errors import from_rpc_error
from carrel.v1 import context_pb2, execution_pb2
from carrel.v1.execution_pb2_grpc import ExecutionServiceStub
from tests.conftest import Eventually
from tests.support.stack import RunningStack

_ENGINES: Final = "max_engines_per_user"
_UNENDED: Final = "max_unended_runs_per_user"


@pytest.fixture
def stack(probe_stack: RunningStack) -> RunningStack:
    """Five processes with the packaged agents and the probes, for users of the test's own."""
    return probe_stack


class Caller:
    """One user past the gateway. Every run that it was given is ended with it."""

    def __init__(self, stack: RunningStack, channel: aio.Channel, limits: Mapping[str, int] | None = None) -> None:
        self.user = new_id("user")
        self.limits = dict(limits or {})
        self._stack = stack
        self._stub = ExecutionServiceStub(channel)

    def session(self) -> context_pb2.UserExecutionContext:
        """A context to ask under."""
        ticket = self._stack.minter.mint_session(self.user, (), self.limits)
        return context_pb2.UserExecutionContext(user_id=self.user, ticket=ticket)

    def request(self, agent: str = "hold", message: str = "hello", **more: Any) -> execution_pb2.ExecutePipelineRequest:
        """A request for a run with ids of its own."""
        thread, run, root = new_id("thread"), new_id("run"), new_id("req")
        ticket = self._stack.minter.mint_run(self.user, thread, run, root, (), self.limits)
        context = context_pb2.UserExecutionContext(
            user_id=self.user, thread_id=thread, run_id=run, request_id=root, ticket=ticket
        )
        return execution_pb2.ExecutePipelineRequest(context=context, message=message, pipeline=[agent], **more)

    async def execute(self, agent: str = "hold", message: str = "hello", **more: Any) -> Any:
        """The response, or the error."""
        try:
            return await self._stub.ExecutePipeline(self.request(agent, message, **more), timeout=30)
        except aio.AioRpcError as error:
            return error

    async def create_engine(self) -> Any:
        """The response, or the error."""
        try:
            return await self._stub.CreateEngine(execution_pb2.CreateEngineRequest(context=self.session()), timeout=10)
        except aio.AioRpcError as error:
            return error

    async def cleanup(self, engine_id: str) -> bool:
        """Whether there was such an engine."""
        request = execution_pb2.CleanupEngineRequest(context=self.session(), engine_id=engine_id)
        answer: execution_pb2.CleanupEngineResponse = await self._stub.CleanupEngine(request, timeout=10)
        return answer.cleaned

    async def runs(self) -> list[execution_pb2.Run]:
        """All of the user's runs."""
        request = execution_pb2.ListRunsRequest(context=self.session(), page_size=200)
        return list((await self._stub.ListRuns(request, timeout=10)).runs)

    async def engines(self) -> list[execution_pb2.Engine]:
        """The user's active engines."""
        request = execution_pb2.ListEnginesRequest(context=self.session())
        return list((await self._stub.ListEngines(request, timeout=10)).engines)

    async def cancel(self, run_id: str) -> None:
        """Ask for a run's end."""
        request = execution_pb2.CancelRunRequest(context=self.session(), run_id=run_id)
        await self._stub.CancelRun(request, timeout=10)


@pytest.fixture
async def channel(stack: RunningStack) -> AsyncIterator[aio.Channel]:
    """A plain channel to execution."""
    async with aio.insecure_channel(stack.address("execution")) as opened:
        yield opened


async def _end(caller: Caller) -> None:
    await asyncio.gather(*(caller.cancel(run.run_id) for run in await caller.runs()))


def _details(error: aio.AioRpcError) -> dict[str, Any]:
    """The typed details of a refusal, by their names."""
    metadata = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
    found: dict[str, Any] = {}
    for packed in status.details:
        name = packed.TypeName().rpartition(".")[2]
        detail = getattr(error_details_pb2, name)()
        packed.Unpack(detail)
        found[name] = detail
    return found


def _check_refusal(refused: Any, limit: str, value: int, use: int, code: str) -> None:
    assert isinstance(refused, aio.AioRpcError), refused
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    details = _details(refused)
    assert details["ErrorInfo"].reason == code
    assert [violation.subject for violation in details["QuotaFailure"].violations] == [limit]
    assert 0 < details["RetryInfo"].retry_delay.ToMilliseconds() <= 5000
    error = from_rpc_error(refused)
    assert (error.details["limit"], error.details["limit_value"], error.details["use"]) == (limit, value, use)
    assert error.retryable
    assert error.message
    assert error.advice


async def test_of_a_hundred_requests_at_once_exactly_two_are_admitted(
    stack: RunningStack, channel: aio.Channel
) -> None:
    caller, other = Caller(stack, channel), Caller(stack, channel)
    answers = await asyncio.gather(*(caller.execute() for _ in range(100)), other.execute())
    mine = answers[:100]
    admitted = [answer for answer in mine if isinstance(answer, execution_pb2.ExecutePipelineResponse)]
    refused = [answer for answer in mine if not isinstance(answer, execution_pb2.ExecutePipelineResponse)]
    assert (len(admitted), len(refused)) == (2, 98)
    for answer in refused:
        _check_refusal(answer, _ENGINES, 2, 2, "ENGINES_LIMIT")
    assert isinstance(answers[100], execution_pb2.ExecutePipelineResponse), "another user is not concerned"
    assert {run.run_id for run in await caller.runs()} == {answer.run.run_id for answer in admitted}
    assert len(await caller.engines()) == 2
    await asyncio.gather(_end(caller), _end(other))


async def test_of_a_hundred_reservations_at_once_exactly_two_are_made(
    stack: RunningStack, channel: aio.Channel
) -> None:
    caller = Caller(stack, channel)
    answers = await asyncio.gather(*(caller.create_engine() for _ in range(100)))
    made = [answer for answer in answers if isinstance(answer, execution_pb2.CreateEngineResponse)]
    assert len(made) == 2
    for answer in answers:
        if answer not in made:
            _check_refusal(answer, _ENGINES, 2, 2, "ENGINES_LIMIT")
    for answer in made:
        assert await caller.cleanup(answer.engine.engine_id)


async def test_a_third_engine_is_refused_whatever_holds_the_first_two(
    stack: RunningStack, channel: aio.Channel, eventually: Eventually
) -> None:
    caller = Caller(stack, channel)
    run = await caller.execute()
    reserved = await caller.create_engine()
    _check_refusal(await caller.execute(), _ENGINES, 2, 2, "ENGINES_LIMIT")
    _check_refusal(await caller.create_engine(), _ENGINES, 2, 2, "ENGINES_LIMIT")
    # A run on the reserved engine takes no third one.
    on_it = await caller.execute(engine_id=reserved.engine.engine_id)
    assert on_it.run.engine_id == reserved.engine.engine_id
    again = await caller.execute(engine_id=reserved.engine.engine_id)
    assert again.code() is grpc.StatusCode.NOT_FOUND, "one run on each engine"
    # An end makes room, within the 5 s that are promised.
    await caller.cancel(run.run.run_id)

    async def room() -> Any:
        return len(await caller.engines()) == 1

    await eventually(room, what="the cancelled run's engine is free")
    assert isinstance(await caller.execute(), execution_pb2.ExecutePipelineResponse)
    await _end(caller)


async def test_cleaning_an_engine_up_ends_its_run_and_makes_room(stack: RunningStack, channel: aio.Channel) -> None:
    caller = Caller(stack, channel)
    first, _ = await caller.execute(), await caller.execute()
    assert await caller.cleanup(first.run.engine_id)
    assert not await caller.cleanup(first.run.engine_id), "it is gone"
    assert isinstance(await caller.execute(), execution_pb2.ExecutePipelineResponse)
    ended = next(run for run in await caller.runs() if run.run_id == first.run.run_id)
    assert execution_pb2.RUN_STATE_CANCELLED in {ended.state, ended.outcome}
    await _end(caller)


async def test_a_sixth_unended_run_is_refused(stack: RunningStack, channel: aio.Channel) -> None:
    caller = Caller(stack, channel, limits={_ENGINES: 50})
    answers = await asyncio.gather(*(caller.execute() for _ in range(30)))
    admitted = [answer for answer in answers if isinstance(answer, execution_pb2.ExecutePipelineResponse)]
    assert len(admitted) == 5
    for answer in answers:
        if answer not in admitted:
            _check_refusal(answer, _UNENDED, 5, 5, "UNENDED_RUNS")
    await _end(caller)


@pytest.mark.parametrize(
    ("limits", "admitted", "limit"),
    [
        ({_ENGINES: 3}, 3, _ENGINES),
        ({_ENGINES: 1}, 1, _ENGINES),
        ({_ENGINES: 0}, 0, _ENGINES),
        ({_ENGINES: 50, _UNENDED: 7}, 7, _UNENDED),
        ({_UNENDED: 1}, 1, _UNENDED),
        ({"some_other_limit": 50}, 2, _ENGINES),
    ],
)
async def test_the_ticket_s_own_limits_count(
    limits: dict[str, int], admitted: int, limit: str, stack: RunningStack, channel: aio.Channel
) -> None:
    caller = Caller(stack, channel, limits)
    answers = await asyncio.gather(*(caller.execute() for _ in range(12)))
    counted = Counter(type(answer).__name__ for answer in answers)
    assert counted["ExecutePipelineResponse"] == admitted
    refused = next(answer for answer in answers if isinstance(answer, aio.AioRpcError))
    assert from_rpc_error(refused).details["limit"] == limit
    await _end(caller)


async def test_ended_runs_hold_nothing(stack: RunningStack, channel: aio.Channel) -> None:
    caller = Caller(stack, channel)
    for _ in range(12):
        answer = await caller.execute("echo")
        assert isinstance(answer, execution_pb2.ExecutePipelineResponse), answer
        stub = ExecutionServiceStub(channel)
        watch = execution_pb2.WatchRunRequest(context=caller.session(), run_id=answer.run.run_id)
        states = [change.run.state async for change in stub.WatchRun(watch, timeout=20)]
        assert states[-1] == execution_pb2.RUN_STATE_SUCCEEDED
    assert not await caller.engines()


# The same request again.


async def test_the_same_request_twenty_times_at_once_is_one_run(stack: RunningStack, channel: aio.Channel) -> None:
    caller = Caller(stack, channel)
    answers = await asyncio.gather(*(caller.execute(client_ref="again", params_json=b'{"n":1}') for _ in range(20)))
    assert {answer.run.run_id for answer in answers} == {answers[0].run.run_id}
    assert sorted(answer.existing for answer in answers) == [False] + [True] * 19
    assert len(await caller.runs()) == 1
    assert len(await caller.engines()) == 1
    await _end(caller)
    # Once it has ended, too.
    ended = await caller.execute(client_ref="again", params_json=b'{"n":1}')
    assert (ended.existing, ended.run.run_id) == (True, answers[0].run.run_id)


@pytest.mark.parametrize(
    "other", [{"message": "other"}, {"agent": "echo"}, {"params_json": b'{"n":2}'}, {"params_json": b""}]
)
async def test_the_same_client_ref_for_other_content_already_exists(
    other: dict[str, Any], stack: RunningStack, channel: aio.Channel
) -> None:
    caller = Caller(stack, channel)
    same: dict[str, Any] = {"client_ref": "again", "params_json": b'{"n":1}'}
    first = await caller.execute(**same)
    refused = await caller.execute(**(same | other))
    assert isinstance(refused, aio.AioRpcError)
    assert refused.code() is grpc.StatusCode.ALREADY_EXISTS
    error = from_rpc_error(refused)
    assert (error.code, error.retryable) == ("IDEMPOTENCY_CONFLICT", False)
    assert error.advice
    assert [run.run_id for run in await caller.runs()] == [first.run.run_id]
    await _end(caller)


async def test_ten_contents_under_one_client_ref_at_once_are_one_run_and_nine_refusals(
    stack: RunningStack, channel: aio.Channel
) -> None:
    caller = Caller(stack, channel)
    answers = await asyncio.gather(*(caller.execute(message=f"m{n}", client_ref="again") for n in range(10)))
    admitted = [answer for answer in answers if isinstance(answer, execution_pb2.ExecutePipelineResponse)]
    assert len(admitted) == 1
    codes = Counter(answer.code() for answer in answers if isinstance(answer, aio.AioRpcError))
    assert codes == {grpc.StatusCode.ALREADY_EXISTS: 9}
    await _end(caller)


async def test_parameters_in_another_order_are_the_same_request(stack: RunningStack, channel: aio.Channel) -> None:
    caller = Caller(stack, channel)
    first = await caller.execute(client_ref="again", params_json=b'{"a": 1, "b": 2}')
    second = await caller.execute(client_ref="again", params_json=b'{"b":2,"a":1}')
    assert (second.existing, second.run.run_id) == (True, first.run.run_id)
    await _end(caller)


async def test_a_run_id_that_is_taken_is_not_given_to_another_request(
    stack: RunningStack, channel: aio.Channel
) -> None:
    caller = Caller(stack, channel)
    request = caller.request()
    stub = ExecutionServiceStub(channel)
    first = await stub.ExecutePipeline(request, timeout=10)
    again = await stub.ExecutePipeline(request, timeout=10)
    assert (again.existing, again.run.run_id) == (True, first.run.run_id), "a repeat that lost its answer"
    request.message = "something else"
    with pytest.raises(aio.AioRpcError) as caught:
        await stub.ExecutePipeline(request, timeout=10)
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert "run_id" in from_rpc_error(caught.value).message
    await _end(caller)


# Through the gateway.


async def _execute_over_rest(http: aiohttp.ClientSession, **body: Any) -> tuple[int, dict[str, Any], str]:
    asked = {"message": "hello", "agent_name": "hold"} | body
    async with http.post("/api/agents/execute", json=asked, headers={"Prefer": "respond-async"}) as response:
        return response.status, await response.json(), response.headers.get("Retry-After", "")


async def test_rest_answers_429_with_the_limit_and_when_to_try_again(stack: RunningStack, channel: aio.Channel) -> None:
    caller = Caller(stack, channel)
    headers = {"Authorization": f"Bearer {stack.token(caller.user)}"}
    async with aiohttp.ClientSession(stack.url, headers=headers) as http:
        answers = await asyncio.gather(*(_execute_over_rest(http) for _ in range(20)))
    assert Counter(status for status, _, _ in answers) == {202: 2, 429: 18}
    for status, body, retry_after in answers:
        if status == 429:
            details = body["error"]["details"]
            assert (details["limit"], details["limit_value"], details["use"]) == (_ENGINES, 2, 2)
            assert body["error"]["advice"]
            assert int(retry_after) >= 1
    await _end(caller)


async def test_the_token_s_limits_claim_and_an_idempotency_key_hold_over_rest(
    stack: RunningStack, channel: aio.Channel
) -> None:
    caller = Caller(stack, channel)
    token = stack.token(caller.user, limits={_ENGINES: 4})
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(stack.url, headers=headers) as http:
        answers = await asyncio.gather(*(_execute_over_rest(http, client_ref="again") for _ in range(20)))
        assert Counter(status for status, _, _ in answers) == {202: 20}
        assert len({body["run_id"] for _, body, _ in answers}) == 1
        others = await asyncio.gather(*(_execute_over_rest(http) for _ in range(20)))
        assert Counter(status for status, _, _ in others) == {202: 3, 429: 17}
        status, body, _ = await _execute_over_rest(http, client_ref="again", message="other")
        assert (status, body["error"]["code"]) == (409, "IDEMPOTENCY_CONFLICT")
    await _end(caller)


async def test_a_socket_is_told_the_limit_and_goes_on(stack: RunningStack, channel: aio.Channel) -> None:
    caller = Caller(stack, channel)
    headers = {"Authorization": f"Bearer {stack.token(caller.user)}"}
    async with aiohttp.ClientSession(stack.url, headers=headers) as http, http.ws_connect("/ws") as socket:
        frame = {"type": "agent_execute", "message": "hello", "agent_name": "hold"}
        for n in range(6):
            await socket.send_json(frame | {"client_ref": f"ref-{n}"})
        answers: dict[str, dict[str, Any]] = {}
        while len(answers) < 6:
            said = await socket.receive_json(timeout=10)
            if said.get("type") in {"run_accepted", "error"}:
                answers[said["client_ref"]] = said
        counted = Counter(said["type"] for said in answers.values())
        assert counted == {"run_accepted": 2, "error": 4}
        for said in answers.values():
            if said["type"] == "error":
                assert (said["code"], said["retryable"]) == ("ENGINES_LIMIT", True)
                assert said["retry_after_s"] > 0
        await socket.send_json({"type": "ping", "client_ref": "still here"})
        while said.get("type") != "pong":
            said = await socket.receive_json(timeout=10)
    await _end(caller)
