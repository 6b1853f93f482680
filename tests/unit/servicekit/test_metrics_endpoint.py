"""The endpoint that Prometheus reads, among scrapers that are quick, slow, many and rude; and the push of the same."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData
from opentelemetry.sdk.resources import Resource

from carrel.errors import StartupError, Status
from servicekit.telemetry.buckets import Buckets, sampled_trace
from servicekit.telemetry.calls import CallMeter
from servicekit.telemetry.meters import Meters
from servicekit.telemetry.otlp_metrics import push_metrics
from servicekit.telemetry.prometheus import EndpointLimits, serve_metrics
from tests.conftest import Eventually
from tests.ops.scrape import scrape

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
LOCAL = "127.0.0.1:0"


def some_meters() -> Meters:
    meters, delivery = Meters("emitter"), Buckets((0.1, 1.0))
    delivery.add(0.05, 3)
    delivery.add(0.5, 1, TRACE)
    meters.read("carrel_events_sent_total", lambda: 4)
    meters.read("carrel_items_refused_total", lambda: {"OVERLOADED": 2, 'odd "name"\n': 1})
    meters.histogram("carrel_event_delivery_time_seconds", delivery)
    return meters


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def raw(address: str, request: bytes) -> bytes:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    try:
        return await reader.read()
    finally:
        writer.close()


async def test_a_scraper_gets_openmetrics_with_exemplars() -> None:
    async with serve_metrics(some_meters(), LOCAL) as endpoint:
        scraped = await scrape(endpoint.address)
    assert scraped.value("carrel_events_sent_total") == 4
    assert scraped.value("carrel_items_refused_total", reason="OVERLOADED") == 2
    assert scraped.value("carrel_event_delivery_time_seconds_bucket", le="0.1") == 3
    assert scraped.value("carrel_event_delivery_time_seconds_bucket", le="+Inf") == 4
    assert scraped.value("carrel_event_delivery_time_seconds_sum") == pytest.approx(0.65)
    assert scraped.trace_ids() == {TRACE}


HOSTILE = [
    '00-x"} 1 1\ncarrel_workers_lost 999\n-0123456789abcdef-01',
    "00-" + "\n" * 32 + "-0123456789abcdef-01",
    "00-" + "0" * 32 + "-0123456789abcdef-01",
    "00-" + "G" * 32 + "-0123456789abcdef-01",
    "x" * 54 + "1",
]


async def test_what_comes_with_an_event_as_its_trace_cannot_break_what_scrapers_read() -> None:
    meters, delivery = Meters("emitter"), Buckets((0.1, 1.0))
    meters.histogram("carrel_event_delivery_time_seconds", delivery)
    delivery.add(0.5, 1, sampled_trace(f"00-{TRACE}-0123456789abcdef-01"))
    exporter = InMemory()
    async with serve_metrics(meters, LOCAL) as endpoint:
        for text in HOSTILE:
            assert len(text) == 55, "else it is no traceparent by its length alone"
            delivery.add(0.5, 1, sampled_trace(text))
            scraped = await scrape(endpoint.address)
            assert scraped.names == {"carrel_event_delivery_time_seconds"}
            assert scraped.trace_ids() == {TRACE}
    async with push_metrics(meters, exporter, Resource({}), interval_s=60):
        pass
    assert exporter.pushed


async def test_an_older_scraper_gets_the_older_format() -> None:
    async with (
        serve_metrics(some_meters(), LOCAL) as endpoint,
        aiohttp.ClientSession() as http,
        http.get(f"http://{endpoint.address}/metrics") as response,
    ):
        text = await response.text()
        assert response.headers["Content-Type"].startswith("text/plain")
    assert "carrel_events_sent_total 4.0" in text
    assert TRACE not in text


async def test_grpc_calls_are_told_by_method_and_status_and_streams_are_not_timed() -> None:
    meters, calls = Meters("emitter"), CallMeter()
    calls.observe(meters)
    for method, status in (("Notify", Status.OK), ("Notify", Status.UNAVAILABLE), ("Emit", Status.CANCELLED)):
        calls.call_started(f"/carrel.v1.EmitterService/{method}")
        calls.call_ended(f"/carrel.v1.EmitterService/{method}", status, 0.2)
    calls.call_started("/carrel.v1.EmitterService/Emit")
    async with serve_metrics(meters, LOCAL) as endpoint:
        scraped = await scrape(endpoint.address)
    assert scraped.value("carrel_grpc_calls_total", method="EmitterService/Notify", status="UNAVAILABLE") == 1
    assert scraped.value("carrel_grpc_calls_active", method="EmitterService/Emit") == 1
    assert {s.labels["method"] for s in scraped.samples("carrel_grpc_call_seconds_count")} == {"EmitterService/Notify"}


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET / HTTP/1.1", b"404"),
        (b"GET /metrics/../secret HTTP/1.1", b"404"),
        (b"POST /metrics HTTP/1.1", b"405"),
        (b"GET /metrics?x=1 HTTP/1.0", b"200"),
        (b"HEAD /metrics HTTP/1.1", b"200"),
    ],
)
async def test_only_reading_the_one_path_is_served(request_line: bytes, status: bytes) -> None:
    async with serve_metrics(some_meters(), LOCAL) as endpoint:
        host, _, port = endpoint.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request_line + b"\r\n\r\n")
        writer.write_eof()
        answer = await reader.read()
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split()[1] == status
    assert (b"carrel_" in body) == (status == b"200" and not request_line.startswith(b"HEAD"))


@pytest.mark.parametrize("rubbish", [b"x" * 20_000, b"\x16\x03\x01\x02\x00" * 10, b"GET /metrics HTTP/1.1\r\n"])
async def test_rubbish_and_halves_of_requests_are_cut_off_and_others_served(rubbish: bytes) -> None:
    async with serve_metrics(some_meters(), LOCAL, EndpointLimits(read_s=0.2, write_s=0.2)) as endpoint:
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionResetError):
                assert b"carrel_" not in await raw(endpoint.address, rubbish)
        assert (await scrape(endpoint.address)).value("carrel_events_sent_total") == 4


async def test_scrapers_beyond_the_bound_are_told_so(eventually: Eventually) -> None:
    limits = EndpointLimits(connections=2, read_s=5.0)
    async with serve_metrics(some_meters(), LOCAL, limits) as endpoint:
        host, _, port = endpoint.address.rpartition(":")
        silent = [await asyncio.open_connection(host, int(port)) for _ in range(2)]

        async def refused() -> bool:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write_eof()
            answer = await reader.read()
            writer.close()
            return b" 503 " in answer

        assert await eventually(refused, within=5)
        for _, writer in silent:
            writer.close()

        async def served() -> bool:
            try:
                return (await scrape(endpoint.address)).value("carrel_events_sent_total") == 4
            except (AssertionError, aiohttp.ClientError):
                return False

        assert await eventually(served, within=5)


async def test_a_flood_of_scrapers_takes_no_descriptors_and_leaves_no_word_at_the_end(
    eventually: Eventually, capfd: pytest.CaptureFixture[str]
) -> None:
    before = descriptors()
    flood: list[asyncio.StreamWriter] = []
    async with serve_metrics(some_meters(), LOCAL, EndpointLimits(connections=2)) as endpoint:
        host, _, port = endpoint.address.rpartition(":")
        for _ in range(60):
            _, writer = await asyncio.open_connection(host, int(port))
            flood.append(writer)
        # Theirs are in this process, too: the endpoint has 4 and what it listens with.
        await eventually(lambda: descriptors() <= before + 60 + 5, within=5)
    for writer in flood:
        writer.transport.abort()
    assert "Traceback" not in capfd.readouterr().err


async def test_a_scraper_that_does_not_read_is_cut_off(eventually: Eventually) -> None:
    meters = Meters("emitter")
    meters.read("carrel_items_refused_total", lambda: {f"{number:0200}": 1 for number in range(500)})
    async with serve_metrics(meters, LOCAL, EndpointLimits(connections=1, write_s=0.2)) as endpoint:
        host, _, port = endpoint.address.rpartition(":")
        rude = socket.create_connection((host, int(port)))
        rude.setblocking(False)
        rude.send(b"GET /metrics HTTP/1.1\r\n\r\n")

        async def free_again() -> bool:
            try:
                return bool((await scrape(endpoint.address)).names)
            except (AssertionError, aiohttp.ClientError):
                return False

        assert await eventually(free_again, within=5)
        rude.close()


async def test_an_address_that_is_taken_says_what_to_set() -> None:
    async with serve_metrics(some_meters(), LOCAL) as endpoint:
        with pytest.raises(StartupError, match="in use") as raised:
            async with serve_metrics(some_meters(), endpoint.address):
                pass
    assert "CARREL_TELEMETRY__METRICS_LISTEN" in raised.value.advice


class InMemory(MetricExporter):
    """Keeps what is pushed."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__()
        self.pushed: list[MetricsData] = []
        self.fails = fails
        self.ended = False
        self.tried = 0

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        self.tried += 1
        if self.fails:
            raise ConnectionError("nobody is there")
        self.pushed.append(metrics_data)
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        self.ended = True

    def metrics(self) -> dict[str, Any]:
        parts = self.pushed[-1].resource_metrics[0].scope_metrics[0].metrics
        return {metric.name: metric for metric in parts}


async def test_the_push_has_the_endpoints_numbers_and_comes_once_more_at_the_end(eventually: Eventually) -> None:
    exporter = InMemory()
    async with push_metrics(some_meters(), exporter, Resource({"service.name": "carrel-emitter"}), interval_s=0.01):
        await eventually(lambda: len(exporter.pushed) >= 2, within=5)
        before = len(exporter.pushed)
    assert len(exporter.pushed) > before
    assert exporter.ended
    found = exporter.metrics()
    sent = found["carrel_events_sent_total"].data
    assert sent.is_monotonic
    assert sent.data_points[0].value == 4
    (point,) = found["carrel_event_delivery_time_seconds"].data.data_points
    assert (point.count, tuple(point.bucket_counts), tuple(point.explicit_bounds)) == (4, (3, 1, 0), (0.1, 1.0))
    assert [f"{exemplar.trace_id:032x}" for exemplar in point.exemplars] == [TRACE]
    assert found["carrel_event_delivery_time_seconds"].unit == "s"
    assert exporter.pushed[-1].resource_metrics[0].resource.attributes["service.name"] == "carrel-emitter"


async def test_what_is_pushed_can_be_encoded_for_the_wire() -> None:
    from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics

    exporter = InMemory()
    async with push_metrics(some_meters(), exporter, Resource({}), interval_s=60):
        pass
    (resource,) = encode_metrics(exporter.pushed[-1]).resource_metrics
    assert {metric.name for metric in resource.scope_metrics[0].metrics} >= {"carrel_events_sent_total"}


async def test_a_collector_that_is_away_ends_nothing(eventually: Eventually) -> None:
    exporter = InMemory(fails=True)
    async with push_metrics(some_meters(), exporter, Resource({}), interval_s=0.001):
        await eventually(lambda: exporter.tried >= 3, within=5)
        exporter.fails = False
        await eventually(lambda: bool(exporter.pushed), within=5)
    assert exporter.ended


async def test_a_collector_that_is_away_at_the_end_is_not_waited_for(eventually: Eventually) -> None:
    exporter = InMemory(fails=True)
    async with push_metrics(some_meters(), exporter, Resource({}), interval_s=0.2):
        await eventually(lambda: exporter.tried >= 1, within=5)
        await asyncio.sleep(0.05)  # until its failure is noticed; the next try is later
        tried = exporter.tried
    assert exporter.tried == tried
