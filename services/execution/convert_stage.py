"""The messages of an attempt (``RunInstance``) to execution's ports and back, and nothing else."""

from __future__ import annotations

from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from carrel.errors import from_dict
from carrel.v1 import agent_instance_pb2 as ai
from carrel.v1 import context_pb2
from carrel.wire import error_from_proto, error_to_proto
from services.execution.convert import OUTCOMES, artifact_to_proto, message_to_proto, seconds_to_proto, time_to_proto
from services.execution.domain import ports
from services.execution.models import AuditEntry, AuditOutcome, InputRecord, JournalItem, RunIdentity
from services.execution.models_steps import Budget, Question

__all__ = ["audit_from_proto", "downlink_to_proto", "start_to_proto", "uplink_from_proto"]

_LAST: Final = 2**62
_OUTCOMES_BACK: Final = {int(value): outcome for outcome, value in OUTCOMES.items()}


def start_to_proto(start: ports.StageStart) -> ai.StartStage:
    """Everything that an attempt needs."""
    return ai.StartStage(
        agent_name=start.agent_name,
        stage_index=start.index,
        attempt=start.attempt,
        fence=start.fence,
        producer_id=start.producer_id,
        message=start.message,
        params_json=start.params,
        results_json=start.results,
        history=[message_to_proto(item) for item in start.history],
        journal=[_journal_entry(item) for item in start.journal],
        budget=None if start.budget is None else _budget(start.budget),
        deadline=time_to_proto(start.deadline_at),
        inputs=[_input(answer) for answer in start.inputs],
        quiet_until_input=start.quiet_until_input,
        last_attempt=start.last_attempt,
        memory=start.memory,
    )


def _input(answer: InputRecord) -> ai.ProvidedInput:
    return ai.ProvidedInput(
        input_id=answer.input_id, value_json=answer.value or b"null", arguments_hash=answer.arguments_hash
    )


def downlink_to_proto(message: ports.Downlink, context: context_pb2.UserExecutionContext) -> ai.RunInstanceRequest:
    """One message down, under the run's context."""
    request = ai.RunInstanceRequest(context=context)
    if isinstance(message, ports.RefreshTicket):
        request.refresh.SetInParent()
    elif isinstance(message, ports.CancelStage):
        request.cancel.reason = message.reason[:1024]
        request.cancel.grace.CopyFrom(seconds_to_proto(message.grace_s))
    elif isinstance(message, ports.ArtifactStored):
        request.artifact_stored.upload_id = message.upload_id
        if message.artifact is not None:
            request.artifact_stored.artifact.CopyFrom(artifact_to_proto(message.artifact))
        if message.error is not None:
            request.artifact_stored.error.CopyFrom(error_to_proto(from_dict(message.error)))
    elif isinstance(message, ports.BudgetGrant):
        request.budget_grant.CopyFrom(_budget(message.budget))
    else:
        request.journal_stored.through = message.through
    return request


def _budget(budget: Budget) -> ai.BudgetGrant:
    grant = ai.BudgetGrant(tokens=budget.tokens, concurrency=budget.concurrency)
    grant.renews_at.FromMicroseconds(budget.renews_at)
    return grant


def uplink_from_proto(response: ai.RunInstanceResponse, identity: RunIdentity) -> ports.Uplink | None:
    """One message up; None for one that this version does not know."""
    kind = response.WhichOneof("message")
    if kind == "heartbeat":
        return ports.Heartbeat(_seconds(response.heartbeat.idle))
    if kind == "artifact_chunk":
        chunk = response.artifact_chunk
        return ports.ArtifactChunk(chunk.upload_id, chunk.name, chunk.media_type, chunk.data, chunk.last)
    if kind == "audit_record":
        return audit_from_proto(response.audit_record, identity)
    if kind == "journal_entry":
        return _journal_item(response.journal_entry)
    if kind == "result":
        return _result(response.result)
    if kind == "accepted":
        accepted = response.accepted
        return ports.StageAccepted(accepted.instance_id, accepted.warm, _seconds(accepted.creation_time))
    if kind == "budget_use":
        use = response.budget_use
        return ports.BudgetUse(use.model, use.input_tokens, use.output_tokens)
    if kind == "input_required":
        return ports.StageResult(ports.InputRequired(_question(response.input_required)))
    return None


def _question(message: ai.InputRequired) -> Question:
    return Question(
        input_id=message.input_id,
        prompt=message.prompt,
        schema=message.schema_json or b"{}",
        arguments_hash=message.arguments_hash,
        tool_name=message.tool_name,
        arguments=message.arguments_json,
    )


def audit_from_proto(record: ai.AuditRecord, identity: RunIdentity) -> AuditEntry:
    """An audit record. Whose it is, is the run's to say, not the message's."""
    return AuditEntry(
        record_id=record.record_id[:128],
        user=identity.user,
        thread_id=identity.thread_id,
        run_id=identity.run_id,
        request_id=record.request_id[:512] or identity.request_id,
        action=record.action,
        target=record.target,
        outcome=_OUTCOMES_BACK.get(record.outcome, AuditOutcome.FAILED),
        started_at=_micros(record.started_at),
        duration_us=_micros(record.duration),
        error_code=record.error_code,
        arguments_hash=record.arguments_hash,
        agent_name=record.agent_name,
    )


def _journal_item(entry: ai.JournalEntry) -> JournalItem:
    error = error_from_proto(entry.error).to_dict() if entry.HasField("error") else None
    return JournalItem(
        entry.number, entry.call_id, entry.kind, entry.name, entry.arguments_hash, entry.result_json, error
    )


def _journal_entry(item: JournalItem) -> ai.JournalEntry:
    return ai.JournalEntry(
        number=item.number,
        call_id=item.call_id,
        kind=item.kind,
        name=item.name,
        arguments_hash=item.arguments_hash,
        result_json=item.result,
        error=None if item.error is None else error_to_proto(from_dict(item.error)),
    )


def _result(result: ai.StageResult) -> ports.StageResult:
    outcome: bytes | ports.StagePlan | ports.StageFailure
    if result.WhichOneof("outcome") == "plan":
        outcome = ports.StagePlan(tuple(result.plan.stages), result.plan.params_json, result.plan.reason)
    elif result.WhichOneof("outcome") == "error":
        outcome = ports.StageFailure(error_from_proto(result.error).to_dict())
    else:
        outcome = result.result_json
    return ports.StageResult(
        outcome,
        result.answered_by,
        agent_s=_seconds(result.agent_time),
        log_wait_s=_seconds(result.log_wait),
        emitter_s=_seconds(result.emitter_time),
        bridge_s=_seconds(result.bridge_time),
        memory=result.memory,
    )


# Small things


def _micros(moment: Timestamp | Duration) -> int:
    # By hand: the library's own raises for what neither may say.
    return min(max(moment.seconds * 1_000_000 + moment.nanos // 1000, 0), _LAST)


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1_000_000_000
