"""``StageQuestions``: what a stage asks its user, the answers it was started with, and when it has to stop for one.

An unanswered question ends the attempt, but not at once: what else is under way (tools, model calls, sub-agents) is
let end first and journaled, so that the next attempt need not do it again. What the question is asked from cannot end
before the answer: it runs again up to the question, which is then answered.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from carrel.errors import ApprovalDeniedError, InvalidRequestError, LimitExceededError
from carrel.tools import Tool
from services.agent_instance.models import ProvidedInput, Question

__all__ = ["APPROVAL_SCHEMA", "Pending", "StageQuestions", "Work", "approval_question", "check_question", "denial"]

# With the schema within the 32 KiB of `input_required`, which carries both.
MAX_PROMPT_BYTES: Final = 8 * 1024
MAX_SCHEMA_BYTES: Final = 16 * 1024
MAX_PENDING: Final = 100
_SHOWN_BYTES: Final = 8 * 1024
_SHOWN_CHARS: Final = 512
_MOMENT_S: Final = 0.05

APPROVAL_SCHEMA: Final[Mapping[str, Any]] = {
    "anyOf": [
        {"type": "boolean"},
        {
            "type": "object",
            "properties": {"approved": {"type": "boolean"}, "reason": {"type": "string", "maxLength": 2048}},
            "required": ["approved"],
            "additionalProperties": False,
        },
    ]
}


@dataclass(slots=True, eq=False)
class Work:
    """Something under way in a stage: a tool's body, a model call, a sub-agent. ``within``: what it is a part of.

    ``hold`` is called with True while it waits for a question of its own, and with False when it does no more.
    """

    within: Work | None = None
    hold: Callable[[bool], None] | None = field(default=None, repr=False)
    held: int = 0

    def chain(self) -> Iterator[Work]:
        """It, and what it is a part of, up to the agent."""
        work: Work | None = self
        while work is not None:
            yield work
            work = work.within


@dataclass(slots=True, eq=False)
class Pending:
    """A question that has no answer in this attempt."""

    question: Question
    within: Work | None
    stopped: AbstractContextManager[None] = field(repr=False)


class StageQuestions:
    """The questions of one attempt, of all its agents. ``settled`` resolves with the one that the attempt ends for.

    Args:
        inputs: The answers that earlier questions of the stage have got.
        heard: Told the id of each question whose answer is taken.
    """

    def __init__(self, stage_index: int, inputs: Sequence[ProvidedInput], heard: Callable[[str], None]) -> None:
        self._stage_index = stage_index
        self._inputs = {item.input_id: item for item in inputs}
        self._heard = heard
        self._counts: Counter[str] = Counter()
        self._open: set[Work] = set()
        self._pending: list[Pending] = []
        self._timer: asyncio.TimerHandle | None = None
        self.settled: asyncio.Future[Question] = asyncio.get_running_loop().create_future()

    def ask_id(self, whose: str, path: str) -> str:
        """The id of the next question asked at ``path``, the same in each attempt.

        Args:
            whose: "" for the stage's agent, a short word for one that answers in its place.
            path: Where below the agent it is asked: a child's name, a tool call's id; "" for the agent itself.
        """
        place = f"{self._stage_index}-{whose and whose + '-'}"
        if path:
            place += hashlib.sha256(path.encode()).hexdigest()[:10] + "-"
        self._counts[place] += 1
        return f"ask-{place}{self._counts[place]}"

    def approval_id(self, whose: str, tool_call_id: str, arguments_hash: str) -> str:
        """The id under which a call's approval is asked for; never that of an answer for other arguments."""
        input_id = f"approve-{whose and whose + '-'}{tool_call_id}-{arguments_hash[:8]}"
        while (answer := self._inputs.get(input_id)) is not None and answer.arguments_hash != arguments_hash:
            input_id += "x"
        return input_id

    def is_of(self, whose: str, input_id: str) -> bool:
        """Whether the id is one of those that ``whose`` asks under."""
        return input_id.startswith((f"approve-{whose}-", f"ask-{self._stage_index}-{whose}-"))

    def take(self, input_id: str, arguments_hash: str = "") -> ProvidedInput | None:
        """The answer to this question, if there is one; an approval's is for these arguments only."""
        answer = self._inputs.get(input_id)
        if answer is None or answer.arguments_hash != arguments_hash:
            return None
        self._heard(input_id)
        return answer

    def begin(self, within: Work | None, hold: Callable[[bool], None] | None = None) -> Work:
        """Something begins, as a part of something else or of the agent itself."""
        work = Work(within, hold)
        self._open.add(work)
        self._settle()
        return work

    def end(self, work: Work, *, settle: bool = True) -> None:
        """It has ended, and been journaled where it is. Idempotent. Without ``settle``, others end with it."""
        self._open.discard(work)
        if settle:
            self._settle()

    def restart(self) -> None:
        """Another agent begins in the place of the one that has ended: nothing is asked and nothing is under way."""
        self._open.clear()
        self._pending.clear()
        self._settle()
        self.settled = asyncio.get_running_loop().create_future()

    def ask(self, question: Question, within: Work | None, stopped: AbstractContextManager[None]) -> Pending:
        """There is no answer: the attempt ends for the question when nothing else is under way.

        Args:
            within: What asks.
            stopped: Entered until the question is withdrawn; the asking agent's clock stands still meanwhile.

        Raises:
            LimitExceededError: Too many are asked at once.
        """
        if len(self._pending) >= MAX_PENDING:
            raise LimitExceededError(
                f"{MAX_PENDING} questions wait for the user",
                advice="ask for several things in one question, whose schema is an object",
                limit="open_questions",
                limit_value=MAX_PENDING,
                use=len(self._pending),
            )
        pending = Pending(question, within, stopped)
        self._pending.append(pending)
        stopped.__enter__()
        self._hold(within, 1)
        self._settle()
        return pending

    def withdraw(self, pending: Pending, *, settle: bool = True) -> None:
        """Nobody waits for the answer any more. Idempotent. Without ``settle``, others are withdrawn with it."""
        if pending in self._pending:
            self._pending.remove(pending)
            pending.stopped.__exit__(None, None, None)
            self._hold(pending.within, -1)
            if settle:
                self._settle()

    def _hold(self, within: Work | None, change: int) -> None:
        for work in within.chain() if within is not None else ():
            work.held += change
            if work.hold is not None and work.held == (change > 0):
                work.hold(change > 0)

    @property
    def _waits_only(self) -> bool:
        return bool(self._pending) and not self.settled.done() and all(work.held for work in self._open)

    def _settle(self) -> None:
        """End the attempt, unless the agent begins something else within a moment: what it asks for beside the question
        is on its way then, and done before the wait rather than after it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waits_only:
            self._timer = asyncio.get_running_loop().call_later(_MOMENT_S, self._settled)

    def _settled(self) -> None:
        if self._waits_only:
            self.settled.set_result(self._pending[0].question)


def check_question(prompt: str, schema: Mapping[str, Any]) -> bytes:
    """The schema as JSON, when the question can be asked.

    Raises:
        InvalidRequestError: The prompt is empty, or one of them is too large.
    """
    encoded = orjson.dumps(dict(schema))
    problem = ""
    if not prompt.strip():
        problem = "needs a prompt that a person can read"
    elif len(prompt.encode("utf-8", "replace")) > MAX_PROMPT_BYTES:
        problem = f"has a prompt over {MAX_PROMPT_BYTES} bytes; store long text as an artifact and refer to it"
    elif len(encoded) > MAX_SCHEMA_BYTES:
        problem = f"has a schema over {MAX_SCHEMA_BYTES} bytes"
    if problem:
        raise InvalidRequestError(f"a question {problem}", fields={"question": problem})
    return encoded


def approval_question(input_id: str, tool: Tool, arguments: Mapping[str, Any], arguments_hash: str) -> Question:
    """What the user is asked before a tool with ``approval="user"`` runs."""
    about = f": {tool.description}" if tool.description else ""
    return Question(
        input_id=input_id,
        prompt=f"Allow {tool.name}{about}"[:_SHOWN_CHARS],
        schema=orjson.dumps(APPROVAL_SCHEMA),
        arguments_hash=arguments_hash,
        tool_name=tool.name,
        arguments=_shown(arguments),
    )


def denial(tool: Tool, answer: ProvidedInput) -> ApprovalDeniedError | None:
    """The error of a call that its user did not allow; None for one that is allowed."""
    value = orjson.loads(answer.value)
    approved = value.get("approved") if isinstance(value, dict) else value
    if approved is True:
        return None
    reason = value.get("reason") if isinstance(value, dict) else None
    why = f": {reason}" if isinstance(reason, str) and reason else ""
    return ApprovalDeniedError(f"the user did not allow {tool.name}{why}", tool_name=tool.name)


def _shown(arguments: Mapping[str, Any]) -> bytes:
    """The arguments for a reader, the large ones shortened to their beginning."""
    encoded = orjson.dumps(dict(arguments))
    if len(encoded) <= _SHOWN_BYTES:
        return encoded
    short: dict[str, Any] = {}
    room = _SHOWN_BYTES - 64
    for name, value in arguments.items():
        begins = _beginning(value)
        room -= len(orjson.dumps({name: begins}))
        if room < 0:
            short["…"] = "further arguments are left out here"
            break
        short[name] = begins
    return orjson.dumps(short)


def _beginning(value: Any) -> Any:
    encoded = orjson.dumps(value)
    if len(encoded) <= _SHOWN_CHARS:
        return value
    return (value if isinstance(value, str) else encoded.decode())[:_SHOWN_CHARS] + "…"
