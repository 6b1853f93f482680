"""Questions of a run that is followed in a terminal: asked there, checked, answered; or told how to answer elsewhere.

``ask`` asks one question at a keyboard. ``RunQuestions`` is beside a run's events for as long as they are followed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from carrel.cli.keyboard import Keyboard
from carrel.cli.questions import parse_answer, parse_part, parts_of, problem_of, question_text, what_to_type
from carrel.cli.render import clean
from carrel.client.http import GatewayHttp
from carrel.client.models import Event, Question
from carrel.errors import CarrelError, InvalidInputError, NotWaitingError

__all__ = ["GoneError", "RunQuestions", "ask"]

_FIRST_LOOK_S: Final = 0.05
_LONGEST_LOOK_S: Final = 1.0


class GoneError(Exception):
    """Nobody is at the keyboard any more."""


class Shows(Protocol):
    """Prints for a person."""

    def text(self, text: str) -> None: ...


async def ask(question: Question, keyboard: Keyboard, show: Shows) -> Any:
    """The answer of the person at the keyboard, which fits the question's schema.

    Raises:
        GoneError: There is nobody.
    """
    keyboard.forget()
    while True:
        try:
            parts = [] if question.approval else parts_of(question.schema)
            if not parts:
                hint = "yes | no" if question.approval else what_to_type(question.schema, question.schema)
                return parse_answer(await _line(keyboard, f"answer [{hint}]: "), question)
            value = await _object(question, keyboard, show)
            if problem := problem_of(value, question.schema):
                raise ValueError(problem)
            return value
        except ValueError as error:
            show.text(f"that is no answer: {error}")


async def _object(question: Question, keyboard: Keyboard, show: Shows) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for part in parts_of(question.schema):
        hint = what_to_type(part.schema, question.schema) + ("" if part.required else "; empty to leave it out")
        while True:
            text = await _line(keyboard, f"{clean(part.name)} [{hint}]: ")
            if not text.strip() and not part.required:
                break
            try:
                value[part.name] = parse_part(text, part.schema, question.schema)
                break
            except ValueError as error:
                show.text(f"that is no {clean(part.name)}: {error}")
    return value


async def _line(keyboard: Keyboard, prompt: str) -> str:
    line = await keyboard.line(prompt)
    if line is None:
        raise GoneError
    return line


class RunQuestions:
    """Args:
    http: The user's calls.
    run_id: The run that is followed.
    keyboard: Where to ask; None when there is nobody.
    show: Where to say what happens.
    leave: Told the question that nobody here answers.
    """

    def __init__(
        self,
        http: GatewayHttp,
        run_id: str,
        keyboard: Keyboard | None,
        show: Shows,
        leave: Callable[[Question], None],
    ) -> None:
        self._http = http
        self._run_id = run_id
        self._keyboard = keyboard
        self._show = show
        self._asking: asyncio.Task[None] | None = None
        self._attempt = 0
        self._leave = leave

    @property
    def asking(self) -> bool:
        """Whether a question is open here."""
        return self._asking is not None and not self._asking.done()

    def take(self, event: Event) -> None:
        """An event of the run: a question, or a sign that the one before is no longer open."""
        if event.event_type == "input_required":
            self._stop()
            self._attempt = event.attempt
            input_id = str(event.data.get("input_id", ""))
            self._asking = asyncio.create_task(self._answer(input_id), name=f"answer {input_id}")
        elif event.attempt > self._attempt or event.event_type in {"run_attempt", "run_completed"}:
            # Only the next attempt, or the end, comes after a question: it was answered elsewhere, or lapsed.
            self._stop()

    async def aclose(self) -> None:
        """Ask nothing more. Idempotent."""
        self._stop()
        if self._asking is not None:
            await asyncio.gather(self._asking, return_exceptions=True)

    def _stop(self) -> None:
        if self._asking is not None:
            self._asking.cancel()

    async def _answer(self, input_id: str) -> None:
        try:
            question = await self._once_it_waits(input_id)
            if question is not None:
                await self._asked(question)
        except CarrelError as error:
            self._show.text(f"the question cannot be answered here: {error}")

    async def _asked(self, question: Question) -> None:
        if self._keyboard is None:
            self._leave(question)
            return
        self._show.text(question_text(question))
        while True:
            try:
                value = await ask(question, self._keyboard, self._show)
                await self._http.provide_input(self._run_id, question.input_id, value)
                return
            except InvalidInputError as error:
                self._show.text(f"that is no answer: {error.message}")
            except NotWaitingError:
                self._show.text("the question was answered elsewhere, or lapsed")
                return
            except GoneError:
                self._leave(question)
                return

    async def _once_it_waits(self, input_id: str) -> Question | None:
        """The event comes before the run waits: what else is under way ends first. None: it never will."""
        wait_s = _FIRST_LOOK_S
        while True:
            run = await self._http.run(self._run_id)
            asked = run.get("waiting_for")
            if isinstance(asked, Mapping):
                question = Question.from_json(asked)
                return question if question.input_id == input_id else None
            if run.get("status") not in {"QUEUED", "RUNNING", "WAITING"}:
                return None
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_LOOK_S)
