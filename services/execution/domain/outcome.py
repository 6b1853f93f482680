"""The events of a run's own, and the assistant's message: what the outside gets to read about a run's way and end."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from carrel.errors import CancelledRunError, CarrelError
from carrel.events import EVENTS, TERMINAL
from carrel.ids import new_id
from services.execution.domain.states import check_outcome
from services.execution.models import InputRecord, Micros, OutboxEvent, RunRecord, RunState, StageRecord, ThreadStrategy
from services.execution.models_steps import Again, Finish

__all__ = [
    "MAX_REPLY_BYTES",
    "accepted_event",
    "attempt_event",
    "fits",
    "last_events",
    "question_event",
    "reply_text",
    "superseded",
    "trim_error",
]

MAX_REPLY_BYTES: Final = 65_536
# What `{"status": "SUCCEEDED", "result": … }` needs around the result.
_WRAPPING: Final = 512
_MAX_ERROR_TEXT: Final = 2_000
_MAX_DETAILS_BYTES: Final = 8_000


def accepted_event(run: RunRecord) -> OutboxEvent:
    """The first event of every run, written at admission."""
    data: dict[str, Any] = {
        "run_id": run.identity.run_id,
        "thread_id": run.identity.thread_id,
        "client_ref": run.client_ref,
        "agent_name": run.agent_name,
        "stages": [stage.agent_name for stage in run.stages],
    }
    if run.state is RunState.QUEUED:
        data["status"] = run.state.value
    return OutboxEvent(1, new_id("evt"), "run_accepted", data, run.created_at)


def attempt_event(number: int, stage: StageRecord, why: Again, now: Micros) -> OutboxEvent:
    """Says that a stage is tried again: which, for the which time, and why."""
    data = {"attempt": stage.attempt, "agent_name": stage.agent_name, "stage": stage.index, "reason": why.value}
    return OutboxEvent(number, new_id("evt"), "run_attempt", data, now, stage.agent_name)


def question_event(number: int, asked: InputRecord, agent_name: str) -> OutboxEvent:
    """Asks the person. What is too large for an event is left out of it, and stays readable with the run."""
    expires = datetime.fromtimestamp(asked.expires_at / 1_000_000, tz=UTC)
    data: dict[str, Any] = {
        "input_id": asked.input_id,
        "expires_at": expires.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
    if asked.tool_name:
        data["tool_name"] = asked.tool_name
    room = EVENTS["input_required"].max_bytes - _WRAPPING
    further = {
        "prompt": asked.prompt,
        "schema": orjson.loads(asked.schema) if asked.schema else None,
        "arguments": orjson.loads(asked.arguments) if asked.arguments else None,
    }
    for name, value in further.items():
        size = len(orjson.dumps(value))
        if value is not None and size <= room:
            data[name] = value
            room -= size
    return OutboxEvent(number, new_id("evt"), "input_required", data, asked.asked_at, agent_name)


def last_events(first: int, finish: Finish, running: StageRecord | None, now: Micros) -> tuple[OutboxEvent, ...]:
    """What execution writes at a run's end: ``agent_error`` for a stage that it ended itself, then the terminal event.

    ``first`` is the number of the first of them, ``running`` the stage that ran until now.
    """
    error = trim_error(finish.error) if finish.error is not None else None
    data: dict[str, Any] = {"status": check_outcome(finish.outcome).value}
    if finish.outcome is RunState.SUCCEEDED:
        if finish.reference is not None:
            data["artifact"] = dict(finish.reference)
        elif finish.result is not None:
            data["result"] = orjson.loads(finish.result)
    if error is not None:
        data["error"] = error
    if not (finish.interrupts and running is not None and error is not None):
        return (OutboxEvent(first, new_id("evt"), TERMINAL, data, now),)
    name = running.agent_name
    return (
        OutboxEvent(first, new_id("evt"), "agent_error", {**error, "agent_name": name}, now, name),
        OutboxEvent(first + 1, new_id("evt"), TERMINAL, data, now),
    )


def superseded(strategy: ThreadStrategy) -> Finish:
    """The end of a run whose thread got a newer message under ``interrupt`` or ``rollback``."""
    error = CancelledRunError(
        f"a newer message of the thread ended the run (strategy {strategy.value!r})", strategy=strategy.value
    )
    return Finish(RunState.CANCELLED, error=error.to_dict(), interrupts=True)


def fits(result: bytes) -> bool:
    """Whether a result fits into the terminal event; otherwise it becomes an artifact and a reference."""
    return len(result) + _WRAPPING <= EVENTS[TERMINAL].max_bytes


def trim_error(error: CarrelError | Mapping[str, Any]) -> dict[str, Any]:
    """An error as data, within the bounds of events and rows whatever an agent put into it."""
    data = error.to_dict() if isinstance(error, CarrelError) else dict(error)
    for name in ("message", "advice"):
        text = str(data.get(name) or "")
        data[name] = text if len(text) <= _MAX_ERROR_TEXT else text[: _MAX_ERROR_TEXT - 1] + "…"
    if "details" in data and len(orjson.dumps(data["details"])) > _MAX_DETAILS_BYTES:
        del data["details"]
    return data


def reply_text(value: Mapping[str, Any], raw: bytes) -> str:
    """The assistant's message in the thread: the result's own words, else the result as JSON."""
    for name in ("message", "answer", "summary", "text"):
        text = value.get(name)
        if isinstance(text, str) and text:
            return _cut(text)
    return _cut(raw.decode())


def _cut(text: str) -> str:
    raw = text.encode()
    return text if len(raw) <= MAX_REPLY_BYTES else raw[: MAX_REPLY_BYTES - 3].decode(errors="ignore") + "…"
