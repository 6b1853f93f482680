"""The client of internal services against a whole stack: a service that acts for users, past the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from carrel.cli.tokens import DEFAULT_PERMISSIONS
from carrel.client import Endpoints, Event, GatewayTickets, InternalClient, LogReset, Position, Run, RunState
from carrel.errors import (
    CarrelError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    Status,
    UnauthenticatedError,
    UnavailableError,
)
from carrel.ids import new_id
from tests.support.awake import Awake
from tests.support.stack import RunningStack


@asynccontextmanager
async def internal(stack: RunningStack, user: str) -> AsyncIterator[InternalClient]:
    """A service's client that acts for ``user``."""
    endpoints = Endpoints(stack.address("execution"), stack.address("emitter"), stack.address("bridge"))
    token = stack.token("billing", permissions=(*DEFAULT_PERMISSIONS, "act_as"))
    async with GatewayTickets(stack.url, token, user_id=user) as tickets, InternalClient(endpoints, tickets) as client:
        yield client


async def finished(client: InternalClient, run_id: str) -> Run:
    states = [run async for run in client.watch_run(run_id)]
    assert states[-1].state.terminal
    return states[-1]


async def test_a_run_from_its_request_to_its_artifacts(shared_stack: RunningStack) -> None:
    async with internal(shared_stack, "ina") as client:
        run = await client.execute("Write a report", params={"min_large_share": 0.3})
        assert run.state in {RunState.QUEUED, RunState.RUNNING}
        events = [event async for event in client.read_events(run_id=run.run_id, follow=True)]
        assert all(isinstance(event, Event) for event in events)
        assert [event.offset for event in events if isinstance(event, Event)] == list(range(1, len(events) + 1))
        done = await finished(client, run.run_id)
        assert done.state is RunState.SUCCEEDED
        assert [stage.agent_name for stage in done.stages] == ["supervisor", "data", "optimization", "report"]
        assert done.result is not None
        report = next(artifact for artifact in done.artifacts if artifact.name == "report.md")
        reference, data = await client.get_artifact(run.run_id, "report.md")
        assert (reference.sha256, len(data)) == (report.sha256, report.size)
        assert (await client.get_run(run.run_id)) == done
        assert [item.run_id async for item in client.list_runs(page_size=1)] == [run.run_id]
        assert [item async for item in client.list_runs(states=[RunState.FAILED])] == []


async def test_same_client_ref_gives_the_same_run(shared_stack: RunningStack) -> None:
    async with internal(shared_stack, "ref") as client:
        ref = new_id("order")
        first, second = [await client.execute("Profile", client_ref=ref) for _ in range(2)]
        assert first.run_id == second.run_id
        with pytest.raises(CarrelError) as caught:
            await client.execute("Optimize", client_ref=ref)
        assert caught.value.status in {Status.ALREADY_EXISTS, Status.FAILED_PRECONDITION}
        await finished(client, first.run_id)


async def test_reading_goes_on_after_a_position_and_a_wrong_one_is_reset(shared_stack: RunningStack) -> None:
    async with internal(shared_stack, "reader") as client:
        run = await client.execute("Profile")
        await finished(client, run.run_id)
        events = [event async for event in client.read_events() if isinstance(event, Event)]
        middle = events[len(events) // 2]
        rest = [event async for event in client.read_events(middle.position)]
        assert rest == events[len(events) // 2 + 1 :]
        wrong = Position(middle.epoch, middle.offset, "another-event")
        items = [item async for item in client.read_events(wrong)]
        assert isinstance(items[0], LogReset)
        assert items[0].reason == "event_mismatch"


async def test_notify_puts_an_event_into_the_run_once(stack: RunningStack, tmp_path: object) -> None:
    async with internal(stack, "noted") as client, stack.client("noted") as socket:
        run = await client.execute("Write a report")
        answers = [
            await client.notify(run.run_id, "agent_thinking", {"text": "from billing"}, idempotency_key="k")
            for _ in range(2)
        ]
        assert answers[0][0] == answers[1][0]
        seen = []
        async with asyncio.timeout(30):
            async for event in socket.events():
                seen.append(event)
                if event.terminal:
                    break
        assert [event.event_id for event in seen if event.data.get("text") == "from billing"] == [answers[0][0]]


async def test_cancel_ends_the_run_and_is_idempotent(shared_stack: RunningStack) -> None:
    async with internal(shared_stack, "cancel") as client:
        run = await client.execute("Write a report")
        await client.cancel_run(run.run_id, "not needed")
        done = await finished(client, run.run_id)
        assert done.state in {RunState.CANCELLED, RunState.SUCCEEDED}
        assert (await client.cancel_run(run.run_id)).state is done.state


async def test_another_users_run_names_nothing(shared_stack: RunningStack) -> None:
    async with internal(shared_stack, "one") as one, internal(shared_stack, "two") as two:
        run = await one.execute("Profile")
        for call in (two.get_run, two.cancel_run):
            with pytest.raises(NotFoundError):
                await call(run.run_id)
        with pytest.raises(NotFoundError):
            await two.get_artifact(run.run_id, "report.md")
        with pytest.raises(NotFoundError):
            await two.notify(run.run_id, "agent_thinking", {"text": "x"})
        await finished(one, run.run_id)
        with pytest.raises(NotFoundError):
            await anext(two.read_events(run_id=run.run_id))


async def test_refusals_keep_their_class(shared_stack: RunningStack) -> None:
    async with internal(shared_stack, "wrong") as client:
        with pytest.raises(NotFoundError):
            await client.execute("x", pipeline=["nobody"])
        with pytest.raises(InvalidRequestError, match="strategy"):
            await client.execute("x", strategy="perhaps")
        with pytest.raises(NotFoundError):
            await client.get_run("run-unknown")
    endpoints = Endpoints(shared_stack.address("execution"))
    async with (
        GatewayTickets(shared_stack.url, shared_stack.token("plain"), user_id="victim") as tickets,
        InternalClient(endpoints, tickets) as client,
    ):
        with pytest.raises(PermissionDeniedError):
            await client.get_run("r")
    async with GatewayTickets(shared_stack.url, "no.token.this") as tickets:
        with pytest.raises(UnauthenticatedError):
            await tickets.session()


async def test_absent_service_is_unavailable_within_the_deadline(shared_stack: RunningStack) -> None:
    async with (
        GatewayTickets(shared_stack.url, shared_stack.token("away")) as tickets,
        InternalClient(Endpoints("127.0.0.1:9"), tickets, timeout_s=1.0) as client,
    ):
        with Awake() as took, pytest.raises(CarrelError) as caught:
            await client.get_run("r")
        assert caught.value.status in {Status.UNAVAILABLE, Status.DEADLINE_EXCEEDED}
        assert took.seconds < 3
    async with GatewayTickets("http://127.0.0.1:9", "a.b.c") as tickets:
        with pytest.raises(UnavailableError):
            await tickets.session()


async def test_tickets_are_kept_until_they_near_their_end(shared_stack: RunningStack) -> None:
    async with GatewayTickets(shared_stack.url, shared_stack.token("kept"), permissions=["trace:read"]) as tickets:
        first, second = await tickets.session(), await tickets.session()
        assert first is second
        run = await tickets.run(thread_id="my-thread")
        assert run.thread_id == "my-thread"
        assert run.run_id
        assert run.request_id
        assert run.text not in repr(run)
