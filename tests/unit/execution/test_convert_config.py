"""Messages and models, and the settings."""

from pathlib import Path

import pytest

from carrel.errors import InvalidContextError, ScopeError, StartupError, ToolFailedError
from carrel.v1 import agent_instance_pb2 as ai
from carrel.v1 import execution_pb2 as pb
from carrel.wire import error_to_proto
from servicekit.identity.principals import RunPrincipal, ServicePrincipal
from servicekit.settings import load_settings
from services.execution import convert, convert_stage
from services.execution.config import ExecutionSettings
from services.execution.domain import ports
from services.execution.models import (
    ArtifactRecord,
    AuditOutcome,
    JournalItem,
    MessageRecord,
    RunIdentity,
    RunState,
    StageState,
    ThreadStrategy,
    UserKey,
)
from services.execution.models_steps import Question
from tests.support.identity import identity, run_context

IDENTITY = RunIdentity(UserKey("alice"), "t", "run-1", "req-1")


def principal() -> RunPrincipal:
    verified = identity().verifier().verify(run_context())
    assert isinstance(verified, RunPrincipal)
    return verified


def test_every_state_of_the_contract_has_its_twin() -> None:
    assert set(convert.states_from_proto(pb.RunState.values())) == set(RunState)
    assert {f"STAGE_STATE_{state.value}" for state in StageState} == set(pb.StageState.keys()[1:])
    for strategy in pb.ThreadStrategy.values():
        request = pb.ExecutePipelineRequest(context=run_context(), strategy=strategy)
        assert isinstance(convert.pipeline_request(request, principal()).strategy, ThreadStrategy)


def test_context_s_values_come_along() -> None:
    context = run_context(permissions=["trace:read"], limits={"max_engines_per_user": 3})
    context.agent_context.update({"tone": "dry", "tags": ["a"]})
    context.audit_metadata.update({"source": "test"})
    context.websocket_client_id = "conn-1"
    verified = identity().verifier().verify(context)
    assert isinstance(verified, RunPrincipal)
    found = convert.pipeline_request(pb.ExecutePipelineRequest(context=context), verified).identity
    assert found.agent_context["tone"] == "dry"
    assert found.audit_metadata == {"source": "test"}
    assert found.permissions == {"trace:read"}
    assert found.limits == {"max_engines_per_user": 3}
    assert found.websocket_client_id == "conn-1"
    assert found.created_at == context.created_at.ToMicroseconds()


def test_only_the_root_request_asks_and_a_service_is_no_user() -> None:
    child = run_context()
    child.request_id += "_step"
    with pytest.raises(InvalidContextError):
        convert.pipeline_request(pb.ExecutePipelineRequest(context=child), principal())
    with pytest.raises(ScopeError):
        convert.user_key(ServicePrincipal("gateway", frozenset(), 0.0))


def test_stage_start_carries_everything() -> None:
    error = ToolFailedError("no").to_dict()
    start = ports.StageStart(
        IDENTITY,
        "data",
        index=2,
        attempt=3,
        fence=4,
        message="hi",
        params=b"{}",
        deadline_at=5_000_001,
        results={"a": b"{}"},
        history=(MessageRecord("user", "before", "run-0", 1),),
        journal=(JournalItem(1, "c1", "tool", "load", "h", b"1", error),),
    )
    message = convert_stage.start_to_proto(start)
    assert (message.stage_index, message.attempt, message.fence) == (2, 3, 4)
    assert message.producer_id == "run-1:2:3"
    assert message.deadline.ToMicroseconds() == 5_000_001
    assert message.history[0].text == "before"
    assert message.journal[0].error.code == "TOOL_FAILED"


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (ports.RefreshTicket(), "refresh"),
        (ports.CancelStage("why" * 1000, 1.5), "cancel"),
        (ports.ArtifactStored("u", ArtifactRecord("run-1", "a", "text/plain", 1, "s", 1)), "artifact_stored"),
        (ports.ArtifactStored("u", error=ToolFailedError("no").to_dict()), "artifact_stored"),
        (ports.JournalStored(7), "journal_stored"),
    ],
)
def test_every_message_down(message: ports.Downlink, kind: str) -> None:
    context = run_context()
    request = convert_stage.downlink_to_proto(message, context)
    assert request.WhichOneof("message") == kind
    assert request.context == context
    assert len(request.cancel.reason) <= 1024


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (ai.RunInstanceResponse(heartbeat=ai.Heartbeat()), ports.Heartbeat()),
        (
            ai.RunInstanceResponse(artifact_chunk=ai.ArtifactChunk(upload_id="u", name="n", data=b"d", last=True)),
            ports.ArtifactChunk("u", "n", "", b"d", True),
        ),
        (ai.RunInstanceResponse(budget_use=ai.BudgetUse(model="m", input_tokens=1)), ports.BudgetUse("m", 1, 0)),
        (
            ai.RunInstanceResponse(input_required=ai.InputRequired(input_id="q")),
            ports.StageResult(ports.InputRequired(Question("q", "", b"{}"))),
        ),
        (ai.RunInstanceResponse(accepted=ai.StageAccepted(warm=True)), ports.StageAccepted("", True, 0.0)),
        (
            ai.RunInstanceResponse(journal_entry=ai.JournalEntry(number=1, call_id="c", result_json=b"1")),
            JournalItem(1, "c", "", "", "", b"1"),
        ),
        (
            ai.RunInstanceResponse(result=ai.StageResult(result_json=b"{}", answered_by="x")),
            ports.StageResult(b"{}", "x"),
        ),
        (
            ai.RunInstanceResponse(result=ai.StageResult(plan=ai.StagePlan(stages=["a"], params_json=b"{}"))),
            ports.StageResult(ports.StagePlan(("a",), b"{}")),
        ),
        (ai.RunInstanceResponse(), None),
    ],
)
def test_every_message_up(response: ai.RunInstanceResponse, expected: ports.Uplink | None) -> None:
    assert convert_stage.uplink_from_proto(response, IDENTITY) == expected


def test_failure_keeps_its_error_whole() -> None:
    error = ToolFailedError("no", advice="do", retry_after_s=1.0, tool="load")
    up = convert_stage.uplink_from_proto(
        ai.RunInstanceResponse(result=ai.StageResult(error=error_to_proto(error))), IDENTITY
    )
    assert isinstance(up, ports.StageResult)
    assert isinstance(up.outcome, ports.StageFailure)
    assert up.outcome.error == error.to_dict()


def test_audit_is_under_the_runs_identity_whatever_the_record_says() -> None:
    record = ai.AuditRecord(
        record_id="a", user_id="mallory", thread_id="x", run_id="y", outcome=ai.AUDIT_OUTCOME_DENIED
    )
    entry = convert_stage.audit_from_proto(record, IDENTITY)
    assert (entry.user, entry.thread_id, entry.run_id, entry.request_id) == ("alice", "t", "run-1", "req-1")
    assert entry.outcome is AuditOutcome.DENIED
    assert convert.audit_to_proto(entry).user_id == "alice"


def test_settings_have_the_documents_defaults_and_names(tmp_path: Path) -> None:
    environ = {"CARREL_STATE_DIR": str(tmp_path)}
    settings = load_settings(ExecutionSettings, "execution", environ)
    assert (settings.max_engines_per_user, settings.max_unended_runs_per_user) == (2, 5)
    assert (settings.engine_timeout_seconds, settings.cleanup_interval) == (300.0, 60.0)
    assert settings.store_path == tmp_path / "execution" / "runs.sqlite3"
    assert settings.ticket_key == tmp_path / "keys" / "execution.jwk.json"
    assert settings.migrates
    named = {"MAX_ENGINES_PER_USER": "4", "ENGINE_TIMEOUT_SECONDS": "60", "CLEANUP_INTERVAL": "5"}
    settings = load_settings(ExecutionSettings, "execution", environ | named)
    assert (settings.max_engines_per_user, settings.engine_timeout_seconds, settings.cleanup_interval) == (4, 60, 5)
    assert settings.run_options().limits.max_engines == 4


def test_production_migrates_only_when_told(tmp_path: Path) -> None:
    environ = {"CARREL_STATE_DIR": str(tmp_path), "CARREL_ENVIRONMENT": "production", "CARREL_TLS__MODE": "mesh"}
    assert not load_settings(ExecutionSettings, "execution", environ).migrates
    assert load_settings(ExecutionSettings, "execution", environ | {"CARREL_EXECUTION_MIGRATE": "true"}).migrates


def test_wrong_and_unknown_settings_are_all_told() -> None:
    environ = {"CARREL_EXECUTION_MAX_ENGINES_PER_USER": "0", "CARREL_EXECUTION_TYPO": "1"}
    with pytest.raises(StartupError) as raised:
        load_settings(ExecutionSettings, "execution", environ)
    assert "CARREL_EXECUTION_TYPO" in str(raised.value)
    assert "MAX_ENGINES_PER_USER" in str(raised.value)
