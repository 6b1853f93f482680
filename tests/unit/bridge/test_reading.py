"""Reading one run of a log: from its first event on, whatever lies between, and only if the log has anything of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from carrel.errors import UnknownRunError
from services.bridge.domain import reading
from services.bridge.domain.bridge import Bridge
from services.bridge.domain.reading import ReadQuery
from services.bridge.models import (
    Append,
    Entry,
    Page,
    ReadItem,
    Reset,
    ResetReason,
    ResumePoint,
    Retention,
    StoredEvent,
    Through,
)
from services.bridge.store_memory import MemoryEventLog
from tests.conftest import Eventually


@pytest.fixture
async def log() -> MemoryEventLog:
    return MemoryEventLog()


@pytest.fixture
async def bridge(log: MemoryEventLog) -> AsyncIterator[Bridge]:
    async with Bridge(log, on_failure=lambda name, error: None) as bridge:
        yield bridge


def _events(run: str, first: int, last: int, *, terminal: bool = False) -> Append:
    events = tuple(StoredEvent(f"{run}-{n}", b"blob") for n in range(first, last + 1))
    return Append("alice", run, "t", f"{run}:0:1", 1, first, events, terminal, None)


def _of_run(entry: Entry) -> bool:
    return entry.event_id.startswith("r-")


def _query(*, follow: bool = False, resume: ResumePoint | None = None, run_id: str = "r") -> ReadQuery:
    return ReadQuery("alice", resume=resume, run_id=run_id, keep=_of_run, follow=follow)


async def _read(bridge: Bridge, query: ReadQuery) -> list[ReadItem]:
    return [item async for item in bridge.read(query)]


def _ids(items: list[ReadItem]) -> list[str]:
    return [entry.event_id for item in items if isinstance(item, Page) for entry in item.entries]


async def test_long_stretches_of_others_entries_are_told_as_they_are_passed_over(bridge: Bridge) -> None:
    await bridge.publish([_events("r", 1, 1)])
    for first in range(1, 1001, 100):
        await bridge.publish([_events("s", first, first + 99)])
    await bridge.publish([_events("r", 2, 2, terminal=True)])
    items = await _read(bridge, _query(follow=True))
    assert _ids(items) == ["r-1", "r-2"]
    passed = [item.point.offset for item in items if isinstance(item, Through)]
    assert passed == [200, 400, 600, 800, 1000, 1002]
    # Each of them is a place to go on from.
    for item in items:
        if isinstance(item, Through):
            again = await _read(bridge, _query(follow=True, resume=item.point))
            assert _ids(again) == (["r-2"] if item.point.offset < 1002 else [])
            assert not any(isinstance(one, Reset) for one in again)


async def test_a_run_whose_first_entries_are_gone_begins_with_a_reset(bridge: Bridge, log: MemoryEventLog) -> None:
    await bridge.publish([_events("r", 1, 9)])
    log.retain(Retention(max_entries=4))
    await log.sweep()
    reset, *items = await _read(bridge, _query())
    assert isinstance(reset, Reset)
    assert (reset.reason, reset.point.offset) == (ResetReason.TRIMMED, 5)
    assert _ids(items) == ["r-6", "r-7", "r-8", "r-9"]


async def test_a_run_that_the_log_does_not_know_is_not_found(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    await bridge.publish([_events("s", 1, 3)])
    with pytest.raises(UnknownRunError):
        await _read(bridge, _query())
    monkeypatch.setattr(reading, "_RUN_WAIT_S", 0.2)
    async with asyncio.timeout(3):
        with pytest.raises(UnknownRunError):
            await _read(bridge, _query(follow=True))


async def test_a_follower_may_be_there_before_its_run(bridge: Bridge, eventually: Eventually) -> None:
    following = asyncio.create_task(_read(bridge, _query(follow=True)))
    await asyncio.sleep(0)
    await bridge.publish([_events("s", 1, 3)])
    await bridge.publish([_events("r", 1, 2, terminal=True)])
    async with asyncio.timeout(3):
        assert _ids(await following) == ["r-1", "r-2"]
