"""Messages of ``carrel.v1`` to and from this service's models, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from carrel.agents import Isolation, Message, Request
from carrel.context import UserExecutionContext
from carrel.errors import CarrelError, InvalidRequestError
from carrel.ids import new_id
from carrel.tools import Tool
from carrel.v1 import agent_instance_pb2 as pb
from carrel.v1 import context_pb2
from carrel.wire import context_from_proto, error_from_proto, error_to_proto
from servicekit.identity.principals import Principal, RunPrincipal
from services.agent_instance.domain.activity import TimeLimits
from services.agent_instance.domain.artifacts import artifact_url
from services.agent_instance.domain.registry import AgentEntry
from services.agent_instance.models import (
    AuditEntry,
    AuditOutcome,
    BudgetGrant,
    BudgetUse,
    Caller,
    ChunkUp,
    JournalItem,
    PoolStatistics,
    ProvidedInput,
    Question,
    StageOutcome,
    StageStart,
    StoredArtifact,
)

__all__ = [
    "agent_info",
    "artifact_answer",
    "artifact_chunk",
    "audit_record",
    "budget_grant",
    "budget_use",
    "caller_of",
    "duration",
    "input_required",
    "journal_entry",
    "pool_statistics",
    "stage_result",
    "stage_start",
]

_OUTCOMES: Final[Mapping[AuditOutcome, pb.AuditOutcome.ValueType]] = {
    AuditOutcome.SUCCEEDED: pb.AUDIT_OUTCOME_SUCCEEDED,
    AuditOutcome.FAILED: pb.AUDIT_OUTCOME_FAILED,
    AuditOutcome.DENIED: pb.AUDIT_OUTCOME_DENIED,
}
_ISOLATION: Final[Mapping[Isolation, pb.Isolation.ValueType]] = {
    "process": pb.ISOLATION_PROCESS,
    "task": pb.ISOLATION_TASK,
}


def duration(seconds: float) -> Duration:
    """Seconds as a message."""
    message = Duration()
    message.FromNanoseconds(round(max(0.0, seconds) * 1e9))
    return message


def caller_of(message: context_pb2.UserExecutionContext, principal: Principal) -> Caller:
    """The verified caller: the context whose ids the verifier has compared, and the ticket's permissions.

    Raises:
        InvalidContextError: Another field of the context breaks a rule.
    """
    assert isinstance(principal, RunPrincipal)
    return Caller(context_from_proto(message), principal.permissions)


def stage_start(start: pb.StartStage) -> StageStart:
    """What an attempt is to do.

    Raises:
        InvalidRequestError: Parameters, results or history are not what they should be.
    """
    results = {name: _object(value, f"results_json[{name}]") for name, value in start.results_json.items()}
    request = Request(
        message=start.message,
        params=_object(start.params_json, "params_json"),
        results=results,
        history=tuple(
            Message.from_dict({"role": item.role, "text": item.text, "run_id": item.run_id}) for item in start.history
        ),
        attempt=start.attempt,
    )
    return StageStart(
        agent_name=start.agent_name,
        stage_index=start.stage_index,
        attempt=start.attempt,
        fence=start.fence,
        producer_id=start.producer_id,
        request=request,
        instance_id=start.instance_id,
        deadline=start.deadline.seconds + start.deadline.nanos / 1e9 if start.HasField("deadline") else None,
        journal=tuple(_journaled(entry) for entry in start.journal),
        inputs=tuple(ProvidedInput(item.input_id, item.value_json, item.arguments_hash) for item in start.inputs),
        quiet_until_input=start.quiet_until_input,
        last_attempt=start.last_attempt,
        budget=budget_grant(start.budget) if start.HasField("budget") else None,
        memory=start.memory,
    )


def budget_grant(grant: pb.BudgetGrant) -> BudgetGrant:
    """What model calls may use."""
    return BudgetGrant(grant.tokens, grant.concurrency, grant.renews_at.seconds + grant.renews_at.nanos / 1e9)


def budget_use(use: BudgetUse) -> pb.BudgetUse:
    """Tokens used by a model call."""
    return pb.BudgetUse(model=use.model, input_tokens=use.input_tokens, output_tokens=use.output_tokens)


def input_required(question: Question, events_through: int) -> pb.InputRequired:
    """What a stage asks a person."""
    return pb.InputRequired(
        input_id=question.input_id,
        prompt=question.prompt,
        schema_json=question.schema,
        arguments_hash=question.arguments_hash,
        events_through=events_through,
        tool_name=question.tool_name,
        arguments_json=question.arguments,
    )


def _journaled(entry: pb.JournalEntry) -> JournalItem:
    return JournalItem(
        number=entry.number,
        call_id=entry.call_id,
        kind=entry.kind,
        name=entry.name,
        arguments_hash=entry.arguments_hash,
        result=entry.result_json,
        error=error_from_proto(entry.error) if entry.HasField("error") else None,
    )


def stage_result(outcome: StageOutcome) -> pb.StageResult:
    """How an attempt ended."""
    result = pb.StageResult(
        events_through=outcome.events_through,
        agent_time=duration(outcome.agent_time_s),
        log_wait=duration(outcome.log_wait_s),
        answered_by=outcome.answered_by,
        emitter_time=duration(outcome.emitter_s),
        bridge_time=duration(outcome.bridge_s),
        memory=outcome.memory,
    )
    if outcome.error is not None:
        result.error.CopyFrom(error_to_proto(outcome.error))
    elif outcome.plan is not None:
        plan = outcome.plan.to_dict()
        result.plan.stages.extend(plan["stages"])
        result.plan.params_json = orjson.dumps(plan["params"])
        result.plan.reason = plan["reason"]
    else:
        result.result_json = outcome.result or b"{}"
    return result


def journal_entry(item: JournalItem) -> pb.JournalEntry:
    """A completed call."""
    return pb.JournalEntry(
        number=item.number,
        call_id=item.call_id,
        kind=item.kind,
        name=item.name,
        arguments_hash=item.arguments_hash,
        result_json=item.result,
        error=None if item.error is None else error_to_proto(item.error),
    )


def audit_record(entry: AuditEntry) -> pb.AuditRecord:
    """A record for the audit trail."""
    context: UserExecutionContext = entry.context
    began = Timestamp()
    began.FromNanoseconds(round(entry.started_at * 1e9))
    return pb.AuditRecord(
        record_id=new_id("aud"),
        user_id=context.user_id,
        thread_id=context.thread_id,
        run_id=context.run_id,
        request_id=context.request_id,
        action=entry.action,
        target=entry.target,
        outcome=_OUTCOMES[entry.outcome],
        error_code=entry.error_code,
        started_at=began,
        duration=duration(entry.duration_s),
        arguments_hash=entry.arguments_hash,
        agent_name=entry.agent_name,
    )


def artifact_chunk(chunk: ChunkUp) -> pb.ArtifactChunk:
    """A piece of an artifact."""
    return pb.ArtifactChunk(
        upload_id=chunk.upload_id, name=chunk.name, media_type=chunk.media_type, data=chunk.data, last=chunk.last
    )


def artifact_answer(stored: pb.ArtifactStored, run_id: str) -> StoredArtifact | CarrelError:
    """What execution answered to an upload of this run."""
    if stored.HasField("error"):
        return error_from_proto(stored.error)
    artifact = stored.artifact
    url = artifact_url(run_id, artifact.name)
    return StoredArtifact(artifact.name, artifact.media_type, artifact.size, artifact.sha256, url)


def agent_info(
    entry: AgentEntry, tools: Iterable[Tool], limits: TimeLimits, isolation: Isolation, missing: Mapping[str, str]
) -> pb.AgentInfo:
    """An agent class with its tools, the limits and the isolation that hold for it, and what is missing for it now."""
    return pb.AgentInfo(
        name=entry.name,
        description=entry.description,
        requires=entry.requires,
        tools=[_tool_info(tool) for tool in tools],
        fallback=entry.fallback or "",
        plans=entry.plans,
        isolation=_ISOLATION[isolation],
        idle_timeout=duration(limits.idle_s),
        timeout=duration(limits.wall_s),
        available=not missing,
        unavailable_reason="; ".join(f"{name}: {reason}" for name, reason in missing.items()),
    )


def pool_statistics(counts: PoolStatistics, identity_mismatches: int) -> pb.GetPoolStatisticsResponse:
    """The pool's counts."""
    return pb.GetPoolStatisticsResponse(
        created=counts.created,
        reused=counts.reused,
        reuse_rate=counts.reuse_rate,
        active=counts.active,
        idle=counts.idle,
        capacity=counts.capacity,
        killed=counts.killed,
        failed=counts.failed,
        fallbacks=counts.fallbacks,
        periodic_updates_active=counts.periodic_updates_active,
        creation_p50=duration(counts.creation_p50_s),
        creation_p95=duration(counts.creation_p95_s),
        waiting=counts.waiting,
        lost=counts.lost,
        children_active=counts.children_active,
        identity_mismatch_total=identity_mismatches,
    )


def _tool_info(tool: Tool) -> pb.ToolInfo:
    return pb.ToolInfo(
        name=tool.name,
        description=tool.description,
        permission=tool.permission or "",
        input_schema_json=orjson.dumps(dict(tool.input_schema)),
        host=tool.host,
        timeout=duration(tool.timeout_s),
        approval=tool.approval,
        server=tool.server,
    )


def _object(data: bytes, field: str) -> dict[str, Any]:
    if not data:
        return {}
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{field} is not a JSON object", fields={field: "must be a UTF-8 JSON object"})
    return value
