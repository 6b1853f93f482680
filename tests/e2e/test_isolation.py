"""Two users who use the same ids on purpose, at the same time, through every door, see nothing of each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import pytest
from grpc import aio

from carrel.client import Event, Position
from carrel.ids import new_id
from carrel.v1 import bridge_pb2, emitter_pb2, execution_pb2
from carrel.v1.bridge_pb2_grpc import BridgeServiceStub
from carrel.v1.emitter_pb2_grpc import EmitterServiceStub
from carrel.v1.execution_pb2_grpc import ExecutionServiceStub
from tests.support.stack import RunningStack

_USERS: Final = ("alice", "bob", "carol")
_KINDS: Final = [
    "run_accepted",
    "agent_started",
    "agent_thinking",
    "agent_thinking",
    "agent_completed",
    "run_completed",
]


@pytest.fixture
def stack(probe_stack: RunningStack) -> RunningStack:
    """Five processes with the packaged agents and the probes, for users of the test's own."""
    return probe_stack


@dataclass(frozen=True)
class Services:
    """Stubs past the gateway."""

    execution: ExecutionServiceStub
    emitter: EmitterServiceStub
    bridge: BridgeServiceStub


@pytest.fixture
async def services(stack: RunningStack) -> AsyncIterator[Services]:
    """Stubs on channels of the test's own."""
    channels = [aio.insecure_channel(stack.address(name)) for name in ("execution", "emitter", "bridge")]
    yield Services(ExecutionServiceStub(channels[0]), EmitterServiceStub(channels[1]), BridgeServiceStub(channels[2]))
    await asyncio.gather(*(channel.close() for channel in channels))


def _words(user: str) -> str:
    return f"a secret of {user}"


def _context(stack: RunningStack, user: str, ids: Mapping[str, str]) -> Any:
    return stack.run_context(user, thread=ids["thread"], run=ids["run"], request=ids["request"])


async def _run(
    stack: RunningStack, services: Services, user: str, ids: Mapping[str, str], client_ref: str
) -> execution_pb2.Run:
    """A run under ids of the caller's choice, from its admission to its end."""
    context = _context(stack, user, ids)
    request = execution_pb2.ExecutePipelineRequest(
        context=context, message=_words(user), pipeline=["keeper"], client_ref=client_ref
    )
    admitted = await services.execution.ExecutePipeline(request, timeout=10)
    assert not admitted.existing, f"{user} was given another run"
    watch = execution_pb2.WatchRunRequest(context=context, run_id=ids["run"])
    runs = [answer.run async for answer in services.execution.WatchRun(watch, timeout=30)]
    return runs[-1]


async def _log(stack: RunningStack, services: Services, user: str) -> list[Any]:
    request = bridge_pb2.ReadEventsRequest(context=stack.session_context(user))
    answers = services.bridge.ReadEvents(request, timeout=10)
    return [entry async for answer in answers for entry in answer.entries.entries]


def _fresh() -> tuple[str, ...]:
    """Three users that no other test has, so that their logs hold this test's events only."""
    mark = new_id("u")
    return tuple(f"{user}-{mark}" for user in _USERS)


async def test_the_same_ids_are_each_user_s_own(stack: RunningStack, services: Services) -> None:
    users = _fresh()
    for turn in range(3):
        ids = {"thread": "shared-thread", "run": f"shared-run-{turn}", "request": f"shared-request-{turn}"}
        runs = await asyncio.gather(*(_run(stack, services, user, ids, f"shared-ref-{turn}") for user in users))
        for user, run in zip(users, runs, strict=True):
            assert run.state == execution_pb2.RUN_STATE_SUCCEEDED
            assert (run.run_id, run.thread_id, run.request_id) == (ids["run"], ids["thread"], ids["request"])
            assert _words(user).encode() in run.result_json
            assert not any(other.encode() in run.result_json for other in users if other != user)
    for user in users:
        entries = await _log(stack, services, user)
        assert [entry.offset for entry in entries] == list(range(1, 3 * len(_KINDS) + 1))
        for turn in range(3):
            mine = [entry for entry in entries if entry.run_id == f"shared-run-{turn}"]
            assert [entry.event_type for entry in mine] == _KINDS
            assert {entry.thread_id for entry in mine} == {"shared-thread"}
            assert {entry.request_id for entry in mine} == {
                f"shared-request-{turn}",
                f"shared-request-{turn}_filing",
            }
        whole = b"".join(entry.data for entry in entries)
        assert _words(user).encode() in whole
        assert not any(other.encode() in whole for other in users if other != user)


async def test_runs_threads_and_artifacts_of_the_same_names_have_their_owner_s_content(
    stack: RunningStack, services: Services
) -> None:
    users = _fresh()
    ids = {"thread": "shared-thread", "run": "shared-run", "request": "shared-request"}
    await asyncio.gather(*(_run(stack, services, user, ids, "shared-ref") for user in users))
    for user in users:
        context = stack.session_context(user)
        listed = await services.execution.ListRuns(execution_pb2.ListRunsRequest(context=context), timeout=5)
        assert [(run.run_id, run.client_ref) for run in listed.runs] == [("shared-run", "shared-ref")]
        threads = await services.execution.ListThreads(execution_pb2.ListThreadsRequest(context=context), timeout=5)
        assert [(thread.thread_id, thread.message_count) for thread in threads.threads] == [("shared-thread", 2)]
        thread = await services.execution.GetThread(
            execution_pb2.GetThreadRequest(context=context, thread_id="shared-thread"), timeout=5
        )
        assert thread.messages[0].text == _words(user)
        assert not any(other in str(thread) for other in users if other != user)
        asked = execution_pb2.GetArtifactRequest(context=context, run_id="shared-run", name="note.txt")
        pieces = [piece.data async for piece in services.execution.GetArtifact(asked, timeout=5)]
        assert b"".join(pieces) == _words(user).encode()
        audit = await services.execution.ListAuditRecords(
            execution_pb2.ListAuditRecordsRequest(context=context), timeout=5
        )
        assert {record.user_id for record in audit.records} <= {user}
        where = await services.bridge.ResolveRun(
            bridge_pb2.ResolveRunRequest(context=context, run_id="shared-run"), timeout=5
        )
        assert (where.first_offset, where.last_offset, where.sealed) == (1, len(_KINDS), True)


async def test_ending_one_s_own_leaves_the_other_s_of_the_same_name(stack: RunningStack, services: Services) -> None:
    alice, bob, _ = _fresh()
    ids = {"thread": "shared-thread", "run": "shared-run", "request": "shared-request"}
    for user in (alice, bob):
        request = execution_pb2.ExecutePipelineRequest(
            context=_context(stack, user, ids), message=_words(user), pipeline=["hold"]
        )
        await services.execution.ExecutePipeline(request, timeout=10)
    watch = execution_pb2.WatchRunRequest(context=stack.session_context(bob), run_id="shared-run")
    cancel = execution_pb2.CancelRunRequest(context=stack.session_context(bob), run_id="shared-run")
    await services.execution.CancelRun(cancel, timeout=10)
    states = [answer.run.state async for answer in services.execution.WatchRun(watch, timeout=20)]
    assert states[-1] == execution_pb2.RUN_STATE_CANCELLED
    delete = execution_pb2.DeleteThreadRequest(context=stack.session_context(bob), thread_id="shared-thread")
    assert (await services.execution.DeleteThread(delete, timeout=10)).deleted
    hers = await services.execution.GetRun(
        execution_pb2.GetRunRequest(context=stack.session_context(alice), run_id="shared-run"), timeout=5
    )
    assert hers.run.state == execution_pb2.RUN_STATE_RUNNING
    # Nor is her run sealed in the log by his: an event of hers is still taken.
    notify = emitter_pb2.NotifyRequest(
        context=_context(stack, alice, ids),
        idempotency_key="key",
        event_type="agent_thinking",
        data_json=b'{"text":"still here"}',
    )
    assert (await services.emitter.Notify(notify, timeout=10)).position.offset > 0
    end = execution_pb2.CancelRunRequest(context=stack.session_context(alice), run_id="shared-run")
    await services.execution.CancelRun(end, timeout=10)


async def test_deleting_one_s_own_leaves_the_other_s_artifact_of_the_same_name(
    stack: RunningStack, services: Services
) -> None:
    alice, bob, _ = _fresh()
    ids = {"thread": "shared-thread", "run": "shared-run", "request": "shared-request"}
    await asyncio.gather(*(_run(stack, services, user, ids, "shared-ref") for user in (alice, bob)))
    delete = execution_pb2.DeleteThreadRequest(context=stack.session_context(bob), thread_id="shared-thread")
    assert (await services.execution.DeleteThread(delete, timeout=10)).deleted
    asked = execution_pb2.GetArtifactRequest(context=stack.session_context(alice), run_id="shared-run", name="note.txt")
    pieces = [piece.data async for piece in services.execution.GetArtifact(asked, timeout=5)]
    assert b"".join(pieces) == _words(alice).encode()


async def test_the_same_idempotency_key_notifies_each_user_once(stack: RunningStack, services: Services) -> None:
    users = _fresh()
    ids = {"thread": "shared-thread", "run": "shared-run", "request": "shared-request"}

    async def notify(user: str) -> emitter_pb2.NotifyResponse:
        request = emitter_pb2.NotifyRequest(
            context=_context(stack, user, ids),
            idempotency_key="shared-key",
            event_type="agent_thinking",
            data_json=b'{"text":"%s"}' % _words(user).encode(),
        )
        answer: emitter_pb2.NotifyResponse = await services.emitter.Notify(request, timeout=10)
        return answer

    first = await asyncio.gather(*map(notify, users))
    again = await asyncio.gather(*map(notify, users))
    assert [answer.position.offset for answer in first] == [1, 1, 1]
    assert [answer.event_id for answer in again] == [answer.event_id for answer in first]
    for user in users:
        entries = await _log(stack, services, user)
        assert [entry.data for entry in entries] == [b'{"text":"%s"}' % _words(user).encode()]


async def test_sockets_hear_their_own_user_s_runs_only_at_the_same_time(stack: RunningStack) -> None:
    users = _fresh()

    async def live(user: str) -> list[Event]:
        async with stack.client(user, resume=Position(), thread_id="shared-thread") as client:
            for turn in range(4):
                await client.execute(_words(user), pipeline=["keeper"], client_ref=f"shared-ref-{turn}")
                async with aclosing(aiter(client.events())) as events:  # type: ignore[type-var]  # it is a generator
                    async for event in events:
                        heard[user].append(event)
                        if event.terminal:
                            break
        return heard[user]

    heard: dict[str, list[Event]] = {user: [] for user in users}
    async with asyncio.timeout(40):
        everything = await asyncio.gather(*map(live, users))
    for user, events in zip(users, everything, strict=True):
        assert [event.event_type for event in events] == _KINDS * 4
        assert {event.user_id for event in events} == {user}
        assert not any(other in str(event) for event in events for other in users if other != user)
    runs = [{event.run_id for event in events} for events in everything]
    assert all(len(mine) == 4 for mine in runs)
    assert len(set.union(*runs)) == 12, "the same client_ref named another user's run"


async def test_rest_gives_each_user_their_own_under_the_same_names(stack: RunningStack) -> None:
    users = _fresh()

    async def live(user: str) -> tuple[dict[str, Any], bytes, dict[str, Any]]:
        headers = {"Authorization": f"Bearer {stack.token(user)}", "Idempotency-Key": "shared-key"}
        async with aiohttp.ClientSession(stack.url, headers=headers) as http:
            body = {"message": _words(user), "agent_name": "keeper", "thread_id": "shared-thread"}
            async with http.post("/api/agents/execute", json=body) as response:
                run = await response.json()
            async with http.get(f"/api/runs/{run['run_id']}/artifacts/note.txt") as response:
                note = await response.read()
            async with http.get("/api/threads/shared-thread/messages") as response:
                return run, note, await response.json()

    answers = await asyncio.gather(*map(live, users))
    assert len({run["run_id"] for run, _, _ in answers}) == len(users)
    for user, (run, note, thread) in zip(users, answers, strict=True):
        assert (run["status"], run["result"]["kept"]) == ("SUCCEEDED", _words(user))
        assert note == _words(user).encode()
        assert [message["role"] for message in thread["messages"]] == ["user", "assistant"]
        assert not any(other in f"{run} {thread}" for other in users if other != user)
