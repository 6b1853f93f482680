"""Our client on a real stack: slow applications, both transports with one position, a gateway that dies."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from carrel.client import Backoff, Event, Position
from tests.conftest import Eventually
from tests.e2e.checks import check_run, check_sequence
from tests.support.stack import RunningStack, running_stack

PATIENT = Backoff(attempts=60, first_s=0.05, longest_s=0.5)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    agents = [str(Path(__file__).with_name("slow_agents.py"))]
    settings = {"CARREL_GATEWAY_ACK_SECONDS": "0.5"}
    with running_stack(tmp_path_factory.mktemp("client"), agents=agents, environment=settings) as running:
        yield running


async def test_application_that_stalls_is_sent_away_and_loses_nothing(
    stack: RunningStack, eventually: Eventually
) -> None:
    async with stack.client("stalls", window=10) as client:
        run = await client.execute("go", pipeline=("slow",), params={"steps": 60})
        events: list[Event] = []
        async for event in client.run_events(run.run_id):
            events.append(event)
            if len(events) == 3:
                # The window fills, nobody acknowledges, and the gateway has enough of it.
                await eventually(lambda: "ack_timeout" in client.state.reason, within=10)
                assert client.held <= 12
        check_sequence(events, "stalls")
        check_run(events, run.run_id)
        assert client.reader.holes == client.reader.resets == 0


async def test_one_position_leads_over_both_transports(stack: RunningStack) -> None:
    async with stack.client("both") as client, stack.http("both") as http:
        run = await client.execute("go", pipeline=("slow",), params={"steps": 40})
        live = [event async for event in client.run_events(run.run_id)]
        later = [item async for item in http.run_events(run.run_id)]
        assert later == live
        check_run(live, run.run_id)
        half = Position.parse(str(live[len(live) // 2].position))
        rest = live[len(live) // 2 + 1 :]
        assert [item async for item in http.run_events(run.run_id, resume=half)] == rest
        async with stack.client("both", resume=half) as again:
            assert [event async for event in again.run_events(run.run_id)] == rest


@pytest.mark.chaos
async def test_gateway_that_is_killed_costs_neither_transport_an_event(
    stack: RunningStack, eventually: Eventually
) -> None:
    states: list[str] = []
    async with (
        stack.http("killed") as http,
        stack.client("killed", on_state=lambda s: states.append(s.phase)) as client,
    ):
        run = await client.execute("go", pipeline=("slow",), params={"steps": 120})

        async def streamed() -> list[object]:
            return [item async for item in http.run_events(run.run_id, backoff=PATIENT)]

        reading = asyncio.create_task(streamed())
        events: list[Event] = []
        async for event in client.run_events(run.run_id):
            events.append(event)
            if len(events) == 20:
                pid = stack.kill("gateway")
        assert await reading == events
        check_sequence(events, "killed")
        check_run(events, run.run_id)
        await eventually(lambda: stack.restarted("gateway", pid), within=20)
    assert states[:4] == ["connecting", "connected", "waiting", "connecting"]
    assert states[-2:] == ["connected", "closed"]
