"""Five real processes, a few runs, and every metric of the catalogue with the numbers that were run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from servicekit.telemetry.catalogue import CATALOGUE, SERVICES, Kind, metrics_of
from tests.conftest import Eventually
from tests.e2e.checks import until_end
from tests.ops.scrape import Scraped, scrape
from tests.support.model_server import Say, model_server
from tests.support.stack import RunningStack, running_stack

AGENTS = [str(Path(__file__).with_name("ops_agents.py"))]
MODEL_PORT = 18_477
USERS = ("ada", "bob", "cyd")


@pytest.fixture(scope="module")
def measured_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Five processes that keep every trace, and tell their metrics."""
    environment = {
        "CARREL_TELEMETRY__ENABLED": "true",
        "CARREL_TELEMETRY__TRACE_RATIO": "1",
        # Nobody is there: traces are made all the same, and what cannot be pushed must not be felt.
        "CARREL_TELEMETRY__OTLP_ENDPOINT": "http://127.0.0.1:9",
        "CARREL_AGENT_INSTANCE_MODELS__BASE_URL": f"http://127.0.0.1:{MODEL_PORT}/v1",
        "CARREL_AGENT_INSTANCE_MODELS__DEFAULT": "scripted",
    }
    with running_stack(tmp_path_factory.mktemp("metrics"), agents=AGENTS, environment=environment) as running:
        yield running


async def scrape_all(stack: RunningStack) -> dict[str, Scraped]:
    addresses = stack.facts["addresses"]
    return {service: await scrape(addresses[f"{service} metrics"]) for service in SERVICES}


async def test_every_metric_is_there_and_counts_what_was_run(
    measured_stack: RunningStack, eventually: Eventually
) -> None:
    events = 0
    async with model_server(Say("three"), port=MODEL_PORT):
        for user in USERS:
            async with measured_stack.client(user) as client:
                run = await client.execute("count", pipeline=["count"])
                events += len(await until_end(client, run.run_id))
    async with measured_stack.client(USERS[0]) as client:
        run = await client.execute("fail", pipeline=["fail"])
        events += len(await until_end(client, run.run_id))

        async def all_told() -> dict[str, Scraped] | None:
            scraped = await scrape_all(measured_stack)
            told = scraped["execution"]
            timed = told.value("carrel_run_part_seconds_count", part="admission") == 4
            # The store is asked every five seconds.
            return scraped if timed and not told.value("carrel_unended_runs") else None

        told_at_last = await eventually(all_told, within=10, what="four runs in the metrics")
    assert told_at_last is not None
    found: dict[str, Scraped] = told_at_last

    for service, scraped in found.items():
        assert scraped.names == {metric.name for metric in metrics_of(service)}, service
        for metric in metrics_of(service):
            family = scraped.families[metric.family]
            assert family.type == metric.kind.value
            labels = {name for s in family.samples for name in s.labels} - {"le"}
            assert labels <= set(metric.labels), metric.name

    execution, emitter, bridge = found["execution"], found["emitter"], found["bridge"]
    assert execution.value("carrel_runs_total") == 4
    assert execution.value("carrel_runs_successful_total") == 3
    assert execution.value("carrel_runs_failed_total") == 1
    assert execution.value("carrel_engines_created_total") == execution.value("carrel_engines_cleaned_total") == 4
    assert execution.value("carrel_engines_active") == execution.value("carrel_total_users") == 0
    assert execution.value("carrel_contexts_created_total") == execution.value("carrel_contexts_cleaned_total") == 4
    assert execution.value("carrel_execution_time_seconds_count") == 4
    assert 0 < execution.value("carrel_execution_time_seconds_sum") < 60
    for layer in ("execution_engine", "agent_instance", "websocket_emitter", "bridge_integration"):
        assert execution.value("carrel_factory_chain_metrics_milliseconds_count", layer=layer) >= 4, layer
        assert execution.value("carrel_run_part_seconds_sum", part=layer) > 0, layer
    assert execution.value("carrel_unended_runs") == 0
    assert execution.value("carrel_run_store_seconds_count", operation="write") > 4
    assert execution.value("carrel_grpc_calls_total", method="ExecutionService/ExecutePipeline", status="OK") == 4

    assert emitter.value("carrel_events_sent_total") == events
    assert emitter.value("carrel_emitters_created_total") == len(USERS)
    assert emitter.value("carrel_event_delivery_time_seconds_count") == events
    assert emitter.value("carrel_event_log_latency_seconds_count") == events
    assert emitter.value("carrel_unacknowledged_events") == 0
    assert bridge.value("carrel_log_events_total", outcome="appended") == events
    assert bridge.value("carrel_integration_state", state="ACTIVE") == 1
    assert bridge.value("carrel_attached_gateways") == 1

    gateway, workers = found["gateway"], found["agent_instance"]
    assert gateway.value("carrel_connections_accepted_total") == 4
    assert gateway.value("carrel_socket_events_total") >= events
    assert gateway.value("carrel_event_latency_seconds_count") >= events - 4
    assert gateway.value("carrel_upstream_attached") == 1
    assert workers.value("carrel_pool_served_total") == 4
    assert workers.value("carrel_tool_calls_total", outcome="succeeded") == 6
    assert workers.value("carrel_model_calls_total", model="scripted", outcome="succeeded") == 3
    assert workers.value("carrel_model_tokens_total", direction="output") > 0
    assert workers.value("carrel_agents_failed_total") == 1

    for service, scraped in found.items():
        assert scraped.value("carrel_service_ready") == 1, service
        assert scraped.value("carrel_process_memory_bytes") > 10 << 20
        assert scraped.value("carrel_process_cpu_seconds_total") > 0
        assert scraped.value("carrel_metrics_failures_total") == 0, service
    # Exemplars name traces that were kept, where latency is measured.
    for service in ("gateway", "emitter", "execution"):
        assert found[service].trace_ids(), service


async def test_counters_only_rise(measured_stack: RunningStack) -> None:
    first, second = await scrape_all(measured_stack), await scrape_all(measured_stack)
    for service in SERVICES:
        for metric in metrics_of(service):
            if metric.kind is Kind.COUNTER:
                for sample in first[service].samples(metric.name):
                    assert second[service].value(metric.name, **sample.labels) >= sample.value, metric.name
    assert len(CATALOGUE) > 80
