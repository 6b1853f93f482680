"""The trace of a run over real processes: every hop is in it, in its place, and nothing of what was said.

`pytest -s tests/e2e/test_traces.py` prints it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from carrel.cli.ports import Ports
from carrel.errors import CarrelError
from servicekit.telemetry.trace_tree import TraceSpan, render
from servicekit.telemetry.viewer import OtlpReceiver
from tests.conftest import Eventually
from tests.e2e.checks import check_run, until_end
from tests.e2e.traced_agents import SECRET
from tests.support.model_server import Say, model_server
from tests.support.stack import RunningStack, running_stack

AGENTS = [str(Path(__file__).with_name("traced_agents.py"))]


@pytest.fixture(scope="module")
def model_port() -> int:
    """Where each test's scripted model listens, which the stack is told before there is one."""
    with Ports() as ports:
        return int(ports.internal().rpartition(":")[2])


@pytest.fixture(scope="module")
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def traced_stack(
    receiver: OtlpReceiver, model_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningStack]:
    """Five processes that keep every trace."""
    environment = {
        "CARREL_TELEMETRY__ENABLED": "true",
        "CARREL_TELEMETRY__TRACE_RATIO": "1",
        "CARREL_TELEMETRY__OTLP_ENDPOINT": receiver.url,
        "CARREL_LOG_FORMAT": "json",
        "CARREL_AGENT_INSTANCE_MODELS__BASE_URL": f"http://127.0.0.1:{model_port}/v1",
        "CARREL_AGENT_INSTANCE_MODELS__DEFAULT": "scripted",
    }
    with running_stack(tmp_path_factory.mktemp("traces"), agents=AGENTS, environment=environment) as running:
        yield running


class Trace:
    """The spans of one trace, to be asked about."""

    def __init__(self, spans: list[TraceSpan], trace_id: str) -> None:
        self.spans = sorted((s for s in spans if s.trace_id == trace_id), key=lambda span: span.began_ns)
        self.by_id = {span.span_id: span for span in self.spans}

    def path(self, span: TraceSpan) -> list[str]:
        """The names from the root to the span."""
        parent = self.by_id.get(span.parent_id)
        return [*(self.path(parent) if parent else ()), f"{span.service.removeprefix('carrel-')}: {span.name}"]

    def paths(self) -> list[str]:
        """Every span, as its way from the root."""
        return [" > ".join(self.path(span)) for span in self.spans]

    def named(self, name: str) -> list[TraceSpan]:
        return [span for span in self.spans if span.name == name]


def of_run(receiver: OtlpReceiver, run_id: str) -> list[TraceSpan]:
    return [span for span in receiver.spans if span.attributes.get("carrel.run_id") == run_id]


async def whole_trace(receiver: OtlpReceiver, run_id: str, eventually: Eventually, delivered: int) -> Trace:
    """The trace once it has come from every process, the delivery of the last of so many events included."""

    def complete() -> Any:
        found = of_run(receiver, run_id)
        if not found:
            return None
        trace = Trace(receiver.spans, found[0].trace_id)
        counts = {
            name: sum(span.attributes["carrel.events"] for span in trace.named(name))
            for name in ("emit", "append", "deliver")
        }
        # Processes send once a second, each what has ended in it by then: what lasted longest comes last.
        parents = {span.parent_id for span in trace.spans} - {""}
        joined = parents <= trace.by_id.keys() and bool(trace.named("last events"))
        return trace if joined and set(counts.values()) == {delivered} else None

    trace: Trace = await eventually(complete, within=20, what="the trace")
    return trace


GATEWAY = "gateway: agent_execute"
EXECUTE = f"{GATEWAY} > execution: ExecutionService/ExecutePipeline"
RUN = f"{EXECUTE} > execution: run"


def stage(name: str) -> str:
    call = f"{RUN} > execution: stage {name} > agent-instance: AgentInstanceService/RunInstance"
    return f"{call} > agent-instance: attempt"


async def test_trace_of_one_run_covers_every_hop(
    traced_stack: RunningStack, receiver: OtlpReceiver, model_port: int, eventually: Eventually
) -> None:
    async with model_server(Say("in two pieces"), port=model_port) as model, traced_stack.client("alice") as alice:
        run = await alice.execute(SECRET, pipeline=["gather", "tell"])
        events = check_run(await until_end(alice, run.run_id), run.run_id)
        assert not [name for name in model.requests[0].headers if name.lower() == "traceparent"]
    trace = await whole_trace(receiver, run.run_id, eventually, len(events))
    print("\n" + render(receiver.spans, trace.spans[0].trace_id))

    paths = trace.paths()
    assert paths[0] == GATEWAY
    for path in (
        EXECUTE,
        f"{EXECUTE} > execution: admission",
        f"{EXECUTE} > execution: last events",
        RUN,
        f"{stage('gather')} > agent-instance: worker",
        f"{stage('gather')} > agent-instance: invoke_agent gather",
        f"{stage('gather')} > agent-instance: invoke_agent gather > agent-instance: execute_tool look_up",
        f"{stage('gather')} > agent-instance: invoke_agent gather > agent-instance: chat scripted",
        f"{stage('tell')} > agent-instance: invoke_agent tell",
        f"{EXECUTE} > emitter: emit",
        f"{stage('gather')} > emitter: emit",
        f"{stage('gather')} > bridge: append",
        f"{stage('gather')} > gateway: deliver",
    ):
        assert path in paths, f"{path}\nis none of\n" + "\n".join(paths)
    # One root, and everything hangs together.
    assert [span.name for span in trace.spans if span.parent_id not in trace.by_id] == ["agent_execute"]
    assert {span.service for span in trace.spans} == {
        f"carrel-{name}" for name in ("gateway", "execution", "agent-instance", "emitter", "bridge")
    }
    assert not [span for span in trace.spans if span.failed]
    chat = trace.named("chat scripted")[0].attributes
    assert chat["gen_ai.operation.name"] == "chat"
    assert chat["gen_ai.usage.output_tokens"] > 0
    # In the order in which things happened; clocks are one machine's.
    began = {span.name: span.began_ns for span in reversed(trace.spans)}
    order = ["agent_execute", "ExecutionService/ExecutePipeline", "admission", "run", "stage gather"]
    order += [
        "AgentInstanceService/RunInstance",
        "attempt",
        "invoke_agent gather",
        "execute_tool look_up",
        "chat scripted",
    ]
    assert [began[name] for name in order] == sorted(began[name] for name in order)
    assert_says_nothing(receiver.spans)


async def test_run_that_waits_for_a_person_goes_on_in_its_trace_after_execution_was_killed(
    traced_stack: RunningStack, receiver: OtlpReceiver, model_port: int, eventually: Eventually
) -> None:
    async with model_server(Say("yes"), port=model_port), traced_stack.client("bob") as bob:
        run = await bob.execute("Go", pipeline=["gather", "tell"], params={"ask": True})
        events: list[Any] = []
        async for event in bob.events():
            events.append(event)
            if event.event_type == "input_required":
                break
        pid = traced_stack.kill("execution")
        await eventually(lambda: traced_stack.restarted("execution", pid), within=30)
        async with traced_stack.http("bob") as http:

            async def answered() -> bool:
                # The gateway may still be on its way back to execution.
                try:
                    await http.provide_input(run.run_id, events[-1].data["input_id"], "green")
                except CarrelError as error:
                    if not error.retryable:
                        raise
                    return False
                return True

            await eventually(answered, within=20)
        events += await until_end(bob, run.run_id)
    await eventually(lambda: len({s.span_id for s in of_run(receiver, run.run_id) if s.name == "run"}) >= 1, within=20)

    def second_turn() -> bool:
        found = of_run(receiver, run.run_id)
        ran = [span for span in found if span.name == "run" and span.attributes.get("carrel.outcome") == "SUCCEEDED"]
        return bool(ran) and len({span.trace_id for span in found}) == 1

    await eventually(second_turn, within=20)
    # The answer is a request of its own, with a trace of its own.

    def answer_spans() -> list[TraceSpan]:
        return [span for span in receiver.spans if span.name == "POST /api/runs/{run_id}/input"]

    answers = await eventually(answer_spans, within=20)
    assert answers[-1].trace_id not in {span.trace_id for span in of_run(receiver, run.run_id)}


async def test_a_clients_traceparent_is_a_link_and_decides_nothing(
    traced_stack: RunningStack, receiver: OtlpReceiver, eventually: Eventually
) -> None:
    theirs = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"Authorization": f"Bearer {traced_stack.token('carol')}", "traceparent": theirs}
    import aiohttp

    async with aiohttp.ClientSession() as session, session.get(f"{traced_stack.url}/api/runs", headers=headers) as got:
        assert got.status == 200
    linked = await eventually(
        lambda: [s for s in receiver.spans if s.links == ((theirs[3:35], theirs[36:52]),)], within=20
    )
    assert linked[0].name == "GET /api/runs"
    assert linked[0].trace_id != theirs[3:35]
    assert not linked[0].parent_id


async def test_log_lines_of_one_run_carry_its_trace_in_every_service(
    traced_stack: RunningStack, receiver: OtlpReceiver, eventually: Eventually
) -> None:
    decided = [line for line in json_lines(traced_stack) if line.get("event") == "run decided"]
    assert decided
    traces = {span.trace_id for span in receiver.spans}
    for line in decided:
        assert line["trace_id"] in traces
        assert len(line["span_id"]) == 16
        assert line["user"].startswith("u-")
    assert SECRET not in traced_stack.log()


def json_lines(stack: RunningStack) -> list[dict[str, Any]]:
    found = []
    for line in stack.log().splitlines():
        start = line.find("{")
        if start >= 0:
            try:
                found.append(json.loads(line[start:]))
            except ValueError:
                continue
    return [item.get("line", item) if isinstance(item.get("line", item), dict) else item for item in found]


def assert_says_nothing(spans: list[TraceSpan]) -> None:
    text = repr(spans)
    assert "treasure" not in text
    assert "TREASURE" not in text
    assert "alice" not in text
    assert "in two pieces" not in text
