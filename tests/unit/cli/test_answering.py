"""Questions at a real terminal's other end, and a run's questions beside its events."""

from __future__ import annotations

import asyncio
import os
import pty
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from carrel.cli.answering import GoneError, RunQuestions, ask
from carrel.cli.keyboard import Keyboard
from carrel.client import Event, Question
from carrel.client.http import GatewayHttp
from carrel.errors import CarrelError, InvalidInputError, NotWaitingError
from tests.conftest import Eventually

YES_NO = Question("input-1", "Go on?", {"type": "boolean"})


@dataclass
class Show:
    said: list[str] = field(default_factory=list)

    def text(self, text: str) -> None:
        self.said.append(text)


class Watched(Keyboard):
    """A keyboard that says when it is listened to."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self.prompts: list[str] = []

    async def line(self, prompt: str) -> str | None:
        self.prompts.append(prompt)
        return await super().line(prompt)


@dataclass
class Terminal:
    """A person's end of a terminal, and the program's."""

    person: int
    keyboard: Watched
    eventually: Eventually
    _answered: int = 0

    async def type(self, *lines: str) -> None:
        """Each line once it is asked for."""
        for line in lines:
            await self._asked(self._answered + 1)
            self._answered = len(self.keyboard.prompts)
            os.write(self.person, line.encode() + b"\n")

    async def _asked(self, times: int) -> None:
        await self.eventually(lambda: len(self.keyboard.prompts) >= times)


@pytest.fixture
def terminal(eventually: Eventually) -> Iterator[Terminal]:
    """A terminal."""
    person, program = pty.openpty()
    yield Terminal(person, Watched(program), eventually)
    for fd in (person, program):
        os.close(fd)


class FakeHttp(GatewayHttp):
    """A run that waits, or does not."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {"status": "RUNNING", "waiting_for": None}
        self.answers: list[object] = []
        self.looks = 0
        self.refusals: list[CarrelError] = []

    async def run(self, run_id: str) -> dict[str, Any]:
        self.looks += 1
        return self.state

    async def provide_input(self, run_id: str, input_id: str, value: object) -> dict[str, Any]:
        self.answers.append(value)
        if self.refusals:
            raise self.refusals.pop(0)
        return {}

    def wait(self) -> None:
        asked = {"input_id": "input-1", "prompt": "Go on?", "schema": {"type": "boolean"}}
        self.state = {"status": "WAITING", "waiting_for": asked}


def event(kind: str = "input_required", attempt: int = 1) -> Event:
    return Event(1, "evt-1", kind, "alice", "thread-1", "run-1", "req-1", attempt=attempt, data={"input_id": "input-1"})


async def test_a_wrong_answer_is_asked_for_again(terminal: Terminal) -> None:
    show = Show()
    answer, _ = await asyncio.gather(ask(YES_NO, terminal.keyboard, show), terminal.type("perhaps", "yes"))
    assert answer is True
    assert len(show.said) == 1
    assert "yes | no" in show.said[0]


async def test_what_was_typed_before_the_question_answers_nothing(terminal: Terminal) -> None:
    os.write(terminal.person, b"yes\n")
    answer, _ = await asyncio.gather(ask(YES_NO, terminal.keyboard, Show()), terminal.type("no"))
    assert answer is False


async def test_the_end_of_input_is_nobody(terminal: Terminal) -> None:
    asking = asyncio.create_task(ask(YES_NO, terminal.keyboard, Show()))
    await terminal.eventually(lambda: terminal.keyboard.prompts)
    os.write(terminal.person, b"\x04")
    with pytest.raises(GoneError):
        await asking


async def test_a_form_is_asked_for_part_by_part(terminal: Terminal) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "note": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
    }
    show, question = Show(), Question("input-1", "?", schema)
    answer, _ = await asyncio.gather(ask(question, terminal.keyboard, show), terminal.type("Eve", "", "old", "7"))
    assert answer == {"name": "Eve", "age": 7}
    assert len(show.said) == 1
    assert terminal.keyboard.prompts[1] == "note [text; empty to leave it out]: "


async def test_a_run_s_question_is_asked_once_it_waits_and_answered(terminal: Terminal) -> None:
    http, show = FakeHttp(), Show()
    http.refusals = [InvalidInputError("not like that")]
    questions = RunQuestions(http, "run-1", terminal.keyboard, show, lambda question: None)
    questions.take(event())
    await terminal.eventually(lambda: http.looks == 2)
    assert not show.said, "the run does not wait yet"
    http.wait()
    await terminal.type("yes", "no")
    await terminal.eventually(lambda: http.answers == [True, False])
    assert show.said == ["Go on?", "that is no answer: not like that"]
    await questions.aclose()


@pytest.mark.parametrize("sign", [event("run_attempt", 0), event("agent_thinking", 2), event("run_completed", 0)])
async def test_a_question_that_was_answered_elsewhere_is_no_longer_asked(terminal: Terminal, sign: Event) -> None:
    http, show = FakeHttp(), Show()
    http.wait()
    questions = RunQuestions(http, "run-1", terminal.keyboard, show, lambda question: None)
    questions.take(event())
    await terminal.eventually(lambda: terminal.keyboard.prompts)
    # What comes late of the same attempt changes nothing.
    questions.take(event("tool_completed", 1))
    assert questions.asking
    questions.take(sign)
    await terminal.eventually(lambda: not questions.asking)
    assert not http.answers
    await questions.aclose()


async def test_an_answer_that_comes_too_late_says_so(terminal: Terminal) -> None:
    http, show = FakeHttp(), Show()
    http.wait()
    http.refusals = [NotWaitingError("no")]
    questions = RunQuestions(http, "run-1", terminal.keyboard, show, lambda question: None)
    questions.take(event())
    await terminal.type("yes")
    await terminal.eventually(lambda: show.said[-1] == "the question was answered elsewhere, or lapsed")
    await questions.aclose()


async def test_without_a_keyboard_the_question_is_left_to_somebody_else(eventually: Eventually) -> None:
    http, left = FakeHttp(), list[Question]()
    questions = RunQuestions(http, "run-1", None, Show(), left.append)
    questions.take(event())
    await eventually(lambda: http.looks == 2)
    assert not left, "whoever is told to answer must be able to"
    http.wait()
    await eventually(lambda: [question.input_id for question in left] == ["input-1"])
    await questions.aclose()
