"""A person's answer on its way to the run that waits for it: checked, kept, audited. What it is, nobody is told."""

from __future__ import annotations

import hashlib

import orjson

from carrel.errors import UnknownRunError
from services.execution.domain.answers import check_answer, parse_answer
from services.execution.domain.holding import Holdings
from services.execution.domain.services import RunServices
from services.execution.models import AuditEntry, AuditOutcome, RunRecord, UserKey

__all__ = ["provide_input"]


async def provide_input(
    services: RunServices, holdings: Holdings, user: UserKey, run_id: str, input_id: str, value_json: bytes
) -> RunRecord:
    """Answer a run's question; the run as it then is. Giving the same answer again changes nothing.

    Raises:
        UnknownRunError: The user has no such run.
        NotWaitingError: The run does not wait for this question, or it was answered otherwise.
        InvalidInputError: The answer does not fit the question's schema.
    """
    asked_at = services.clock()
    run = await services.store.get_run(user, run_id)
    if run is None:
        raise UnknownRunError("no such run", run_id=run_id)
    value = parse_answer(value_json)
    question = run.waiting_for
    approves = ""
    if question is not None and question.input_id == input_id:
        check_answer(question.schema, value)
        approves = question.arguments_hash
    # In one form, so that the same answer written otherwise is still the same.
    canonical = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    answered = await services.store.provide_input(user, run_id, input_id, canonical)
    if answered is None:
        raise UnknownRunError("no such run", run_id=run_id)
    holdings.answered(answered)
    services.changes.notify(user, run_id)
    digest = hashlib.sha256(f"{user} {run_id} {input_id}".encode()).hexdigest()
    entry = AuditEntry(
        record_id=f"aud-input-{digest[:32]}",  # given again, it is the same act
        user=user,
        thread_id=run.identity.thread_id,
        run_id=run_id,
        request_id=run.identity.request_id,
        action="input.provide",
        target=input_id,
        outcome=AuditOutcome.SUCCEEDED,
        started_at=asked_at,
        duration_us=max(0, services.clock() - asked_at),
        arguments_hash=approves,
    )
    await services.store.save_audit([entry])
    return answered
