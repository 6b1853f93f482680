"""agent_instance over real gRPC: order, attribution, results after acknowledgements, refusals, cancel, isolation."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from carrel import Agent, AgentContext, Plan, Request, tool
from carrel.errors import (
    AgentDependencyError,
    CarrelError,
    ScopeError,
    TicketError,
    UnknownAgentError,
    UnknownInstanceError,
    WorkersBusyError,
)
from carrel.rpc_errors import from_rpc_error
from carrel.v1 import agent_instance_pb2 as pb
from carrel.v1.events_pb2 import RefusalReason
from tests.conftest import Eventually
from tests.integration.agent_instance_support import Attempt, deployment
from tests.support.identity import child_context, new_run_context, run_context, service_context, session_context


@tool(permission="trace:read")
async def square(value: int) -> int:
    """Squares."""
    return value * value


class Worker(Agent):
    name = "worker"
    description = "Does a little of everything."
    tools = (square,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        await ctx.thinking("begin")
        value = await ctx.call_tool("square", value=request.params.get("value", 3))
        async with ctx.child("validation") as child:
            await child.thinking("checking")
        ref = await ctx.artifacts.put("chart.svg", "<svg/>", "image/svg+xml")
        await ctx.message("done")
        return {"value": value, "chart": ref.to_dict()}


class Sleeper(Agent):
    name = "sleeper"
    ended: list[str] = []  # noqa: RUF012 -- shared on purpose: the test looks at it

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        try:
            await asyncio.sleep(30)
        finally:
            Sleeper.ended.append(ctx.context.user_id)
        return {}


class Planner(Agent):
    name = "planner"
    plans = True

    async def run(self, ctx: AgentContext, request: Request) -> Plan:
        return Plan(("worker",), {"value": 4}, "it is enough")


class Needy(Sleeper):
    name = "needy"
    dependencies = ("llm",)


class Failing(Agent):
    name = "failing"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        raise RuntimeError("no")


class Wavering(Failing):
    name = "wavering"
    fallback = "worker"


ALL = (Worker, Sleeper, Planner, Needy, Failing, Wavering)


async def failure(call: Any) -> CarrelError:
    """The error that a stream ends with."""
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    status = await call.code()
    raise AssertionError(f"it ended with {status}")


async def test_a_stage_from_start_to_result() -> None:
    async with deployment(*ALL) as here:
        attempt = await here.run("worker")
        assert here.kinds(attempt) == [
            "agent_started",
            "agent_thinking",
            "tool_executing",
            "tool_completed",
            "agent_thinking",
            "agent_message",
            "agent_completed",
        ]
        events = here.events(attempt)
        assert [event.number for event in events] == list(range(1, 8))
        root = attempt.context.request_id
        assert [event.request_id for event in events] == [root] * 4 + [f"{root}_validation"] + [root] * 2
        assert {event.user_id for event in events} == {"alice"}
        assert attempt.value["value"] == 9
        assert attempt.value["chart"]["url"] == f"/api/runs/{attempt.context.run_id}/artifacts/chart.svg"
        assert attempt.artifacts == {"chart.svg": b"<svg/>"}
        assert attempt.result.events_through == 7
        assert attempt.result.answered_by == "worker"
        assert attempt.up[0].WhichOneof("message") == "accepted"
        assert attempt.up[-1].WhichOneof("message") == "result"
        (record,) = attempt.of("audit_record")
        assert (record.user_id, record.run_id, record.target) == ("alice", attempt.context.run_id, "square")
        assert record.outcome == pb.AUDIT_OUTCOME_SUCCEEDED
        (entry,) = attempt.of("journal_entry")
        assert (entry.number, entry.name, entry.result_json) == (1, "square", b"9")
        assert entry.call_id == f"tool:square:{entry.arguments_hash[:16]}:1"
        assert here.services.core.active == 0


async def test_a_planner_answers_with_a_plan() -> None:
    async with deployment(*ALL) as here:
        attempt = await here.run("planner")
        plan = attempt.result.plan
        assert (list(plan.stages), plan.params_json, plan.reason) == (["worker"], b'{"value":4}', "it is enough")


async def test_the_result_comes_only_after_the_log_has_acknowledged(eventually: Eventually) -> None:
    async with deployment(*ALL, heartbeat_s=0.05) as here:
        here.emitter.acks.clear()
        started = time.monotonic_ns()
        attempt = await here.start("planner")
        task = asyncio.create_task(attempt.finish())
        await eventually(lambda: any(beat.events_produced == 2 for beat in attempt.of("heartbeat")))
        done, _ = await asyncio.wait({task}, timeout=0.2)
        assert not done
        assert all(beat.events_acknowledged == 0 for beat in attempt.of("heartbeat"))
        here.emitter.acks.set()
        result = await task
        assert result.log_wait.ToNanoseconds() > 1e8
        # Neither part holds the other: one that did would be too long by the wait.
        parts = result.log_wait.ToNanoseconds() + result.agent_time.ToNanoseconds()
        assert parts <= time.monotonic_ns() - started
        assert result.events_through == 2


async def test_permission_and_arguments_are_checked_from_the_ticket() -> None:
    async with deployment(*ALL) as here:
        denied = await here.run("worker", permissions=("other:read",))
        assert denied.result.error.code == "TOOL_PERMISSION"
        assert here.kinds(denied) == ["agent_started", "agent_thinking", "tool_completed", "agent_error"]
        assert denied.of("audit_record")[0].outcome == pb.AUDIT_OUTCOME_DENIED
        wrong = await here.run("worker", params={"value": "three"})
        assert wrong.result.error.code == "TOOL_ARGUMENTS"
        error = here.events(wrong)[-1].data
        assert "value" in error["message"]
        assert (await here.run("worker", permissions=("trace:*",))).value["value"] == 9


async def test_a_fallback_answers_under_the_same_producer() -> None:
    async with deployment(*ALL) as here:
        attempt = await here.run("wavering")
        assert attempt.result.answered_by == "worker"
        assert here.kinds(attempt)[:3] == ["agent_started", "agent_error", "agent_started"]
        assert here.events(attempt)[1].data["fallback"] == "worker"
        assert here.kinds(attempt)[-1] == "agent_completed"


async def test_cancel_ends_the_agent_quietly_and_quickly(eventually: Eventually) -> None:
    Sleeper.ended.clear()
    async with deployment(*ALL) as here:
        attempt = await here.start("sleeper")
        await eventually(lambda: here.kinds(attempt) == ["agent_started"])
        began = time.monotonic()
        await attempt.send(cancel=pb.CancelStage(reason="asked", grace=Duration(seconds=30)))
        result = await attempt.finish()
        assert time.monotonic() - began < 10  # it did not wait for the grace
        assert result.error.code == "CANCELLED_RUN"
        assert here.kinds(attempt) == ["agent_started"]
        assert Sleeper.ended == ["alice"]


async def test_losing_the_stream_kills_the_attempt_and_frees_everything(eventually: Eventually) -> None:
    Sleeper.ended.clear()
    async with deployment(*ALL) as here:
        attempt = await here.start("sleeper")
        await eventually(lambda: here.kinds(attempt) == ["agent_started"])
        attempt.call.cancel()
        await eventually(lambda: Sleeper.ended == ["alice"])
        await eventually(lambda: here.services.core.active == 0)
        again = await here.start("sleeper", context=attempt.context)
        assert (await again.read()) is not None
        again.call.cancel()


async def test_a_sealed_log_kills_the_attempt(eventually: Eventually) -> None:
    async with deployment(*ALL) as here:
        here.emitter.refuse = RefusalReason.REFUSAL_REASON_SEALED
        attempt = await here.start("sleeper")
        result = await asyncio.wait_for(attempt.finish(), 20)
        assert result.error.code == "SEALED_LOG"
        assert here.services.core.active == 0


async def test_a_fresh_ticket_replaces_the_first_ones(eventually: Eventually) -> None:
    async with deployment(*ALL, times={"idle": 0.4, "periodic_update": 0.1}) as here:
        attempt = await here.start("sleeper")
        await eventually(lambda: here.kinds(attempt)[:1] == ["agent_started"])
        old = attempt.context
        attempt.context = run_context(
            "alice", thread=old.thread_id, run=old.run_id, request=old.request_id, permissions=["fresh:one"]
        )
        await attempt.send(refresh=pb.RefreshTicket())
        await attempt.finish()
        tickets = [event.ticket for event in here.events(attempt)]
        assert tickets[0] == old.ticket
        assert tickets[-1] == attempt.context.ticket


@pytest.mark.parametrize("what", ["forged", "missing", "scope", "other run", "other user", "child", "second start"])
async def test_a_message_that_is_not_this_runs_ends_the_stream(what: str, eventually: Eventually) -> None:
    async with deployment(*ALL) as here:
        attempt = await here.start("sleeper")
        await eventually(lambda: here.kinds(attempt) == ["agent_started"])
        own = attempt.context
        contexts = {
            "forged": run_context("alice", thread=own.thread_id, run=own.run_id, request=own.request_id),
            "scope": session_context("alice"),
            "other run": new_run_context("alice"),
            "other user": run_context("bob", thread=own.thread_id, run=own.run_id, request=own.request_id),
            "child": child_context(own, "x"),
        }
        attempt.context = contexts.get(what, own)
        if what == "forged":
            attempt.context.ticket = attempt.context.ticket[:-8] + "AAAAAAAA"
        if what == "missing":
            await attempt.call.write(pb.RunInstanceRequest(refresh=pb.RefreshTicket()))
        elif what == "second start":
            await attempt.send(start=pb.StartStage(agent_name="worker", attempt=1, producer_id="p"))
        else:
            await attempt.send(refresh=pb.RefreshTicket())
        error = await failure(attempt.call)
        expected = {"forged": 16, "missing": 16, "second start": 3}
        assert int(error.status) == expected.get(what, 7)
        await eventually(lambda: here.services.core.active == 0)


async def test_streams_that_begin_wrongly_are_refused() -> None:
    async with deployment(*ALL) as here:
        unknown = await here.start("nobody")
        assert isinstance(await failure(unknown.call), UnknownAgentError)
        needy = await here.start("needy")
        assert isinstance(await failure(needy.call), AgentDependencyError)
        child = await here.start("worker", context=child_context(new_run_context(), "x"))
        assert "root request" in (await failure(child.call)).message
        scope = await here.start("worker", context=session_context())
        assert isinstance(await failure(scope.call), ScopeError)
        params = await here.start("worker", results_json={"data": b"[1]"})
        assert "results_json[data]" in (await failure(params.call)).message
        instance = await here.start("worker", instance_id="inst-none")
        assert isinstance(await failure(instance.call), UnknownInstanceError)
        late = Attempt(new_run_context(), here.stub.RunInstance(), "p")
        await late.send(refresh=pb.RefreshTicket())
        assert "must be `start`" in (await failure(late.call)).message
        assert here.services.core.active == 0


async def test_a_stream_on_which_nothing_comes_is_refused() -> None:
    async with deployment(*ALL, first_message_s=0.3) as here:
        assert "without `start`" in (await failure(here.stub.RunInstance())).message
        assert here.services.core.active == 0


async def test_the_call_outlives_the_result_until_execution_has_read_it_and_the_worker_does_not(
    eventually: Eventually,
) -> None:
    async with deployment(*ALL) as here:
        attempt = await here.start("worker")
        while not attempt.of("result"):
            assert await attempt.read() is not None
        await eventually(lambda: here.services.core.active == 0)
        # What execution has to say of an earlier message must not meet a call that is over.
        for _ in range(20):
            await attempt.send(journal_stored=pb.JournalStored(through=1))
            await asyncio.sleep(0)
        assert not attempt.call.done()
        await attempt.call.done_writing()
        assert await attempt.read() is None
        assert await attempt.call.code() is grpc.StatusCode.OK


async def test_a_caller_that_never_closes_its_side_is_waited_for_no_longer_than_the_bound() -> None:
    async with deployment(*ALL, parting_s=0.1) as here:
        attempt = await here.run("worker", half_close=False)
        assert await attempt.call.code() is grpc.StatusCode.OK


async def test_the_pool_is_bounded_and_says_so(eventually: Eventually) -> None:
    async with deployment(*ALL, max_workers=1, workers={"max_waiting": 0}) as here:
        first = await here.start("sleeper")
        await first.read()
        second = await here.start("sleeper", user="bob")
        error = await failure(second.call)
        assert isinstance(error, WorkersBusyError)
        assert error.retry_after_s
        first.call.cancel()
        await eventually(lambda: here.services.core.active == 0)


async def test_an_attempt_waits_for_a_worker_and_leaves_the_queue_when_its_caller_does(eventually: Eventually) -> None:
    async with deployment(*ALL, max_workers=1) as here:
        first = await here.start("sleeper")
        await first.read()
        given_up = await here.start("sleeper", user="bob")
        waits = await here.start("sleeper", user="carol")
        await eventually(lambda: here.services.core.waiting == 2)
        given_up.call.cancel()
        await eventually(lambda: here.services.core.waiting == 1)
        first.call.cancel()
        assert (await waits.read() or pb.RunInstanceResponse()).HasField("accepted")
        assert here.services.core.waiting == 0
        waits.call.cancel()
        await eventually(lambda: here.services.core.active == 0)


async def test_a_reserved_instance_is_run_or_released(eventually: Eventually) -> None:
    async with deployment(*ALL) as here:
        context = new_run_context(permissions=["*"])
        create = pb.CreateInstanceRequest(context=context, agent_name="worker")
        first = await here.stub.CreateInstance(create)
        second = await here.stub.CreateInstance(create)
        attempt = await here.run("worker", context=context, instance_id=first.instance_id)
        assert attempt.of("accepted")[0].instance_id == first.instance_id
        foreign = pb.ReleaseInstanceRequest(context=new_run_context("bob"), instance_id=second.instance_id)
        assert not (await here.stub.ReleaseInstance(foreign)).released
        own = pb.ReleaseInstanceRequest(context=context, instance_id=second.instance_id)
        assert (await here.stub.ReleaseInstance(own)).released
        assert not (await here.stub.ReleaseInstance(own)).released
        with pytest.raises(AgentDependencyError, match="llm"):
            await here.stub.CreateInstance(pb.CreateInstanceRequest(context=context, agent_name="needy"))
        assert here.services.core.active == 0


async def test_releasing_a_running_instance_ends_it(eventually: Eventually) -> None:
    async with deployment(*ALL) as here:
        attempt = await here.start("sleeper")
        await attempt.read()
        instance_id = attempt.of("accepted")[0].instance_id
        finish = asyncio.create_task(attempt.finish())
        request = pb.ReleaseInstanceRequest(context=attempt.context, instance_id=instance_id)
        assert (await here.stub.ReleaseInstance(request)).released
        assert (await finish).error.code == "CANCELLED_RUN"
        assert here.services.core.active == 0


async def test_the_registry_and_the_pools_counts_are_listed() -> None:
    async with deployment(*ALL) as here:
        listed = await here.stub.ListAgents(pb.ListAgentsRequest(context=session_context()))
        agents = {agent.name: agent for agent in listed.agents}
        assert set(agents) == {"worker", "sleeper", "planner", "needy", "failing", "wavering"}
        worker = agents["worker"]
        assert worker.available
        assert (worker.tools[0].name, worker.tools[0].permission) == ("square", "trace:read")
        assert b'"value"' in worker.tools[0].input_schema_json
        assert worker.idle_timeout.seconds == 30
        assert ALL[0].isolation == "process", "what the class asks for"
        assert {agent.isolation for agent in listed.agents} == {pb.ISOLATION_TASK}, "what it gets"
        assert not agents["needy"].available
        assert "llm" in agents["needy"].unavailable_reason
        assert agents["planner"].plans
        assert agents["wavering"].fallback == "worker"
        assert listed.registry_digest == here.services.core.registry.digest
        await here.run("wavering")
        counts = await here.stub.GetPoolStatistics(pb.GetPoolStatisticsRequest(context=service_context()))
        assert (counts.created, counts.failed, counts.fallbacks, counts.active) == (2, 1, 1, 0)
        with pytest.raises(ScopeError):
            await here.stub.GetPoolStatistics(pb.GetPoolStatisticsRequest(context=session_context()))
        nobody = session_context()
        nobody.ticket = ""
        with pytest.raises(TicketError):
            await here.stub.ListAgents(pb.ListAgentsRequest(context=nobody))


class Hoarder(Agent):
    """Keeps what it is given in its module: the worst that an author in good faith does."""

    name = "hoarder"
    hoard: list[Any] = []  # noqa: RUF012 -- the fault that the test is about

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        Hoarder.hoard.append((ctx.context, request))
        await asyncio.sleep(0.05)
        await ctx.thinking(f"for {ctx.context.user_id}")
        return {"mine": request.params["canary"]}


async def test_two_users_with_the_same_ids_meet_nowhere() -> None:
    Hoarder.hoard.clear()
    async with deployment(Hoarder) as here:
        contexts = [run_context(user, permissions=["*"]) for user in ("alice", "bob")]
        attempts = await asyncio.gather(
            *(here.run("hoarder", context=c, params={"canary": f"of-{c.user_id}"}) for c in contexts)
        )
        for attempt in attempts:
            user = attempt.context.user_id
            assert attempt.value == {"mine": f"of-{user}"}
            events = here.events(attempt)
            assert {event.user_id for event in events} == {user}
            assert events[1].data["text"] == f"for {user}"
            other = "bob" if user == "alice" else "alice"
            assert f"of-{other}" not in repr(events)
        (context_a, request_a), (context_b, request_b) = Hoarder.hoard
        context_a.verify_isolation(context_b)
        assert request_a.params is not request_b.params
        assert not context_a.ticket
        assert not context_b.ticket


async def test_many_runs_at_once_each_get_their_own() -> None:
    async with deployment(Worker) as here:
        attempts = await asyncio.gather(
            *(here.run("worker", user=f"user-{n % 7}", params={"value": n}) for n in range(40))
        )
        assert [attempt.value["value"] for attempt in attempts] == [n * n for n in range(40)]
        assert all(here.kinds(attempt)[-1] == "agent_completed" for attempt in attempts)
        assert here.services.core.active == 0


class Mixed(Agent):
    """Does for a while whatever its parameters say."""

    name = "mixed"
    tools = (square,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        for n in range(request.params["steps"]):
            async with ctx.child("step") as child:
                await child.call_tool("square", value=n)
                await child.message(f"step {n}")
            await ctx.artifacts.put(f"{n}.txt", "x" * 1000, "text/plain")
        if request.params["fails"]:
            raise RuntimeError("as told")
        return {"steps": request.params["steps"]}


async def test_runs_that_end_in_every_way_at_once_leave_nothing_behind(eventually: Eventually) -> None:
    chance = random.Random(7)
    async with deployment(Mixed) as here:

        async def one(n: int) -> str:
            params = {"steps": chance.randrange(1, 6), "fails": chance.random() < 0.2}
            end = chance.choice(["finish", "finish", "cancel", "lose"])
            attempt = await here.start("mixed", user=f"user-{n % 5}", params=params)
            if end == "finish":
                result = await attempt.finish()
                assert result.WhichOneof("outcome") == ("error" if params["fails"] else "result_json")
                assert here.kinds(attempt)[-1] == ("agent_error" if params["fails"] else "agent_completed")
                return end
            for _ in range(chance.randrange(1, 4)):
                await attempt.read()
            if end == "cancel":
                await attempt.send(cancel=pb.CancelStage(reason="chance"))
                assert (await attempt.finish()).WhichOneof("outcome") is not None
            else:
                attempt.call.cancel()
            return end

        ends = await asyncio.gather(*(one(n) for n in range(50)))
        assert set(ends) == {"finish", "cancel", "lose"}
        await eventually(lambda: here.services.core.active == 0)
        await eventually(
            lambda: not [t for t in asyncio.all_tasks() if t.get_name().startswith(("agent", "host tool"))]
        )
        for log in here.emitter.log.values():
            assert [event.number for event in log] == list(range(1, len(log) + 1))
            assert len({event.user_id for event in log}) == 1


async def test_a_client_that_half_closes_still_gets_its_result() -> None:
    async with deployment(*ALL) as here:
        attempt = await here.start("planner")
        await attempt.call.done_writing()
        assert (await attempt.finish()).WhichOneof("outcome") == "plan"


async def test_the_same_attempt_twice_at_once_is_refused_and_disturbs_nothing(eventually: Eventually) -> None:
    async with deployment(*ALL) as here:
        first = await here.start("sleeper")
        await eventually(lambda: here.kinds(first) == ["agent_started"])
        again = await here.start("sleeper", context=first.context)
        assert (await failure(again.call)).code == "ALREADY_EXISTS"
        assert here.services.core.active == 1
        await first.send(cancel=pb.CancelStage(reason="enough"))
        assert (await first.finish()).error.code == "CANCELLED_RUN"
