"""``carrel answer`` and ``carrel cancel``: what is done to a run from another terminal, or by a program."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from carrel.cli.answering import GoneError, ask
from carrel.cli.keyboard import find_keyboard
from carrel.cli.output import EXIT_OK, EXIT_WAITING
from carrel.cli.questions import parse_answer, question_text
from carrel.cli.run import how_to_answer
from carrel.cli.show import Show
from carrel.cli.target import Target
from carrel.client.http import GatewayHttp
from carrel.client.models import Question
from carrel.errors import InvalidInputError, NotWaitingError

__all__ = ["answer_run", "cancel_run"]


async def answer_run(target: Target, run_id: str, words: Sequence[str], *, as_json: bool) -> int:
    """Answer the question of a run that waits; the exit code.

    Args:
        target: The gateway and the user.
        run_id: The run.
        words: The answer, or the question's id and the answer. None at all to be asked at the terminal.
        as_json: JSON is what is wanted.

    Raises:
        NotWaitingError: The run does not wait.
        InvalidInputError: The answer does not fit.
        CarrelError: There is no such run, or the gateway cannot be reached.
    """
    async with GatewayHttp(target.url, target.token) as http:
        run = await http.run(run_id)
        asked = run.get("waiting_for")
        question = Question.from_json(asked) if isinstance(asked, Mapping) else None
        input_id = words[0] if len(words) > 1 else ""
        if input_id and (question is None or question.input_id != input_id):
            # Not open, or not any more: for execution to judge, since the same answer twice is no error.
            question = Question(input_id)
        if question is None:
            raise NotWaitingError(
                f"the run is {run.get('status')} and waits for no answer",
                advice="`carrel watch --run` shows what it does",
            )
        value = _value(words[-1], question) if words else await _at_the_terminal(target, run_id, question, as_json)
        if value is _NOTHING:
            return EXIT_WAITING
        _tell(await http.provide_input(run_id, question.input_id, value), "answered", as_json=as_json)
    return EXIT_OK


async def cancel_run(target: Target, run_id: str, reason: str, *, as_json: bool) -> int:
    """Ask for a run's end; the exit code.

    Raises:
        CarrelError: There is no such run, or the gateway cannot be reached.
    """
    async with GatewayHttp(target.url, target.token) as http:
        _tell(await http.cancel(run_id, reason or "cancelled from the command line"), "cancel", as_json=as_json)
    return EXIT_OK


# Nobody was there to answer.
_NOTHING: Final = object()


async def _at_the_terminal(target: Target, run_id: str, question: Question, as_json: bool) -> Any:
    show = Show(as_json=as_json)
    keyboard = None if as_json else find_keyboard()
    if keyboard is not None:
        show.text(question_text(question))
        try:
            return await ask(question, keyboard, show)
        except GoneError:
            pass
    how_to_answer(target, run_id, question, show)
    return _NOTHING


def _value(text: str, question: Question) -> Any:
    try:
        return parse_answer(text, question)
    except ValueError as error:
        raise InvalidInputError(f"that is no answer: {error}", advice="answer as the question's schema says") from None


def _tell(run: Mapping[str, Any], act: str, *, as_json: bool) -> None:
    printer = Show(as_json=as_json).printer
    if as_json:
        printer.say(json.dumps(run, ensure_ascii=False, separators=(",", ":")))
    else:
        printer.say(f"{act}: run {run.get('run_id')} is {run.get('status')}")
