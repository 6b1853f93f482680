"""Messages to models and back, and nothing else. The one place where a verified principal becomes a store's key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from carrel.errors import InvalidContextError, from_dict
from carrel.ids import check_minted_id
from carrel.v1 import agent_instance_pb2 as ai
from carrel.v1 import context_pb2
from carrel.v1 import execution_pb2 as pb
from carrel.wire import context_from_proto, error_from_proto, error_to_proto
from servicekit.identity.principals import Principal, RunPrincipal, user_of
from services.execution.domain import ports
from services.execution.domain.metrics import MetricsSnapshot
from services.execution.domain.planning import AgentFacts, Catalogue
from services.execution.domain.requests import PipelineRequest
from services.execution.models import (
    ArtifactRecord,
    AuditEntry,
    AuditOutcome,
    EngineRecord,
    JournalItem,
    MessageRecord,
    Micros,
    RunIdentity,
    RunRecord,
    RunState,
    StageRecord,
    StageState,
    ThreadRecord,
    ThreadStrategy,
    UserKey,
)

__all__ = [
    "artifact_to_proto",
    "audit_from_proto",
    "audit_to_proto",
    "catalogue_from_proto",
    "downlink_to_proto",
    "engine_to_proto",
    "message_to_proto",
    "metrics_to_proto",
    "pipeline_request",
    "run_to_proto",
    "seconds_to_proto",
    "start_to_proto",
    "states_from_proto",
    "thread_to_proto",
    "uplink_from_proto",
    "user_key",
]

_RUN_STATES: Final[Mapping[RunState, pb.RunState.ValueType]] = {
    state: pb.RunState.Value(f"RUN_STATE_{state.value}") for state in RunState
}
_RUN_STATES_BACK: Final = {value: state for state, value in _RUN_STATES.items()}
_STAGE_STATES: Final[Mapping[StageState, pb.StageState.ValueType]] = {
    state: pb.StageState.Value(f"STAGE_STATE_{state.value}") for state in StageState
}
_STRATEGIES: Final[Mapping[int, ThreadStrategy]] = {
    pb.THREAD_STRATEGY_UNSPECIFIED: ThreadStrategy.REJECT,
    pb.THREAD_STRATEGY_REJECT: ThreadStrategy.REJECT,
    pb.THREAD_STRATEGY_ENQUEUE: ThreadStrategy.ENQUEUE,
    pb.THREAD_STRATEGY_INTERRUPT: ThreadStrategy.INTERRUPT,
    pb.THREAD_STRATEGY_ROLLBACK: ThreadStrategy.ROLLBACK,
}
_OUTCOMES: Final[Mapping[AuditOutcome, ai.AuditOutcome.ValueType]] = {
    AuditOutcome.SUCCEEDED: ai.AUDIT_OUTCOME_SUCCEEDED,
    AuditOutcome.FAILED: ai.AUDIT_OUTCOME_FAILED,
    AuditOutcome.DENIED: ai.AUDIT_OUTCOME_DENIED,
}
_OUTCOMES_BACK: Final = {int(value): outcome for outcome, value in _OUTCOMES.items()}


def user_key(principal: Principal) -> UserKey:
    """The key of a verified caller's data. Raises ``ScopeError`` for a service, which stands for no user."""
    return UserKey(user_of(principal).user_id)


def pipeline_request(request: pb.ExecutePipelineRequest, principal: RunPrincipal) -> PipelineRequest:
    """What is asked for, under the caller's verified identity.

    Raises:
        InvalidContextError: The context is no root request's, or an id is a placeholder.
    """
    context = request.context
    if context.request_id != principal.request_id:
        raise InvalidContextError(
            "a run is asked for by its root request", fields={"context.request_id": "must be the ticket's own"}
        )
    for field in ("thread_id", "run_id", "request_id"):
        check_minted_id(getattr(context, field), field)
    checked = context_from_proto(context)
    identity = RunIdentity(
        user=UserKey(principal.user_id),
        thread_id=principal.thread_id,
        run_id=principal.run_id,
        request_id=principal.request_id,
        permissions=principal.permissions,
        limits=dict(principal.limits),
        websocket_client_id=context.websocket_client_id,
        created_at=round(checked.created_at.timestamp() * 1_000_000),
        agent_context=checked.agent_context,
        audit_metadata=checked.audit_metadata,
    )
    return PipelineRequest(
        identity=identity,
        message=request.message,
        params=request.params_json,
        pipeline=tuple(request.pipeline),
        strategy=_STRATEGIES[request.strategy],
        client_ref=request.client_ref,
        engine_id=request.engine_id,
    )


def states_from_proto(states: Any) -> frozenset[RunState]:
    """The states that a listing is limited to."""
    return frozenset(_RUN_STATES_BACK[state] for state in states if state)


def run_to_proto(run: RunRecord) -> pb.Run:
    """A run."""
    return pb.Run(
        run_id=run.identity.run_id,
        thread_id=run.identity.thread_id,
        request_id=run.identity.request_id,
        state=_RUN_STATES[run.state],
        outcome=_RUN_STATES[run.outcome] if run.outcome else pb.RUN_STATE_UNSPECIFIED,
        stages=[_stage(stage) for stage in run.stages],
        result_json=run.result or b"",
        error=_error(run.error),
        created_at=_time(run.created_at),
        started_at=_time(run.started_at),
        ended_at=_time(run.ended_at),
        client_ref=run.client_ref,
        engine_id=run.engine_id,
        artifacts=[artifact_to_proto(artifact) for artifact in run.artifacts],
        agent_name=run.agent_name,
    )


def _stage(stage: StageRecord) -> pb.Stage:
    return pb.Stage(
        index=stage.index,
        agent_name=stage.agent_name,
        state=_STAGE_STATES[stage.state],
        attempt=stage.attempt,
        started_at=_time(stage.started_at),
        ended_at=_time(stage.ended_at),
        answered_by=stage.answered_by,
    )


def engine_to_proto(engine: EngineRecord) -> pb.Engine:
    """An engine; the store has active ones only."""
    return pb.Engine(
        engine_id=engine.engine_id,
        user_id=engine.user,
        run_id=engine.run_id,
        created_at=_time(engine.created_at),
        expires_at=_time(engine.expires_at),
        is_active=True,
    )


def thread_to_proto(thread: ThreadRecord) -> pb.Thread:
    """A thread."""
    return pb.Thread(
        thread_id=thread.thread_id,
        created_at=_time(thread.created_at),
        updated_at=_time(thread.updated_at),
        message_count=thread.message_count,
        unended_run_id=thread.unended_run_id,
    )


def message_to_proto(message: MessageRecord) -> ai.ConversationMessage:
    """A message of a thread."""
    return ai.ConversationMessage(
        role=message.role, text=message.text, run_id=message.run_id, created_at=_time(message.created_at)
    )


def artifact_to_proto(artifact: ArtifactRecord) -> ai.Artifact:
    """A reference to an artifact."""
    return ai.Artifact(
        name=artifact.name,
        media_type=artifact.media_type,
        size=artifact.size,
        sha256=artifact.sha256,
        created_at=_time(artifact.created_at),
        run_id=artifact.run_id,
    )


def audit_to_proto(entry: AuditEntry) -> ai.AuditRecord:
    """An audit record."""
    return ai.AuditRecord(
        record_id=entry.record_id,
        user_id=entry.user,
        thread_id=entry.thread_id,
        run_id=entry.run_id,
        request_id=entry.request_id,
        action=entry.action,
        target=entry.target,
        outcome=_OUTCOMES[entry.outcome],
        error_code=entry.error_code,
        started_at=_time(entry.started_at),
        duration=Duration(seconds=entry.duration_us // 1_000_000, nanos=entry.duration_us % 1_000_000 * 1000),
        arguments_hash=entry.arguments_hash,
        agent_name=entry.agent_name,
    )


def metrics_to_proto(metrics: MetricsSnapshot) -> pb.GetFactoryMetricsResponse:
    """The factory's counts; the process's own figures are added by the servicer."""
    return pb.GetFactoryMetricsResponse(
        engines_created=metrics.engines_created,
        engines_active=metrics.engines_active,
        engines_cleaned=metrics.engines_cleaned,
        total_users=metrics.total_users,
        concurrent_peak=metrics.concurrent_peak,
        contexts_created=metrics.contexts_created,
        contexts_cleaned=metrics.contexts_cleaned,
        runs_total=metrics.runs_total,
        runs_successful=metrics.runs_successful,
        runs_failed=metrics.runs_failed,
        execution_time_average=seconds_to_proto(metrics.execution_time_average),
        execution_time_p95=seconds_to_proto(metrics.execution_time_p95),
        factory_chain_metrics=metrics.factory_chain_metrics,
        timeouts=metrics.timeouts,
        refusals=metrics.refusals,
    )


# agent_instance


def catalogue_from_proto(response: ai.ListAgentsResponse) -> Catalogue:
    """The registry."""
    return Catalogue(
        {agent.name: AgentFacts(agent.name, tuple(agent.requires), agent.plans) for agent in response.agents},
        response.registry_digest,
    )


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
        deadline=_time(start.deadline_at),
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
    else:
        request.journal_stored.through = message.through
    return request


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
        return ports.InputRequired(response.input_required.input_id, response.input_required.prompt)
    return None


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
        started_at=record.started_at.ToMicroseconds(),
        duration_us=record.duration.ToMicroseconds(),
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
        error=_error(item.error),
    )


def _result(result: ai.StageResult) -> ports.StageResult:
    outcome: bytes | ports.StagePlan | ports.StageFailure
    if result.WhichOneof("outcome") == "plan":
        outcome = ports.StagePlan(tuple(result.plan.stages), result.plan.params_json, result.plan.reason)
    elif result.WhichOneof("outcome") == "error":
        outcome = ports.StageFailure(error_from_proto(result.error).to_dict())
    else:
        outcome = result.result_json
    return ports.StageResult(outcome, result.answered_by, _seconds(result.agent_time), _seconds(result.log_wait))


# Small things


def seconds_to_proto(seconds: float) -> Duration:
    """A duration."""
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1_000_000_000))
    return duration


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1_000_000_000


def _time(micros: Micros | None) -> Timestamp | None:
    if micros is None:
        return None
    return Timestamp(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1000)


def _error(error: Mapping[str, Any] | None) -> context_pb2.ErrorDetail | None:
    return None if error is None else error_to_proto(from_dict(error))
