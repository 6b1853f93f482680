"""``ModelDesk`` and ``TurnModels``: an agent's calls of language models, from the worker's message to its answer.

Each call is checked against the user's tokens, waits for its turn among the user's calls, is counted, audited and
journaled; its text becomes events as it comes. A repeated attempt gets the same answer from the journal, unpaid, and
says it again under the same message id. The wire to the endpoint is ``client_model``'s.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

import orjson

from carrel.agent_messages import CallModel, DownMessage, ModelDelta, ModelReply, Refused
from carrel.context import UserExecutionContext
from carrel.errors import (
    CancelledRunError,
    CarrelError,
    InternalError,
    LimitExceededError,
    ModelBudgetError,
    ModelBusyError,
    ModelRefusedError,
    ModelUnavailableError,
)
from carrel.speech import Speech, split_text
from servicekit.logs import get_logger
from servicekit.tasks import TaskOwner
from servicekit.telemetry.gen_ai import model_call, token_usage
from servicekit.telemetry.tracing import Kind, Span, carried
from services.agent_instance.domain.calls import hash_arguments, permits
from services.agent_instance.domain.contexts import Scope
from services.agent_instance.domain.dispatcher import TurnTools
from services.agent_instance.domain.model_answer import ChatAnswer, SseReader, Usage
from services.agent_instance.domain.model_budget import StageBudget, UserGates
from services.agent_instance.domain.model_endpoint import ModelEndpoint, ModelPolicy
from services.agent_instance.domain.model_request import bounded, chat_request, estimate_tokens, limit_output
from services.agent_instance.domain.receipts import durable
from services.agent_instance.domain.statistics import ModelStatistics
from services.agent_instance.models import AuditEntry, AuditOutcome, BudgetUse, Caller, JournalItem

__all__ = ["MODEL_VARIABLE", "Meter", "ModelDesk", "ModelDoor", "TurnModels"]

_log: Final = get_logger("agent_instance.models")
MODEL_VARIABLE: Final = "CARREL_MODEL"
_MAX_OPEN: Final = 100
# Refusals of the key, not of the request.
_OPERATORS: Final = frozenset({401, 403})
_PARTING_S: Final = 0.25
_LAST_WORDS_S: Final = 1.0
_KINDS: Final = {"message": "agent_message", "thinking": "agent_thinking"}

Reply = Callable[[DownMessage], Awaitable[None]]


class ModelDoor(Protocol):
    """A local way to the models for code that speaks HTTP (``proxy``)."""

    def admit(self, turn: TurnModels) -> Mapping[str, str]:
        """Let this turn in; the variables by which its code finds the door. The same each time it is asked."""
        ...

    async def dismiss(self, turn: TurnModels) -> None:
        """Let it in no more, and end what it has under way."""


@dataclass(slots=True)
class Meter:
    """What a call under way has used so far. ``sent``: the endpoint has taken it, so that it counts.
    ``error``: how the call ended, when the block does not raise it; ``said_error``: the answer itself tells one, and
    ``said_end``: that it is whole."""

    input_bytes: int = 0
    output_bytes: int = 0
    sent: bool = False
    usage: Usage | None = None
    error: CarrelError | None = None
    said_error: bool = False
    said_end: bool = False

    def total(self) -> Usage:
        """What the endpoint has counted, or an estimate."""
        return self.usage or Usage(estimate_tokens(self.input_bytes), estimate_tokens(self.output_bytes), True)


class ModelDesk:
    """The process's access to models: what every turn's calls share.

    Args:
        door: The local proxy, when there is one.
    """

    available: Final = True

    def __init__(self, endpoint: ModelEndpoint, policy: ModelPolicy, *, door: ModelDoor | None = None) -> None:
        self.endpoint = endpoint
        self.policy = policy
        self.door = door
        self.statistics = ModelStatistics()
        self.gates = UserGates(
            policy.concurrency_per_user, max_waiting=policy.max_waiting_per_user, wait_s=policy.wait_s
        )

    def for_turn(self, turn: TurnTools, caller: Callable[[], Caller], budget: StageBudget) -> TurnModels:
        """The calls of one turn of an agent.

        Args:
            caller: Gives the newest verified one.
            budget: The stage's, shared by its turns.
        """
        return TurnModels(self, turn, caller, budget)


class TurnModels:
    """The model calls of one turn. ``aclose`` ends them, and the turn's way in through the local proxy."""

    def __init__(self, desk: ModelDesk, turn: TurnTools, caller: Callable[[], Caller], budget: StageBudget) -> None:
        self.desk = desk
        self.budget = budget
        self.caller = caller
        self._turn = self.host = turn
        self._tasks = TaskOwner(_task_failed)
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._metered = 0

    def environment(self) -> dict[str, str]:
        """Variables for the turn's worker: the default model's name, and the local proxy with a key of the turn's."""
        found = {MODEL_VARIABLE: self.desk.policy.default}
        return found if self.desk.door is None else {**found, **self.desk.door.admit(self)}

    async def request(self, message: CallModel, scope: Scope, reply: Reply) -> None:
        """A worker asks a model; it is answered by ``reply``, later."""
        if len(self._calls) >= _MAX_OPEN:
            error = LimitExceededError(
                f"{_MAX_OPEN} model calls of the agent are open",
                advice="wait for some of them before calling more",
                limit="open_model_calls",
                limit_value=_MAX_OPEN,
                use=len(self._calls),
            )
            await reply(Refused(message.call_id, error.to_dict()))
            return
        task = self._tasks.start(self._serve(message, scope, reply), "call of a model")
        self._calls[message.call_id] = task
        task.add_done_callback(lambda _: self._calls.pop(message.call_id, None))

    async def give_up(self, call_id: int) -> None:
        """Nobody waits for this call any more: the request to the endpoint is aborted."""
        task = self._calls.get(call_id)
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def aclose(self) -> None:
        """End every call. Idempotent."""
        if self.desk.door is not None:
            await self.desk.door.dismiss(self)
        await self._tasks.aclose()

    @asynccontextmanager
    async def metered(self, model: str, arguments_hash: str, context: UserExecutionContext) -> AsyncIterator[Meter]:
        """A call of this model, made within the block: waits for its turn, and is counted and audited at its end.

        Raises:
            ModelBudgetError: No tokens are left.
            ModelBusyError: Too many calls of the user's wait.
            ModelUnavailableError: The call took too long.
        """
        policy, clock = self.desk.policy, self._turn.clock
        self._metered += 1
        key = f"model call {self._metered}"
        clock.tool_began(key, policy.wait_s + policy.timeout_s)
        meter, began, began_unix = Meter(), time.monotonic(), time.time()
        error: CarrelError | None = None
        name, attributes = model_call(model, self._turn.agent_name)
        span = self._turn.tracing.span(name, attributes, kind=Kind.CLIENT, parent=self._turn.traceparent)
        try:
            self.budget.require()
            async with self.desk.gates.turn(self.caller().user_id, self.budget.concurrency):
                self.budget.require()  # others of the user's calls ended meanwhile
                try:
                    # As the current one it can go with the request, where the operator wants that.
                    with carried(span.traceparent):
                        async with asyncio.timeout(policy.timeout_s):
                            yield meter
                except TimeoutError:
                    raise ModelUnavailableError(
                        f"the model took longer than {policy.timeout_s:g} s", limit_s=policy.timeout_s, model=model
                    ) from None
            error = meter.error
        except CarrelError as raised:
            error = raised
            raise
        except asyncio.CancelledError:
            error = CancelledRunError("nobody waits for the model's answer any more")
            raise
        finally:
            clock.tool_ended(key)
            _end(span, meter, error)
            record = self.record(model, arguments_hash, context, error, began_unix, time.monotonic() - began)
            self.desk.statistics.call_ended(model, record.outcome.value, record.duration_s)
            await self._tell(meter, model, record, hurry=isinstance(error, CancelledRunError))

    def record(
        self,
        model: str,
        arguments_hash: str,
        context: UserExecutionContext,
        error: CarrelError | None,
        began_unix: float,
        seconds: float,
    ) -> AuditEntry:
        """The audit record of a call."""
        denied = isinstance(error, ModelBudgetError | ModelBusyError)
        return AuditEntry(
            context=context,
            agent_name=self._turn.agent_name,
            action="model.call",
            target=model,
            outcome=AuditOutcome.SUCCEEDED if error is None else AuditOutcome.DENIED if denied else AuditOutcome.FAILED,
            error_code="" if error is None else error.code,
            started_at=began_unix,
            duration_s=seconds,
            arguments_hash=arguments_hash,
        )

    async def _tell(self, meter: Meter, model: str, record: AuditEntry, *, hurry: bool) -> None:
        async def tell() -> None:
            if meter.sent:
                usage = meter.total()
                self.budget.spend(usage.total)
                self.desk.statistics.used(model, usage.input_tokens, usage.output_tokens)
                await self._turn.uplink.budget_use(BudgetUse(model, usage.input_tokens, usage.output_tokens))
            await self._turn.uplink.audit(record)

        with self._turn.clock.stopped():
            if not hurry:
                await tell()
                return
            # The attempt may be dying, and the stream up with it: what cannot be told soon is not told.
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS_S):
                    await tell()

    async def _serve(self, message: CallModel, scope: Scope, reply: Reply) -> None:
        try:
            answer = await self._answer(message, scope, reply)
        except CarrelError as error:
            await reply(Refused(message.call_id, error.to_dict()))
        except Exception as fault:  # noqa: BLE001  (a fault of ours must not leave the agent waiting)
            _log.error("call of a model failed", error=fault)
            ours = InternalError("the host failed at a call of a model")
            await reply(Refused(message.call_id, ours.to_dict()))
        else:
            await reply(ModelReply(message.call_id, answer))

    async def _answer(self, message: CallModel, scope: Scope, reply: Reply) -> Mapping[str, Any]:
        turn, request = self._turn, message.request
        digest = hash_arguments(request)
        if message.speak and message.speak not in _KINDS:
            raise ModelRefusedError("speak must be 'message', 'thinking' or None", fields={"speak": "is unknown"})
        model, body = await self._checked(request, scope, digest)
        journal_id, earlier = turn.ledger.recall("model", model, digest, within=scope.within)
        voice = _Voice(turn, message, scope, journal_id, reply)
        if earlier is not None:
            return await self._again(earlier, voice)
        answer, refusal = await self._metered_answer(body, model, digest, voice)
        result = b"" if refusal is not None else orjson.dumps(answer)
        with turn.clock.stopped():
            entry = turn.ledger.entry(journal_id, "model", model, digest, result, refusal)
            await durable(await turn.uplink.journal(entry))
        if refusal is not None:
            raise refusal
        return answer

    async def _metered_answer(
        self, body: dict[str, Any], model: str, digest: str, voice: _Voice
    ) -> tuple[Mapping[str, Any], ModelRefusedError | None]:
        """The answer, or the endpoint's refusal, which is final as well."""
        async with self.metered(model, digest, voice.context) as meter:
            limit_output(body, self.desk.policy, self.budget.left)
            try:
                return await self._ask(body, model, voice, meter), None
            except ModelRefusedError as error:
                if error.details.get("endpoint_status") in _OPERATORS:
                    raise  # once it is put right, the same call may succeed
                meter.error = error
                return {}, error

    async def _checked(self, request: Mapping[str, Any], scope: Scope, digest: str) -> tuple[str, dict[str, Any]]:
        permissions = self._turn.permissions()
        try:
            body = chat_request(
                request, self.desk.policy, scope.tools, lambda tool: permits(permissions, tool.permission)
            )
        except ModelRefusedError as error:
            wanted = request.get("model")
            model = wanted[:128] if isinstance(wanted, str) else self.desk.policy.default
            await self._turn.uplink.audit(self.record(model, digest, scope.context, error, time.time(), 0.0))
            raise
        return str(body["model"]), body

    async def _ask(self, body: Mapping[str, Any], model: str, voice: _Voice, meter: Meter) -> Mapping[str, Any]:
        policy = self.desk.policy
        meter.input_bytes = bounded(body, policy)
        answer, reader = ChatAnswer(model, policy.max_answer_bytes), SseReader()
        async with self.desk.endpoint.open("chat/completions", body) as stream, voice.speech() as speech:
            meter.sent = True
            chunks = stream.chunks()
            async for chunk in chunks:
                for event in reader.feed(chunk):
                    if piece := answer.add(event):
                        await voice.heard(piece, speech)
                meter.output_bytes, meter.usage = answer.size, answer.usage
                if reader.done:
                    await _drain(chunks)
                    break
        return answer.whole(meter.total())

    async def _again(self, earlier: JournalItem, voice: _Voice) -> Mapping[str, Any]:
        if earlier.error is not None:
            raise earlier.error
        answer = orjson.loads(earlier.result)
        text = answer["message"].get("content") or ""
        async with voice.speech() as speech:
            for part in split_text(text):
                await voice.heard(part, speech)
        return {**answer, "replayed": True}


class _Voice:
    """Says one call's text as events of its context, and passes it on to the worker when that listens."""

    def __init__(self, turn: TurnTools, message: CallModel, scope: Scope, journal_id: str, reply: Reply) -> None:
        self._turn = turn
        self._message = message
        self._scope = scope
        self._reply = reply
        # The same in each attempt, so that an answer that is told again goes on under its name.
        whose = f"{turn.ledger.stage_index}|{turn.agent_name}|{scope.context.request_id}|{journal_id}"
        self._message_id = "msg_" + hashlib.sha256(whose.encode()).hexdigest()[:20]
        self._said = 0

    def speech(self) -> Speech:
        """What joins pieces into events."""
        return Speech(self._say)

    @property
    def context(self) -> UserExecutionContext:
        """The context that the call was made in."""
        return self._scope.context

    async def heard(self, piece: str, speech: Speech) -> None:
        """A piece has come."""
        if self._message.speak:
            await speech.add(piece)
        if self._message.deltas:
            await self._reply(ModelDelta(self._message.call_id, piece))

    async def _say(self, text: str) -> None:
        turn, kind = self._turn, _KINDS[self._message.speak]
        self._said += 1
        data: dict[str, Any] = {"message_id": self._message_id}
        if kind == "agent_thinking":
            data |= {"text": text, "delta": True}
        elif self._said == 1 and turn.events.attempt > 1:
            # What an earlier attempt has said under this name is replaced, not continued in its middle.
            data["text"] = text
        else:
            data["delta"] = text
        with turn.clock.stopped():
            await turn.events.emit(kind, data, turn.agent_name, self._scope.context)
        turn.clock.spoke()


def _end(span: Span, meter: Meter, error: CarrelError | None) -> None:
    if meter.sent and span.recording:
        usage = meter.total()
        span.set(token_usage(usage.input_tokens, usage.output_tokens))
    if error is not None:
        span.fail(error.code)
    span.end()


async def _drain(chunks: AsyncIterator[bytes]) -> None:
    """Read what still comes at once after the last event, so that the connection can be used again."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_PARTING_S):
            async for _ in chunks:
                pass


def _task_failed(name: str, error: BaseException) -> None:
    _log.error("a model call's answer could not be passed on", task=name, error=error)
