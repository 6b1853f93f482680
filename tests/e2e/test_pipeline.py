"""The documents' pipeline through the socket, over five real processes."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from carrel.client import Event, Position
from carrel.errors import NotFoundError
from tests.e2e.checks import check_run, check_sequence, stages, until_end
from tests.support.stack import RunningStack

PIPELINE = ("supervisor", "data", "optimization", "report")


async def _report(
    slow_stack: RunningStack, user: str, thread_id: str = "", client_ref: str = ""
) -> tuple[str, list[Event]]:
    message = "Write a report on what this trace costs"
    async with slow_stack.client(user) as client:
        run = await client.execute(message, thread_id=thread_id, client_ref=client_ref)
        return run.run_id, await until_end(client, run.run_id)


async def test_supervisor_data_optimization_report_in_order(slow_stack: RunningStack) -> None:
    run_id, events = await _report(slow_stack, "alice")
    check_sequence(events, "alice")
    mine = check_run(events, run_id)
    assert tuple(stages(mine)) == PIPELINE
    assert mine[-1].data["status"] == "SUCCEEDED", mine[-1].data
    # One stage ends before the next begins.
    bounds = [(found[0].offset, found[-1].offset) for found in stages(mine).values()]
    assert all(before[1] < after[0] for before, after in pairwise(bounds))


async def test_each_working_stage_starts_thinks_uses_tools_and_completes(slow_stack: RunningStack) -> None:
    run_id, events = await _report(slow_stack, "ada")
    by_agent = stages(check_run(events, run_id))
    for name in PIPELINE[1:]:
        kinds = [event.event_type for event in by_agent[name]]
        assert kinds[0] == "agent_started"
        assert kinds[-1] == "agent_completed"
        assert kinds.count("agent_started") == kinds.count("agent_completed") == 1
        middle = kinds[1:-1]
        assert {"agent_thinking", "tool_executing", "tool_completed"} <= set(middle), (name, middle)
        assert middle.count("tool_executing") == middle.count("tool_completed")


async def test_children_events_carry_the_childs_request_id(slow_stack: RunningStack) -> None:
    run_id, events = await _report(slow_stack, "carol")
    mine = check_run(events, run_id)
    root = mine[0].request_id
    children = [event for event in mine if event.request_id != root]
    assert children
    assert {event.request_id for event in children} == {f"{root}_validation"}
    assert {event.parent_request_id for event in children} == {root}
    assert {event.agent_name for event in children} == {"data"}


async def test_the_status_is_terminal_only_once_the_log_has_the_terminal_event(slow_stack: RunningStack) -> None:
    """Asked again and again: whenever the status is terminal, the log already gives the terminal event."""
    async with slow_stack.client("dave") as client, slow_stack.http("dave") as http:
        run = await client.execute("one", pipeline=["slow"], params={"steps": 20})
        async with asyncio.timeout(30):
            while True:
                found = await http.run(run.run_id)
                if found["status"] in {"SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT"}:
                    break
        # A reader who begins only now finds it: it was there before the status said so.
        async with slow_stack.client("dave", resume=Position()) as late:
            logged = await until_end(late, run.run_id, within=15)
    assert logged[-1].data["status"] == found["status"] == "SUCCEEDED"


async def test_a_result_is_never_lost_to_what_execution_still_says_to_the_attempt(slow_stack: RunningStack) -> None:
    # Execution acknowledges journal entries while the last result is on its way: many runs, since it is a race.
    async def statuses(user: str) -> list[str]:
        found = []
        async with slow_stack.client(user, patient=True) as client:
            for _ in range(15):
                run = await client.execute("go", pipeline=["last"])
                found.append(str((await until_end(client, run.run_id))[-1].data["status"]))
        return found

    found = await asyncio.gather(*(statuses(f"last-{n}") for n in range(20)))
    assert [status for statuses in found for status in statuses if status != "SUCCEEDED"] == []


async def test_two_users_at_once_with_the_same_names_see_nothing_of_each_other(slow_stack: RunningStack) -> None:
    users = ("alice2", "bob2")
    results = await asyncio.gather(
        *(_report(slow_stack, user, thread_id="thread-shared", client_ref="the-same-ref") for user in users)
    )
    for user, (run_id, events) in zip(users, results, strict=True):
        check_sequence(events, user)
        assert check_run(events, run_id)[-1].data["status"] == "SUCCEEDED"
    first, second = ({event.event_id for event in events} for _, events in results)
    assert not first & second
    assert results[0][0] != results[1][0]


async def test_report_artifacts_can_be_read_by_their_owner_alone(slow_stack: RunningStack) -> None:
    run_id, _ = await _report(slow_stack, "erin")
    async with slow_stack.http("erin") as erin, slow_stack.http("mallory") as mallory:
        found = {artifact.name: artifact for artifact in await erin.artifacts(run_id)}
        charts = [name for name in found if name.endswith(".svg")]
        assert len(charts) >= 2
        report = (await erin.artifact_data(found["report.md"])).decode()
        assert all(f"({name})" in report for name in charts)
        with pytest.raises(NotFoundError):
            await mallory.run(run_id)
        with pytest.raises(NotFoundError):
            await mallory.artifacts(run_id)
        with pytest.raises(NotFoundError):
            await mallory.artifact_data(found["report.md"])
