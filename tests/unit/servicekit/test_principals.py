"""Principals and the table of scopes: every RPC is in it, and what a principal may do is asked in one place."""

import dataclasses

import pytest

from carrel.errors import PermissionDeniedError, ScopeError
from carrel.v1 import agent_instance_pb2, bridge_pb2, emitter_pb2, execution_pb2
from servicekit.identity.principals import (
    OPERATOR_READ,
    RunPrincipal,
    Scope,
    ServicePrincipal,
    SessionPrincipal,
    may_see_run,
    user_of,
)
from servicekit.identity.scopes import METHOD_SCOPES, SERVICE_PERMISSIONS
from servicekit.rpc.channel import IDEMPOTENT

RUN = RunPrincipal("alice", "thread-1", "run-1", "req-1", frozenset({"trace:read"}), {}, 0.0)
SESSION = SessionPrincipal("alice", frozenset(), {}, 0.0)
SERVICE = ServicePrincipal("gateway", frozenset({OPERATOR_READ}), 0.0)


def _methods() -> dict[str, str]:
    """Every method of the contract with the first line of what the contract says about its request's context."""
    found = {}
    for module in (execution_pb2, agent_instance_pb2, emitter_pb2, bridge_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                found[f"/{service.full_name}/{method.name}"] = method.input_type.name
    return found


def test_table_of_scopes_names_every_rpc_and_nothing_else() -> None:
    assert METHOD_SCOPES.keys() == _methods().keys()
    assert all(METHOD_SCOPES.values())


def test_further_tables_name_rpcs_that_exist() -> None:
    assert SERVICE_PERMISSIONS.keys() <= METHOD_SCOPES.keys()
    assert IDEMPOTENT.keys() <= METHOD_SCOPES.keys()


def test_service_tickets_need_the_operators_permission_where_they_read_others_things() -> None:
    takes_service = {name for name, scopes in METHOD_SCOPES.items() if Scope.SERVICE in scopes}
    free = {
        "/carrel.v1.AgentInstanceService/ListAgents",
        "/carrel.v1.BridgeService/Attach",
        "/carrel.v1.ExecutionService/ClaimOnce",
    }
    assert takes_service - SERVICE_PERMISSIONS.keys() == free


def test_permission_that_was_not_granted_is_named() -> None:
    RUN.require("trace:read")
    RUN.require("")
    with pytest.raises(PermissionDeniedError) as caught:
        RUN.require("trace:write")
    assert caught.value.details == {"permission": "trace:write"}
    assert RUN.may("trace:read")
    assert not SESSION.may("trace:read")


def test_run_ticket_answers_for_its_own_run_only() -> None:
    assert may_see_run(RUN, "run-1")
    assert not may_see_run(RUN, "run-2")
    assert may_see_run(SESSION, "run-2")
    assert not may_see_run(SERVICE, "run-1")


def test_service_is_no_user() -> None:
    assert user_of(RUN) is RUN
    assert user_of(SESSION) is SESSION
    with pytest.raises(ScopeError):
        user_of(SERVICE)


@pytest.mark.parametrize("principal", [RUN, SESSION, SERVICE])
def test_principals_cannot_be_changed(principal: object) -> None:
    with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):
        principal.user_id = "bob"  # type: ignore[attr-defined]  # the point of the test
    assert not hasattr(principal, "__dict__")
