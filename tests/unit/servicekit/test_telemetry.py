"""Spans: where traces begin and go on, what is kept of them, and that nobody waits for a collector."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from carrel.errors import StartupError, UnavailableError
from servicekit import logs
from servicekit.settings import SharedSettings, load_settings
from servicekit.settings_env import describe
from servicekit.tasks import TaskOwner
from servicekit.telemetry.runtime import TELEMETRY_OFF, Runtime, SpanCounts
from servicekit.telemetry.settings import TelemetrySettings
from servicekit.telemetry.setup import FLUSH_S, telemetry
from servicekit.telemetry.spans import BoundedSpans, OtelTracing
from servicekit.telemetry.trace_tree import TraceSpan, of_sdk, render
from servicekit.telemetry.tracing import NO_SPAN, NO_TRACING, Tracing, as_traceparent, carried, current_span, is_sampled
from servicekit.telemetry.viewer import OtlpReceiver
from tests.conftest import Eventually
from tests.support.awake import Awake

THEIRS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNKEPT = THEIRS[:-2] + "00"


def settings(**changes: Any) -> TelemetrySettings:
    return TelemetrySettings.model_validate({"enabled": True, "metrics_listen": "off", "trace_ratio": 1.0} | changes)


class Kept:
    """Tracing with what it has handed over."""

    def __init__(self, tracing: Tracing, exporter: InMemorySpanExporter) -> None:
        self.tracing = tracing
        self._exporter = exporter

    def spans(self) -> list[TraceSpan]:
        return [of_sdk(span) for span in self._exporter.get_finished_spans()]

    def one(self, name: str) -> TraceSpan:
        return next(span for span in self.spans() if span.name == name)


def kept(ratio: float = 1.0, *, trust: bool = False, **options: Any) -> Kept:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    exporter = InMemorySpanExporter()
    resource = Resource({"service.name": "carrel-test"})
    return Kept(OtelTracing(resource, SimpleSpanProcessor(exporter), ratio, trust_incoming=trust, **options), exporter)


# Texts.


@pytest.mark.parametrize(
    ("text", "sampled"),
    [(THEIRS, True), (UNKEPT, False), ("", False), ("00-1", False), (THEIRS[:-2] + "03", True), ("x" * 54 + "1", True)],
)
def test_whether_a_text_is_of_a_kept_trace_is_seen_from_its_last_digit(text: str, sampled: bool) -> None:
    assert is_sampled(text) is sampled


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-" + "0" * 32 + "-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
        THEIRS.upper(),
        THEIRS + "-",
        "x" * 54 + "1",
        THEIRS[:-1] + "\u0661",
    ],
)
def test_what_is_no_trace_context_counts_as_none(text: str) -> None:
    assert as_traceparent(text) == ""
    assert as_traceparent(THEIRS) == THEIRS


# Where spans belong.


def test_span_is_a_part_of_the_current_one_and_ends_with_its_block() -> None:
    made = kept()
    with made.tracing.begin("root") as root:
        with made.tracing.span("inner"):
            assert current_span().trace_id == root.trace_id
        assert current_span() is root
    assert current_span() is NO_SPAN
    assert made.one("inner").parent_id == made.one("root").span_id
    assert made.one("root").parent_id == ""


def test_trace_that_is_not_kept_is_carried_on_and_records_nothing() -> None:
    made = kept(ratio=0.0)
    with made.tracing.begin("root") as root:
        assert root.trace_id
        assert not is_sampled(root.traceparent)
        with made.tracing.span("inner"):
            # Log lines and calls downstream still know whose trace it is, so that nobody begins another.
            assert current_span().traceparent == root.traceparent
        with made.tracing.span("far away", parent=root.traceparent):
            assert current_span().trace_id == root.trace_id
    assert made.spans() == []


def test_outside_a_trace_a_span_is_nothing() -> None:
    made = kept()
    with made.tracing.span("alone") as alone:
        assert alone is NO_SPAN
    assert made.tracing.span("alone", parent="") is NO_SPAN
    assert made.spans() == []


def test_what_a_client_sends_is_a_link_and_cannot_have_its_trace_kept() -> None:
    made = kept(ratio=0.0)
    made.tracing.begin("root", incoming=THEIRS).end()
    assert made.spans() == []
    made = kept(ratio=1.0)
    made.tracing.begin("root", incoming=THEIRS).end()
    assert made.one("root").links == ((THEIRS[3:35], THEIRS[36:52]),)
    assert made.one("root").trace_id != THEIRS[3:35]


def test_trusted_client_s_trace_is_gone_on_with_as_the_client_decided() -> None:
    made = kept(ratio=0.0, trust=True)
    made.tracing.begin("root", incoming=THEIRS).end()
    assert (made.one("root").trace_id, made.one("root").parent_id) == (THEIRS[3:35], THEIRS[36:52])
    made = kept(ratio=1.0, trust=True)
    made.tracing.begin("root", incoming=UNKEPT).end()
    made.tracing.begin("another", incoming="nonsense").end()
    assert [span.name for span in made.spans()] == ["another"]


def test_batch_of_one_trace_is_a_part_of_it_and_of_several_is_linked_to_each() -> None:
    made = kept(ratio=0.0)  # what is kept was decided where the traces began
    first, second = THEIRS, THEIRS.replace("b7ad", "c7ad")
    other = THEIRS.replace("0af7", "1af7")
    made.tracing.batch("one", ["", first, UNKEPT, second, first]).end()
    assert (made.one("one").trace_id, made.one("one").parent_id) == (first[3:35], first[36:52])
    assert made.one("one").links == ((second[3:35], second[36:52]),)
    made.tracing.batch("several", [first, other, second]).end()
    several = made.one("several")
    assert several.parent_id == ""
    assert several.trace_id not in {first[3:35], other[3:35]}
    assert several.links == ((first[3:35], first[36:52]), (other[3:35], other[36:52]))
    assert "~ test: several" in render(
        [*made.spans(), TraceSpan("carrel-test", "root", first[3:35], first[36:52], "", 1, 2)], first[3:35]
    )


def test_spans_of_events_have_a_bound_and_say_how_many_were_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("servicekit.telemetry.spans.time.monotonic", lambda: now)
    counts = SpanCounts()
    made = kept(event_spans_per_s=2, counts=counts)
    for _ in range(20):
        made.tracing.batch("event", [THEIRS]).end()
    assert (len(made.spans()), counts.passed_over) == (4, 16)
    # Those of runs have none.
    made.tracing.span("run", parent=THEIRS).end()
    now = 0.5
    made.tracing.batch("again", [THEIRS]).end()
    assert made.one("again").attributes["carrel.passed_over"] == 16
    now = 1.0
    made.tracing.batch("and again", [THEIRS]).end()
    assert "carrel.passed_over" not in made.one("and again").attributes


def test_batch_without_a_kept_trace_is_nothing_whatever_it_is_given() -> None:
    made = kept()
    assert made.tracing.batch("none", ["", UNKEPT, "x" * 54 + "1", "00"]) is NO_SPAN
    assert NO_TRACING.batch("none", [THEIRS]) is NO_SPAN


def test_error_that_leaves_a_span_is_told_by_its_code_and_never_by_its_text() -> None:
    made = kept()
    with pytest.raises(UnavailableError), made.tracing.begin("root"):
        raise UnavailableError("alice's secret")
    with pytest.raises(KeyError), made.tracing.begin("fault"):
        raise KeyError("alice's secret")
    assert made.one("root").failed
    assert made.one("root").attributes["error.type"] == UnavailableError("").code
    assert made.one("fault").attributes["error.type"] == "KeyError"
    assert "secret" not in repr(made.spans())


async def test_cancellation_is_no_failure_and_tasks_of_an_owner_leave_the_span() -> None:
    made = kept()
    seen: list[str] = []

    async def look() -> None:
        seen.append(current_span().traceparent)

    async with TaskOwner() as tasks:
        with made.tracing.begin("root") as root:
            await tasks.start(look(), "owned")
            await asyncio.create_task(look())
        with pytest.raises(asyncio.CancelledError), made.tracing.begin("cancelled"):
            raise asyncio.CancelledError
    assert seen == ["", root.traceparent]
    assert not made.one("cancelled").failed
    assert made.one("cancelled").attributes["carrel.cancelled"] is True


async def test_generator_that_the_loop_closes_in_another_context_ends_its_span() -> None:
    made = kept()

    async def serve() -> AsyncIterator[int]:
        with made.tracing.begin("stream"):
            yield 1

    stream = serve()
    await asyncio.create_task(anext(stream))  # type: ignore[arg-type]  # an awaitable, and a coroutine in fact
    await asyncio.create_task(stream.aclose())  # type: ignore[attr-defined]  # a generator's
    assert made.one("stream").attributes["carrel.cancelled"] is True


# Log lines.


def test_log_line_within_a_span_carries_its_ids_and_one_outside_does_not() -> None:
    out = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        logs.configure("test", stream=out)
        with carried(UNKEPT):
            logs.get_logger("a").info("inside")
        logs.get_logger("a").info("outside")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.captureWarnings(False)
    inside, outside = map(json.loads, out.getvalue().splitlines())
    assert (inside["trace_id"], inside["span_id"]) == (UNKEPT[3:35], UNKEPT[36:52])
    assert "trace_id" not in outside


# The way to a collector.


class Stuck(SpanExporter):
    """Takes one batch and does not come back until it is let go."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.entered = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.entered.set()
        self.free.wait(20)
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        """Nothing."""


@pytest.fixture
async def stuck() -> AsyncIterator[Stuck]:
    exporter = Stuck()
    yield exporter
    exporter.free.set()


def test_full_queue_drops_the_newest_counts_them_and_keeps_nobody_waiting(stuck: Stuck) -> None:
    from opentelemetry.sdk.resources import Resource

    counts = SpanCounts()
    processor = BoundedSpans(stuck, counts, max_queued=10, every_ms=10)
    tracing = OtelTracing(Resource({}), processor, 1.0, trust_incoming=False)
    tracing.begin("first").end()
    assert stuck.entered.wait(5)
    with Awake() as took:
        for _ in range(100):
            tracing.begin("more").end()
    assert took.seconds < 1.0
    assert (counts.ended, counts.dropped) == (101, 90)
    assert processor.close(0.05) is False


async def test_end_waits_no_longer_for_a_collector_than_its_bound(stuck: Stuck) -> None:
    with Awake() as took:
        async with telemetry(settings(), "bridge", exporter=stuck) as runtime:
            runtime.tracing.begin("root").end()
    assert took.seconds < FLUSH_S + 1.5


async def test_collector_that_is_away_slows_neither_calls_nor_the_end() -> None:
    with Awake() as took:
        async with telemetry(settings(otlp_endpoint="http://127.0.0.1:9"), "bridge") as runtime:
            for _ in range(1000):
                runtime.tracing.begin("root").end()
            assert took.seconds < 3.0
    assert took.seconds < 3.0 + FLUSH_S + 1.5


async def test_spans_reach_a_collector_with_the_service_s_name(eventually: Eventually) -> None:
    with OtlpReceiver() as receiver:
        async with telemetry(settings(otlp_endpoint=f"{receiver.url}/"), "agent_instance") as runtime:
            with runtime.tracing.begin("root", {"carrel.events": 3}):
                runtime.tracing.span("inner").end()
        # What was left at the end has been handed over before it.
        found = {span.name: span for span in receiver.spans}
    assert found["root"].service == "carrel-agent-instance"
    assert found["root"].attributes["carrel.events"] == 3
    assert found["inner"].parent_id == found["root"].span_id


class Talkative:
    """A collector whose answers have no end: as much as is taken, or a byte now and then."""

    def __init__(self, piece: bytes, pause_s: float) -> None:
        self._answer = f"{len(piece):x}".encode() + b"\r\n" + piece + b"\r\n"
        self._pause_s = pause_s
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self.sent = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            ends = time.monotonic() + 20.0  # a process that waits for it shall be seen to, and end
            while self.sent < 200_000_000 and time.monotonic() < ends:
                connection.sendall(self._answer)
                self.sent += len(self._answer)
                time.sleep(self._pause_s)

    def close(self) -> None:
        self._server.close()


@pytest.mark.parametrize(("piece", "pause_s"), [(b"x" * 65536, 0.0), (b"x", 0.1)])
async def test_collector_whose_answer_has_no_end_costs_neither_memory_nor_time(piece: bytes, pause_s: float) -> None:
    collector = Talkative(piece, pause_s)
    try:
        with Awake() as took:
            async with telemetry(settings(otlp_endpoint=collector.url), "bridge") as runtime:
                runtime.tracing.begin("root").end()
        # What the kernels hold between the two is some megabytes.
        assert 0 < collector.sent < 50_000_000
        assert took.seconds < 2 * FLUSH_S + 6.0
    finally:
        collector.close()


# Turning it on.


def test_off_is_the_default_and_loads_nothing_of_opentelemetry(tmp_path: Path) -> None:
    import subprocess

    program = (
        "import asyncio, sys\n"
        "from servicekit.telemetry.setup import telemetry\n"
        "from servicekit.telemetry.settings import TelemetrySettings\n"
        "import services.bridge.app, services.execution.app, services.emitter.app, gateway.app\n"
        "import services.agent_instance.app\n"
        "async def main():\n"
        "    async with telemetry(TelemetrySettings(), 'bridge') as runtime:\n"
        "        return runtime.tracing.begin('x').traceparent\n"
        "assert asyncio.run(main()) == ''\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    # The API alone may come with a library of others (openfeature, grpc); the SDK and exporters must not.
    assert "opentelemetry.sdk" not in done.stdout
    assert "opentelemetry.exporter" not in done.stdout


async def test_missing_packages_end_the_start_and_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("servicekit.telemetry.spans")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(StartupError) as caught:
        async with telemetry(settings(), "bridge"):
            raise AssertionError("it was turned on")
    assert "carrel[telemetry]" in caught.value.advice
    assert caught.value.phase == "CONFIGURATION"


def test_settings_are_read_from_the_environment_and_checked() -> None:
    environ = {
        "CARREL_TELEMETRY__ENABLED": "true",
        "CARREL_TELEMETRY__OTLP_ENDPOINT": "https://collector:4318/",
        "CARREL_TELEMETRY__TRACE_RATIO": "0.25",
        "CARREL_TELEMETRY__METRICS_LISTEN": "0.0.0.0:9000",
    }
    read = load_settings(SharedSettings, "bridge", environ)
    assert read.telemetry.otlp_endpoint == "https://collector:4318"
    assert read.telemetry.trace_ratio == 0.25
    assert read.telemetry.metrics_address("127.0.0.1:50054") == "0.0.0.0:9000"
    assert "CARREL_TELEMETRY__TRACE_RATIO" in {row.name for row in describe(read, "bridge")}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTLP_ENDPOINT", "collector:4318"),
        ("OTLP_ENDPOINT", "grpc://collector:4317"),
        ("OTLP_ENDPOINT", "http://user:secret@collector:4318"),
        ("TRACE_RATIO", "1.5"),
        ("METRICS_LISTEN", "9000"),
        ("METRICS_LISTEN", "on"),
    ],
)
def test_wrong_setting_is_named_with_what_to_write(name: str, value: str) -> None:
    with pytest.raises(StartupError, match=f"CARREL_TELEMETRY__{name}"):
        load_settings(SharedSettings, "bridge", {f"CARREL_TELEMETRY__{name}": value})


@pytest.mark.parametrize(
    ("given", "listen", "address"),
    [
        (None, "127.0.0.1:50054", "127.0.0.1:51054"),
        (None, "127.0.0.1:0", "127.0.0.1:0"),
        (None, "127.0.0.1:65000", "127.0.0.1:0"),
        (None, "[::1]:8080", "[::1]:9080"),
        (None, "unix:/run/bridge.sock", ""),
        (None, "", ""),
        ("OFF", "127.0.0.1:50054", ""),
        ("127.0.0.1:7", "unix:/run/bridge.sock", "127.0.0.1:7"),
    ],
)
def test_metrics_are_a_thousand_ports_above_unless_told(given: str | None, listen: str, address: str) -> None:
    assert TelemetrySettings(metrics_listen=given).metrics_address(listen) == address


def test_runtime_that_is_off_does_nothing() -> None:
    assert Runtime() == TELEMETRY_OFF
    with TELEMETRY_OFF.tracing.begin("root") as span:
        span.set({"a": 1})
        span.fail("X")
        span.note("y")
        assert current_span() is NO_SPAN
    assert not span.recording
