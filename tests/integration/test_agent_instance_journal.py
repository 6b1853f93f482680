"""A result waits for execution's word that its journal entry is stored: over real gRPC, with one that withholds it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from carrel import Agent, AgentContext, Request, tool
from carrel.v1 import agent_instance_pb2 as pb
from tests.conftest import Eventually
from tests.integration.agent_instance_support import Attempt, Deployment, deployment

ran: list[int] = []


@tool(host=True)
async def count(n: int) -> int:
    ran.append(n)
    return n


class Counter(Agent):
    """Counts to three; all at once when it is told to."""

    name = "counter"
    tools = (count,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        numbers = (1, 2, 3)
        if request.params.get("together"):
            return {"n": await asyncio.gather(*(ctx.call_tool("count", n=n) for n in numbers))}
        return {"n": [await ctx.call_tool("count", n=n) for n in numbers]}


@pytest.fixture
async def here() -> AsyncIterator[Deployment]:
    ran.clear()
    async with deployment(Counter, heartbeat_s=0.05) as running:
        yield running


async def held(here: Deployment, entries: int = 1, **options: Any) -> Attempt:
    """An attempt that waits for the acknowledgement of so many entries."""
    attempt = await here.start("counter", **options)
    attempt.acknowledge = False
    while len(attempt.of("journal_entry")) < entries:
        assert await attempt.read() is not None
    return attempt


async def beats(attempt: Attempt, count: int) -> None:
    """Read on until it has given so many more signs of life."""
    wanted = len(attempt.of("heartbeat")) + count
    while len(attempt.of("heartbeat")) < wanted:
        assert await attempt.read() is not None


async def to_the_end(attempt: Attempt) -> None:
    """Read all that comes."""
    while await attempt.read() is not None:
        pass


async def test_the_next_call_begins_after_the_acknowledgement_of_the_one_before(here: Deployment) -> None:
    attempt = await held(here)
    for number in (1, 2, 3):
        await beats(attempt, 4)
        assert ran == list(range(1, number + 1))
        assert [entry.number for entry in attempt.of("journal_entry")] == ran
        await attempt.send(journal_stored=pb.JournalStored(through=number - 1))  # of an earlier one: covers nothing new
        await attempt.send(journal_stored=pb.JournalStored(through=number))
        while len(attempt.of("journal_entry")) < min(number + 1, 3):
            assert await attempt.read() is not None
    await attempt.finish()
    assert attempt.value == {"n": [1, 2, 3]}


async def test_one_acknowledgement_covers_all_that_were_sent(here: Deployment) -> None:
    attempt = await held(here, 3, params={"together": True})
    assert [entry.number for entry in attempt.of("journal_entry")] == [1, 2, 3]
    await beats(attempt, 3)
    await attempt.send(journal_stored=pb.JournalStored(through=3))
    await attempt.finish()
    assert sorted(attempt.value["n"]) == [1, 2, 3]


async def test_a_cancel_ends_an_attempt_that_waits(here: Deployment, eventually: Eventually) -> None:
    attempt = await held(here)
    await attempt.send(cancel=pb.CancelStage(reason="asked", grace=Duration(seconds=1)))
    assert (await asyncio.wait_for(attempt.finish(), 5)).error.code == "CANCELLED_RUN"
    await eventually(lambda: here.services.core.active == 0)
    assert ran == [1]


async def test_the_end_of_the_runs_time_ends_an_attempt_that_waits(here: Deployment, eventually: Eventually) -> None:
    deadline = Timestamp(nanos=int((time.time() + 1.0) * 1e9) % 10**9, seconds=int(time.time() + 1.0))
    attempt = await held(here, deadline=deadline)
    assert (await asyncio.wait_for(attempt.finish(), 10)).error.code == "ENGINE_TIMEOUT"
    await eventually(lambda: here.services.core.active == 0)
    assert ran == [1]


@pytest.mark.parametrize("entries", [0, 1])
async def test_a_stream_closed_before_the_acknowledgement_ends_the_attempt(
    here: Deployment, entries: int, eventually: Eventually
) -> None:
    attempt = await held(here, entries)
    await attempt.call.done_writing()
    with pytest.raises(aio.AioRpcError) as ended:
        await asyncio.wait_for(to_the_end(attempt), 10)
    assert ended.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "closed before the journal was acknowledged" in (ended.value.details() or "")
    await eventually(lambda: here.services.core.active == 0)
    assert ran == [1]


async def test_the_loss_of_the_stream_ends_an_attempt_that_waits(here: Deployment, eventually: Eventually) -> None:
    attempt = await held(here)
    attempt.call.cancel()
    await eventually(lambda: here.services.core.active == 0, within=5)
    again = await here.start("counter", context=attempt.context, number=2, journal=attempt.of("journal_entry"))
    await again.finish()
    assert again.value == {"n": [1, 2, 3]}
    # Its result never came to the agent; the entry was stored nevertheless, so nothing is done twice.
    assert ran == [1, 2, 3]
