"""``kill -9`` of each process in the middle of a run: what the user still sees, and that every run completes."""

from __future__ import annotations

import asyncio
import random

import pytest

from carrel.client import Event, SocketClient
from carrel.client.http import GatewayHttp
from tests.conftest import Eventually
from tests.e2e.checks import check_run, check_sequence, until_end
from tests.support.awake import Awake
from tests.support.stack import RunningStack
from tests.support.whole import sample

SEED = 20260
STEPS = 70
END_WITHIN_S = 10.0


def _moments(name: str) -> list[int]:
    """After how many events to kill: seeded numbers over the whole run, its very first and last ones included."""
    chooser = random.Random(f"{SEED} {name}")
    between = sorted(chooser.sample(range(2, STEPS), 8))
    return [1, *sample(between, 2, f"{SEED} {name}"), STEPS]


async def _run_and_kill(
    slow_stack: RunningStack, client: SocketClient, service: str, after: int
) -> tuple[str, list[Event]]:
    run = await client.execute("go", pipeline=["slow"], params={"steps": STEPS})
    events: list[Event] = []
    old_pid: int | None = None
    async with asyncio.timeout(50):
        async for event in client.events():
            events.append(event)
            if len(events) == after:
                old_pid = slow_stack.kill(service)
            if event.run_id == run.run_id and event.event_type == "run_completed":
                break
    assert old_pid is not None, f"the run had only {len(events)} events"
    return run.run_id, events


async def _back(slow_stack: RunningStack, eventually: Eventually, service: str, old_pid: int) -> None:
    # How long a start takes on a busy machine is not what is tested here.
    await eventually(lambda: slow_stack.restarted(service, old_pid), within=40, what=f"{service} is back")


def _pid(slow_stack: RunningStack, service: str) -> int:
    pid = slow_stack.pid(service)
    assert pid is not None
    return pid


@pytest.mark.chaos
@pytest.mark.timeout(240)
@pytest.mark.parametrize("service", ["emitter", "bridge", "gateway"])
async def test_the_run_completes_and_every_event_comes_once(
    slow_stack: RunningStack, service: str, eventually: Eventually
) -> None:
    for turn, after in enumerate(_moments(service)):
        user, old = f"kill-{service}-{turn}", _pid(slow_stack, service)
        async with slow_stack.client(user) as client:
            run_id, events = await _run_and_kill(slow_stack, client, service, after)
        check_sequence(events, user)
        mine = check_run(events, run_id)
        assert events[0].offset == 1
        assert mine[-1].data["status"] == "SUCCEEDED", mine[-1].data
        numbers = [event.data["number"] for event in mine if event.event_type == "agent_thinking" and not _child(event)]
        assert numbers == list(range(1, STEPS + 1)), f"killed after {after}"
        await _back(slow_stack, eventually, service, old)


@pytest.mark.chaos
@pytest.mark.timeout(240)
@pytest.mark.parametrize("service", ["execution", "agent_instance"])
async def test_the_run_is_tried_again_and_completes_within_ten_seconds_of_the_restart(
    slow_stack: RunningStack, service: str, eventually: Eventually
) -> None:
    for turn, after in enumerate(_moments(service)):
        await _kill_and_end(slow_stack, service, f"kill-{service}-{turn}", after, eventually)


async def _kill_and_end(slow_stack: RunningStack, service: str, user: str, after: int, eventually: Eventually) -> None:
    old = _pid(slow_stack, service)
    async with slow_stack.client(user) as client, slow_stack.http(user) as http:
        run = await client.execute("go", pipeline=["slow"], params={"steps": STEPS})
        reading = asyncio.create_task(until_end(client, run.run_id))
        await eventually(lambda: client.position.offset >= after, within=20)
        slow_stack.kill(service)
        await _back(slow_stack, eventually, service, old)
        with Awake() as took:
            events = await reading
        assert took.seconds < END_WITHIN_S
        status = await eventually(lambda: _terminal(http, run.run_id), within=END_WITHIN_S)
    check_sequence(events, user)
    mine = check_run(events, run.run_id)
    assert mine[-1].data["status"] == status == "SUCCEEDED", mine[-1].data
    # Killed at the very end, the run may have been decided already; its last events are relayed all the same.
    again = [event for event in mine if event.event_type == "run_attempt"]
    for event in again:
        assert event.data["reason"] == {"execution": "execution_restarted"}.get(service, "agent_instance_lost")
    latest = 1 + len(again)
    last = [
        e.data["number"] for e in mine if e.event_type == "agent_thinking" and e.attempt == latest and not _child(e)
    ]
    assert last == list(range(1, STEPS + 1)), f"killed after {after}"


@pytest.mark.chaos
@pytest.mark.timeout(120)
async def test_a_new_run_works_after_each_kill(slow_stack: RunningStack, eventually: Eventually) -> None:
    for service in ("bridge", "emitter", "agent_instance", "execution", "gateway"):
        await _back(slow_stack, eventually, service, slow_stack.kill(service))
        async with slow_stack.client(f"after-{service}") as client:
            run = await client.execute("go", pipeline=["slow"], params={"steps": 3})
            events = await until_end(client, run.run_id)
        assert check_run(events, run.run_id)[-1].data["status"] == "SUCCEEDED"


def _child(event: Event) -> bool:
    return bool(event.parent_request_id)


async def _terminal(http: GatewayHttp, run_id: str) -> str:
    status: str = (await http.run(run_id))["status"]
    return status if status in {"SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT"} else ""
