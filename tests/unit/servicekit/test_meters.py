"""The metrics' kit: buckets, the catalogue, what may be registered, what a collection does when something is wrong."""

from __future__ import annotations

import asyncio

import pytest

from servicekit.telemetry.buckets import Buckets, sampled_trace
from servicekit.telemetry.catalogue import CATALOGUE, SERVICES, Kind, metrics_of
from servicekit.telemetry.meters import NO_METERS, Meters

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_a_value_at_a_bound_belongs_below_it_and_one_above_all_is_kept() -> None:
    buckets = Buckets((1.0, 2.0))
    for value in (1.0, 1.5, 9.0, -3.0):
        buckets.add(value)
    buckets.add(0.5, 10)
    read = buckets.read()
    assert read.counts == (12, 1, 1)
    assert read.count == buckets.count == 14
    assert read.sum == pytest.approx(1.0 + 1.5 + 9.0 + 0.0 + 5.0)


def test_what_was_read_does_not_change_afterwards() -> None:
    buckets = Buckets((1.0,))
    read = buckets.read()
    buckets.add(0.5)
    assert read.counts == (0, 0)


@pytest.mark.parametrize("bounds", [(), (2.0, 1.0), (1.0, 1.0)])
def test_bounds_that_do_not_rise_are_refused(bounds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="rise"):
        Buckets(bounds)


def test_the_latest_exemplar_of_each_bucket_is_kept() -> None:
    buckets = Buckets((1.0,), wall=lambda: 7.0)
    buckets.add(0.1, 1, "old")
    buckets.add(0.2, 1, TRACE)
    buckets.add(0.3)
    low, high = buckets.read().exemplars
    assert low is not None
    assert (low.value, low.trace_id, low.at) == (0.2, TRACE, 7.0)
    assert high is None


@pytest.mark.parametrize(
    ("text", "found"),
    [(f"00-{TRACE}-00f067aa0ba902b7-01", TRACE), (f"00-{TRACE}-00f067aa0ba902b7-00", ""), ("", ""), ("rubbish", "")],
)
def test_only_a_kept_trace_becomes_an_exemplar(text: str, found: str) -> None:
    assert sampled_trace(text) == found


def test_every_name_of_the_design_documents_is_in_the_catalogue() -> None:
    named = " ".join(metric.documents for metric in CATALOGUE.values())
    for name in (
        *("engines created", "engines active", "engines cleaned", "total users", "concurrent peak"),
        *("contexts created", "contexts cleaned", "total runs", "successful runs", "failed runs"),
        *("execution time (average, p95)", "emitters created", "emitters active", "events sent", "events failed"),
        *("batches", "event delivery time", "heartbeat status", "factory_chain_metrics", "memory", "CPU"),
    ):
        assert name in named


def test_names_say_their_unit_and_kind_and_no_label_is_of_one_user() -> None:
    for metric in CATALOGUE.values():
        assert metric.name.startswith("carrel_")
        assert metric.help.endswith("."), metric.name
        assert metric.services
        assert not {"user", "user_id", "run_id", "thread_id", "request_id", "le"} & set(metric.labels), metric.name
        if metric.kind is Kind.HISTOGRAM:
            assert metric.unit in {"seconds", "milliseconds"}, metric.name
    assert all(metrics_of(service) for service in SERVICES)


def test_what_the_catalogue_does_not_have_cannot_be_registered() -> None:
    meters = Meters("emitter")
    with pytest.raises(ValueError, match="not in the catalogue"):
        meters.read("carrel_invented_total", lambda: 1)
    with pytest.raises(ValueError, match="not for emitter"):
        meters.read("carrel_runs_total", lambda: 1)
    with pytest.raises(ValueError, match="is a histogram"):
        meters.read("carrel_event_delivery_time_seconds", lambda: 1)
    with pytest.raises(ValueError, match="is no histogram"):
        meters.histogram("carrel_events_sent_total", Buckets())
    meters.read("carrel_events_sent_total", lambda: 1)
    with pytest.raises(ValueError, match="already"):
        meters.read("carrel_events_sent_total", lambda: 1)


def test_without_telemetry_anything_may_be_registered_any_number_of_times() -> None:
    NO_METERS.read("carrel_events_sent_total", lambda: 1)
    NO_METERS.read("carrel_events_sent_total", lambda: 1)
    assert not NO_METERS.names


async def test_one_metric_that_cannot_be_read_leaves_the_others_readable() -> None:
    meters = Meters("emitter")

    def broken() -> int:
        raise RuntimeError("no")

    async def broken_refresh() -> None:
        raise RuntimeError("no")

    meters.read("carrel_emitters_active", broken)
    meters.read("carrel_items_refused_total", lambda: {("two", "labels"): 1})
    meters.read("carrel_events_sent_total", lambda: 3)
    meters.refresh("something", broken_refresh)
    collected = await meters.collect()
    assert [family.metric.name for family in collected.families] == ["carrel_events_sent_total"]
    assert meters.failures == 3


async def test_many_who_collect_at_once_are_one_look() -> None:
    now, looks = 0.0, 0
    meters = Meters("emitter", clock=lambda: now)

    async def look() -> None:
        nonlocal looks
        await asyncio.sleep(0)
        looks += 1

    meters.refresh("look", look)
    await asyncio.gather(*(meters.collect() for _ in range(20)))
    assert looks == 1
    now = 1.0
    await meters.collect()
    assert looks == 2


async def test_a_label_with_too_many_values_is_cut() -> None:
    meters = Meters("emitter")
    meters.read("carrel_items_refused_total", lambda: {str(number): 1 for number in range(10_000)})
    family = (await meters.collect()).families[0]
    assert len(family.numbers) == 500
