"""A trace of one run from the in-memory exporters of all five services, whole and in one piece; sampling end to end.

`pytest -s` prints the trace.
"""

from __future__ import annotations

from pathlib import Path

from carrel.pseudonyms import hash_user
from servicekit.telemetry.trace_tree import TraceSpan, render, traces
from tests.conftest import Eventually
from tests.e2e.checks import check_run, until_end
from tests.support.in_one_process import OneProcess, in_one_process

AGENTS = [Path(__file__).with_name("trace_agents.py")]
ON = {"CARREL_TELEMETRY__ENABLED": "true"}
HOPS = {
    ("gateway", "agent_execute"),
    ("execution", "ExecutionService/ExecutePipeline"),
    ("execution", "admission"),
    ("execution", "run"),
    ("execution", "stage count"),
    ("agent-instance", "AgentInstanceService/RunInstance"),
    ("agent-instance", "attempt"),
    ("agent-instance", "worker"),
    ("agent-instance", "invoke_agent count"),
    ("agent-instance", "execute_tool step"),
    ("emitter", "emit"),
    ("bridge", "append"),
    ("gateway", "deliver"),
    ("execution", "last events"),
}
OF_THE_RUN = (
    "agent_execute",
    "ExecutionService/ExecutePipeline",
    "admission",
    "run",
    "stage count",
    "attempt",
    "emit",
    "last events",
)


async def one_run(world: OneProcess, user: str) -> int:
    """How many events the run had."""
    async with world.client(user) as client:
        run = await client.execute("count", pipeline=["count"])
        return len(check_run(await until_end(client, run.run_id, within=20), run.run_id))


def hops(spans: list[TraceSpan]) -> set[tuple[str, str]]:
    return {(span.service.removeprefix("carrel-"), span.name) for span in spans}


async def test_trace_of_one_run_from_the_in_memory_exporters(tmp_path: Path, eventually: Eventually) -> None:
    async with in_one_process(tmp_path, agents=AGENTS, **ON, CARREL_TELEMETRY__TRACE_RATIO="1") as world:
        events = await one_run(world, "alice")

        def whole() -> bool:
            spans = world.spans()
            # Each service hands over what has ended once a second: what lasted longest comes last.
            joined = {span.parent_id for span in spans} - {""} <= {span.span_id for span in spans}
            delivered = sum(span.attributes["carrel.events"] for span in spans if span.name == "deliver")
            return joined and bool(delivered == events) and "last events" in {span.name for span in spans}

        await eventually(whole, within=10)
    found = world.spans()
    by_trace = traces(found)
    assert len(by_trace) == 1, {key: hops(group) for key, group in by_trace.items()}
    print("\n" + render(found, found[0].trace_id))
    assert hops(found) == HOPS
    ids = {span.span_id for span in found}
    assert [span.name for span in found if span.parent_id not in ids] == ["agent_execute"]
    assert not [span for span in found if span.failed]
    # A run's spans can be found by its id and by its user's pseudonym, as its log lines can; nobody is named.
    whose = {span.name: (span.attributes.get("carrel.run_id"), span.attributes.get("carrel.user")) for span in found}
    (run_id,) = {span.attributes["carrel.run_id"] for span in found if span.name == "run"}
    assert {name: whose[name] for name in OF_THE_RUN} == dict.fromkeys(OF_THE_RUN, (run_id, hash_user("alice")))
    assert whose["deliver"] == (None, hash_user("alice"))  # a socket is a user's, and its messages hold several runs'
    assert "alice" not in str([span.attributes for span in found])


async def test_run_that_is_not_sampled_makes_no_span_anywhere(tmp_path: Path) -> None:
    async with in_one_process(tmp_path, agents=AGENTS, **ON, CARREL_TELEMETRY__TRACE_RATIO="0") as world:
        await one_run(world, "alice")
    assert world.spans() == []
