"""Traces over gRPC: a caller's goes on in the callee, and a message with events of several runs is linked to each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from carrel.errors import CarrelError
from carrel.v1 import bridge_pb2, events_pb2
from carrel.v1.bridge_pb2_grpc import BridgeServiceStub
from servicekit.rpc.channel import open_channel
from servicekit.telemetry.settings import TelemetrySettings
from servicekit.telemetry.setup import telemetry
from servicekit.telemetry.trace_tree import TraceSpan, of_sdk
from servicekit.telemetry.tracing import carried
from services.bridge.app import serve_bridge
from services.bridge.config import BridgeSettings
from services.bridge.store_sqlite import SqliteEventLog
from tests.support.identity import identity, run_context, session_context

KEPT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = KEPT.replace("0af7", "1af7")
UNKEPT = KEPT[:-2] + "00"


class Bridge:
    def __init__(self, stub: BridgeServiceStub, exporter: InMemorySpanExporter) -> None:
        self.stub = stub
        self._exporter = exporter

    def spans(self) -> list[TraceSpan]:
        return [of_sdk(span) for span in self._exporter.get_finished_spans()]

    async def publish(self, *traceparents: str) -> None:
        """One message, with an item of a run for each."""
        call = self.stub.Publish()
        items = [item(f"run{number}", text) for number, text in enumerate(traceparents)]
        await call.write(bridge_pb2.PublishRequest(items=items))
        acks = 0
        while acks < len(items):
            response = await call.read()
            assert isinstance(response, bridge_pb2.PublishResponse)
            assert not [ack for ack in response.acks if ack.HasField("refusal")]
            acks += len(response.acks)
        call.cancel()


def item(run: str, traceparent: str) -> events_pb2.ProducerEvents:
    context = run_context(run=run, request=f"req-{run}")
    event = events_pb2.Event(
        event_id=f"e-{run}", number=1, event_type="agent_thinking", data=b'{"text": "x"}', traceparent=traceparent
    )
    return events_pb2.ProducerEvents(context=context, producer_id=f"{run}:0:1", fence=1, events=[event])


ON = TelemetrySettings(enabled=True, trace_ratio=1.0, metrics_listen="off")


@asynccontextmanager
async def opened(folder: Path, settings: TelemetrySettings = ON) -> AsyncIterator[Bridge]:
    """A bridge; what it has told is all there once it is closed."""
    log = await SqliteEventLog.open(folder / "events.db")
    exporter = InMemorySpanExporter()
    bridge_settings = BridgeSettings(listen="127.0.0.1:0", drain_seconds=0.2)
    async with (
        telemetry(settings, "bridge", exporter=exporter) as runtime,
        serve_bridge(bridge_settings, log, identity().verifier(), runtime) as server,
        server,
        open_channel(server.address) as channel,
    ):
        yield Bridge(BridgeServiceStub(channel), exporter)
    await log.close()


def resolve(run: str = "nobody") -> bridge_pb2.ResolveRunRequest:
    return bridge_pb2.ResolveRunRequest(context=session_context(), run_id=run)


async def test_call_within_a_kept_trace_is_a_part_of_it_and_its_refusal_is_told_by_code(tmp_path: Path) -> None:
    async with opened(tmp_path) as bridge:
        with carried(KEPT), pytest.raises(CarrelError) as caught:
            await bridge.stub.ResolveRun(resolve())
    (span,) = bridge.spans()
    assert (span.name, span.trace_id, span.parent_id) == ("BridgeService/ResolveRun", KEPT[3:35], KEPT[36:52])
    assert span.failed
    assert span.attributes["error.type"] == caught.value.code


async def test_call_outside_a_trace_or_within_one_that_is_not_kept_makes_no_span(tmp_path: Path) -> None:
    async with opened(tmp_path) as bridge:
        for text in ("", UNKEPT):
            with carried(text), pytest.raises(CarrelError):
                await bridge.stub.ResolveRun(resolve())
        with pytest.raises(CarrelError):
            await bridge.stub.ResolveRun(resolve(), metadata=(("traceparent", "nonsense"),))
    assert bridge.spans() == []


async def test_message_of_several_runs_is_linked_to_the_trace_of_each(tmp_path: Path) -> None:
    async with opened(tmp_path) as bridge:
        await bridge.publish(KEPT, "", UNKEPT, OTHER)
    (span,) = bridge.spans()
    assert span.name == "append"
    assert span.parent_id == ""
    assert span.trace_id not in {KEPT[3:35], OTHER[3:35]}
    assert {trace for trace, _ in span.links} == {KEPT[3:35], OTHER[3:35]}
    assert span.attributes["carrel.events"] == 4


async def test_message_of_one_kept_run_is_a_part_of_its_trace(tmp_path: Path) -> None:
    async with opened(tmp_path) as bridge:
        await bridge.publish("", KEPT)
    (span,) = bridge.spans()
    assert (span.trace_id, span.parent_id) == (KEPT[3:35], KEPT[36:52])


async def test_events_of_no_kept_trace_and_texts_that_are_no_trace_make_no_span(tmp_path: Path) -> None:
    async with opened(tmp_path) as bridge:
        await bridge.publish("", UNKEPT, "x" * 54 + "1")
    assert bridge.spans() == []


async def test_while_telemetry_is_off_nothing_is_made_of_what_callers_send(tmp_path: Path) -> None:
    async with opened(tmp_path, TelemetrySettings()) as bridge:
        with carried(KEPT), pytest.raises(CarrelError):
            await bridge.stub.ResolveRun(resolve())
        await bridge.publish(KEPT)
    assert bridge.spans() == []
