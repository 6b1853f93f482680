"""A model's text on its way into events: the first piece at once, then one event per interval or per KiB."""

from __future__ import annotations

import asyncio

import pytest

from carrel.errors import StoreUnavailableError
from carrel.speech import Speech, split_text
from tests.conftest import Eventually


class Ear:
    def __init__(self) -> None:
        self.heard: list[str] = []
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None

    async def say(self, text: str) -> None:
        await self.open.wait()
        if self.error is not None:
            raise self.error
        self.heard.append(text)


async def test_pieces_within_the_interval_are_one_event_after_the_first() -> None:
    ear = Ear()
    async with Speech(ear.say, interval_s=60) as speech:
        for number in range(20):
            await speech.add(f"{number} ")
            for _ in range(3):
                await asyncio.sleep(0)
        assert ear.heard == ["0 "]
    assert ear.heard == ["0 ", "".join(f"{number} " for number in range(1, 20))]


async def test_a_kibibyte_does_not_wait_for_the_interval() -> None:
    ear = Ear()
    async with Speech(ear.say, interval_s=60) as speech:
        await speech.add("a")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for _ in range(11):
            await speech.add("x" * 100)
        assert ear.heard == ["a", "x" * 1100]


async def test_what_waits_is_said_after_the_interval_without_a_further_piece(eventually: Eventually) -> None:
    ear = Ear()
    async with Speech(ear.say, interval_s=0.02) as speech:
        await speech.add("a")
        await eventually(lambda: ear.heard == ["a"])
        await speech.add("b")
        await eventually(lambda: ear.heard == ["a", "b"])


async def speak(ear: Ear, *, pieces: int = 1, fail: bool = False) -> None:
    async with Speech(ear.say) as speech:
        for _ in range(pieces):
            await speech.add("a")
            await asyncio.sleep(0)
        if fail:
            raise ZeroDivisionError


async def test_a_failing_ear_ends_the_speech() -> None:
    ear = Ear()
    ear.error = StoreUnavailableError("gone")
    with pytest.raises(StoreUnavailableError):
        await speak(ear, pieces=1000)
    with pytest.raises(StoreUnavailableError):
        await speak(ear)
    with pytest.raises(ZeroDivisionError):
        await speak(ear, fail=True)


async def test_an_error_does_not_wait_for_a_stuck_ear() -> None:
    ear = Ear()
    ear.open.clear()
    with pytest.raises(ZeroDivisionError):
        await speak(ear, fail=True)
    assert ear.heard == []


def test_text_is_split_without_loss() -> None:
    assert split_text("") == []
    parts = split_text("x" * 5000)
    assert [len(part) for part in parts] == [2048, 2048, 904]
