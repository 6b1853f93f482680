"""Messages of a worker that are answered later: questions to its user, and calls of language models.

Tool calls are the dispatcher's, sub-agents ``subagents``'s. Everything here ends with the turn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import orjson

from carrel.agent_messages import Ask, CallModel, DownMessage, InputReply, ModelDelta, ModelReply, Refused
from carrel.errors import ModelUnavailableError, ProtocolError
from carrel.ids import extends
from services.agent_instance.domain.contexts import Scope
from services.agent_instance.domain.dispatcher import TurnTools
from services.agent_instance.domain.ports import ModelCalls
from services.agent_instance.domain.questions import Pending, StageQuestions, Work, check_question
from services.agent_instance.domain.subagents import SubAgents
from services.agent_instance.models import Question

__all__ = ["Asking", "ModelRoute", "Routes"]

Reply = Callable[[DownMessage], Awaitable[None]]
Key = tuple[int, int]
_NO_MODEL: Final = "this deployment has no language model"


class Asking:
    """The questions (``ctx.ask``) of one turn."""

    def __init__(self, turn: TurnTools, root_request_id: str) -> None:
        self._turn = turn
        self._root = root_request_id
        self._pending: dict[Key, Pending] = {}

    @property
    def _questions(self) -> StageQuestions:
        return self._turn.questions

    async def request(self, message: Ask, source: int, scope: Scope, reply: Reply) -> None:
        """Answer it at once, or have the attempt end for it.

        Raises:
            ProtocolError: The caller has an open question of that number.
            InvalidRequestError: It cannot be asked.
            LimitExceededError: Too many are asked at once.
        """
        key = (source, message.call_id)
        if key in self._pending:
            raise ProtocolError("a question with the number of another one that is open")
        schema = check_question(message.prompt, message.schema)
        input_id = self._questions.ask_id(self._turn.whose, self._path(scope))
        answer = self._questions.take(input_id)
        if answer is not None:
            self._turn.clock.touch()
            await reply(InputReply(message.call_id, orjson.loads(answer.value)))
            return
        question = Question(input_id, message.prompt, schema)
        self._pending[key] = self._questions.ask(question, scope.work, self._turn.clock.stopped())

    def give_up(self, key: Key) -> None:
        """Nobody waits for that answer any more."""
        pending = self._pending.pop(key, None)
        if pending is not None:
            self._questions.withdraw(pending)

    def close(self) -> None:
        """The turn is over."""
        for pending in self._pending.values():
            self._questions.withdraw(pending, settle=False)
        self._pending.clear()

    def _path(self, scope: Scope) -> str:
        request_id = scope.context.request_id
        below = request_id[len(self._root) :] if extends(request_id, self._root) else request_id
        return f"{below}/{scope.within}" if scope.within else below


@dataclass(frozen=True, slots=True, eq=False)
class _ModelCall:
    number: int
    work: Work


class ModelRoute:
    """One turn's model calls on their way to who makes them, each counted as work that a question waits for.

    Callers (the worker, bodies in the service) number their calls each for themselves; here all get numbers of their
    own.
    """

    def __init__(self, calls: ModelCalls | None, questions: StageQuestions) -> None:
        self._calls = calls
        self._questions = questions
        self._open: dict[Key, _ModelCall] = {}
        self._last = 0

    async def request(self, message: CallModel, source: int, scope: Scope, reply: Reply) -> None:
        """Pass it on.

        Raises:
            ProtocolError: The caller has an open call of that number.
            ModelUnavailableError: There is no model.
        """
        key = (source, message.call_id)
        if key in self._open:
            raise ProtocolError("a model call with the number of another one that is open")
        if self._calls is None:
            raise ModelUnavailableError(_NO_MODEL, advice="configure a model endpoint for agent_instance")
        self._last += 1
        call = self._open[key] = _ModelCall(self._last, self._questions.begin(scope.work))

        async def answer(down: DownMessage) -> None:
            if isinstance(down, ModelDelta | ModelReply | Refused):
                down = dataclasses.replace(down, call_id=message.call_id)
            over = not isinstance(down, ModelDelta)
            if over:
                self._open.pop(key, None)
            try:
                await reply(down)
            finally:
                if over:
                    self._questions.end(call.work)

        try:
            await self._calls.request(dataclasses.replace(message, call_id=call.number), scope, answer)
        except BaseException:
            self._open.pop(key, None)
            self._questions.end(call.work, settle=False)
            raise

    async def give_up(self, key: Key) -> None:
        """Nobody waits for that call any more."""
        call = self._open.pop(key, None)
        if call is not None and self._calls is not None:
            try:
                await self._calls.give_up(call.number)
            finally:
                self._questions.end(call.work)

    async def aclose(self) -> None:
        """End every call."""
        for call in self._open.values():
            self._questions.end(call.work, settle=False)
        self._open.clear()
        if self._calls is not None:
            await self._calls.aclose()


@dataclass(frozen=True, slots=True, eq=False)
class Routes:
    """Where a turn's calls that are answered later go, tool calls aside."""

    agents: SubAgents
    asking: Asking
    models: ModelRoute

    async def give_up(self, key: Key) -> None:
        """Nobody waits for that call any more, whichever it is."""
        self.agents.give_up(key)
        self.asking.give_up(key)
        await self.models.give_up(key)
