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
from carrel.wire import context_from_proto, error_to_proto
from servicekit.identity.principals import Principal, RunPrincipal, user_of
from services.execution.domain.metrics import MetricsSnapshot
from services.execution.domain.planning import AgentFacts, Catalogue
from services.execution.domain.requests import PipelineRequest
from services.execution.domain.timing import Part, RunClock
from services.execution.models import (
    ArtifactRecord,
    AuditEntry,
    AuditOutcome,
    EngineRecord,
    InputRecord,
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
from services.execution.models_steps import Span

__all__ = [
    "OUTCOMES",
    "artifact_to_proto",
    "audit_span",
    "audit_to_proto",
    "catalogue_from_proto",
    "engine_to_proto",
    "message_to_proto",
    "metrics_to_proto",
    "parts_to_proto",
    "pipeline_request",
    "run_to_proto",
    "seconds_to_proto",
    "states_from_proto",
    "thread_to_proto",
    "time_to_proto",
    "timing_to_proto",
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
OUTCOMES: Final[Mapping[AuditOutcome, ai.AuditOutcome.ValueType]] = {
    AuditOutcome.SUCCEEDED: ai.AUDIT_OUTCOME_SUCCEEDED,
    AuditOutcome.FAILED: ai.AUDIT_OUTCOME_FAILED,
    AuditOutcome.DENIED: ai.AUDIT_OUTCOME_DENIED,
}


_LAST: Final = 2**62


def user_key(principal: Principal) -> UserKey:
    """The key of a verified caller's data. Raises ``ScopeError`` for a service, which stands for no user."""
    return UserKey(user_of(principal).user_id)


def pipeline_request(
    request: pb.ExecutePipelineRequest, principal: RunPrincipal, traceparent: str = ""
) -> PipelineRequest:
    """What is asked for, under the caller's verified identity, in this trace.

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
        traceparent=traceparent,
    )
    return PipelineRequest(
        identity=identity,
        message=request.message,
        params=request.params_json,
        pipeline=tuple(request.pipeline),
        strategy=_STRATEGIES[request.strategy],
        client_ref=request.client_ref,
        engine_id=request.engine_id,
        bound=request.bound_to_caller,
    )


def states_from_proto(states: Any) -> frozenset[RunState]:
    """The states that a listing is limited to."""
    return frozenset(_RUN_STATES_BACK[state] for state in states if state)


def timing_to_proto(clock: RunClock) -> pb.RunTiming:
    """Where a run's time went, in the order of its way."""
    parts = clock.so_far()
    return pb.RunTiming(parts=parts_to_proto(parts), total=seconds_to_proto(sum(parts.values())), complete=clock.done)


def parts_to_proto(parts: Mapping[Part, float]) -> list[pb.RunTimingPart]:
    """Parts that there are, in the order of a run's way."""
    return [
        pb.RunTimingPart(name=part.value, time=seconds_to_proto(parts[part])) for part in Part if parts.get(part, 0.0)
    ]


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
        created_at=time_to_proto(run.created_at),
        started_at=time_to_proto(run.started_at),
        ended_at=time_to_proto(run.ended_at),
        client_ref=run.client_ref,
        engine_id=run.engine_id,
        artifacts=[artifact_to_proto(artifact) for artifact in run.artifacts],
        waiting_for=None if run.waiting_for is None else _waiting_for(run.waiting_for),
        agent_name=run.agent_name,
    )


def _waiting_for(question: InputRecord) -> ai.InputRequired:
    return ai.InputRequired(
        input_id=question.input_id,
        prompt=question.prompt,
        schema_json=question.schema,
        arguments_hash=question.arguments_hash,
        tool_name=question.tool_name,
        arguments_json=question.arguments,
        expires_at=time_to_proto(question.expires_at),
    )


def _stage(stage: StageRecord) -> pb.Stage:
    return pb.Stage(
        index=stage.index,
        agent_name=stage.agent_name,
        state=_STAGE_STATES[stage.state],
        attempt=stage.attempt,
        started_at=time_to_proto(stage.started_at),
        ended_at=time_to_proto(stage.ended_at),
        answered_by=stage.answered_by,
    )


def engine_to_proto(engine: EngineRecord) -> pb.Engine:
    """An engine; the store has active ones only."""
    return pb.Engine(
        engine_id=engine.engine_id,
        user_id=engine.user,
        run_id=engine.run_id,
        created_at=time_to_proto(engine.created_at),
        expires_at=time_to_proto(engine.expires_at),
        is_active=True,
    )


def thread_to_proto(thread: ThreadRecord) -> pb.Thread:
    """A thread."""
    return pb.Thread(
        thread_id=thread.thread_id,
        created_at=time_to_proto(thread.created_at),
        updated_at=time_to_proto(thread.updated_at),
        message_count=thread.message_count,
        unended_run_id=thread.unended_run_id,
    )


def message_to_proto(message: MessageRecord) -> ai.ConversationMessage:
    """A message of a thread."""
    return ai.ConversationMessage(
        role=message.role, text=message.text, run_id=message.run_id, created_at=time_to_proto(message.created_at)
    )


def artifact_to_proto(artifact: ArtifactRecord) -> ai.Artifact:
    """A reference to an artifact."""
    return ai.Artifact(
        name=artifact.name,
        media_type=artifact.media_type,
        size=artifact.size,
        sha256=artifact.sha256,
        created_at=time_to_proto(artifact.created_at),
        run_id=artifact.run_id,
    )


def audit_span(request: pb.ListAuditRecordsRequest) -> Span:
    """The span of time that audit records are asked for, and their order."""
    since, until = (_micros(moment) for moment in (request.since, request.until))
    return Span(since, until, oldest_first=request.oldest_first)


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
        outcome=OUTCOMES[entry.outcome],
        error_code=entry.error_code,
        started_at=time_to_proto(entry.started_at),
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
        runs_queued=metrics.runs_queued,
        runs_waiting=metrics.runs_waiting,
        runs_resumed=metrics.runs_resumed,
        attempts_lost=metrics.attempts_lost,
        run_parts=parts_to_proto(metrics.run_parts),
        runs_timed=metrics.runs_timed,
    )


# agent_instance


def catalogue_from_proto(response: ai.ListAgentsResponse) -> Catalogue:
    """The registry."""
    return Catalogue(
        {agent.name: AgentFacts(agent.name, tuple(agent.requires), agent.plans) for agent in response.agents},
        response.registry_digest,
    )


def seconds_to_proto(seconds: float) -> Duration:
    """A duration."""
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1_000_000_000))
    return duration


def time_to_proto(micros: Micros | None) -> Timestamp | None:
    """A time of the store's as a message."""
    if micros is None:
        return None
    return Timestamp(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1000)


def _error(error: Mapping[str, Any] | None) -> context_pb2.ErrorDetail | None:
    return None if error is None else error_to_proto(from_dict(error))


def _micros(moment: Timestamp) -> Micros:
    # By hand: the library's own conversion raises for years beyond 9999. No clock of ours shows what is beyond.
    return min(max(moment.seconds * 1_000_000 + moment.nanos // 1000, 0), _LAST)
