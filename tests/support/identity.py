"""Keys, tickets and contexts for tests: one key set for the whole process, contexts of each scope in one call.

    request = pb.GetRunRequest(context=session_context(user="alice"), run_id="run-1")
    server = RpcServer("127.0.0.1:0", services, identity().verifier(), settings)

Not a way round verification: these tickets are real, and only a verifier of the same identity takes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from carrel.ids import new_id
from carrel.v1 import context_pb2
from servicekit.identity.keys import KeySet, SigningKey, generate_key, write_jwks
from servicekit.identity.principals import OPERATOR_READ, Scope
from servicekit.identity.tickets import TicketMinter, TicketVerifier

USER = "alice"
THREAD = "thread-1"
RUN = "run-1"
REQUEST = "req-1"


@dataclass(frozen=True)
class TestIdentity:
    """A gateway's and an execution's key, as in a deployment: the second may sign run tickets only."""

    __test__ = False

    gateway_key: SigningKey = field(default_factory=lambda: generate_key("gateway-1", issuer="gateway"))
    execution_key: SigningKey = field(
        default_factory=lambda: generate_key("execution-1", issuer="execution", scopes={Scope.RUN})
    )

    @property
    def keyset(self) -> KeySet:
        """Both public keys."""
        return KeySet([self.gateway_key, self.execution_key])

    @property
    def minter(self) -> TicketMinter:
        """Mints every scope, as the gateway does."""
        return TicketMinter(self.gateway_key, "gateway")

    @property
    def execution_minter(self) -> TicketMinter:
        """Mints run tickets, as execution does."""
        return TicketMinter(self.execution_key, "execution")

    def verifier(self, leeway_s: float = 5.0) -> TicketVerifier:
        """A verifier of its own, with an empty cache."""
        return TicketVerifier(self.keyset, leeway_s)

    def write(self, folder: Path) -> tuple[Path, Path, Path]:
        """Write what `carrel up` would: the JWKS, the gateway's key, execution's key."""
        folder.mkdir(parents=True, exist_ok=True)
        jwks, gateway, execution = (
            folder / "tickets.jwks.json",
            folder / "gateway.jwk.json",
            folder / "execution.jwk.json",
        )
        write_jwks(jwks, [self.gateway_key, self.execution_key])
        self.gateway_key.save(gateway)
        self.execution_key.save(execution)
        return jwks, gateway, execution


@cache
def identity() -> TestIdentity:
    """The identity that the functions below mint with; one for each test process."""
    return TestIdentity()


def run_context(
    user: str = USER,
    *,
    thread: str = THREAD,
    run: str = RUN,
    request: str = REQUEST,
    permissions: Iterable[str] = (),
    limits: Mapping[str, int] | None = None,
    lifetime_s: float = 600.0,
    issuer: str = "execution",
) -> context_pb2.UserExecutionContext:
    """A root context with a run ticket: execution's, for a run that was admitted, or the gateway's, to ask for one."""
    minter = identity().minter if issuer == "gateway" else identity().execution_minter
    ticket = minter.mint_run(user, thread, run, request, permissions, limits, lifetime_s)
    context = context_pb2.UserExecutionContext(
        user_id=user, thread_id=thread, run_id=run, request_id=request, ticket=ticket
    )
    context.created_at.GetCurrentTime()
    return context


def new_run_context(
    user: str = USER, *, permissions: Iterable[str] = (), issuer: str = "execution"
) -> context_pb2.UserExecutionContext:
    """A root context of a run that no other test has."""
    thread, run, request = new_id("thread"), new_id("run"), new_id("req")
    return run_context(user, thread=thread, run=run, request=request, permissions=permissions, issuer=issuer)


def child_context(parent: context_pb2.UserExecutionContext, operation: str) -> context_pb2.UserExecutionContext:
    """A child of a run's context, under the same ticket."""
    child = context_pb2.UserExecutionContext()
    child.CopyFrom(parent)
    child.parent_request_id = parent.request_id
    child.request_id = f"{parent.request_id}_{operation}"
    child.operation_depth = parent.operation_depth + 1
    return child


def session_context(
    user: str = USER,
    *,
    permissions: Iterable[str] = (),
    limits: Mapping[str, int] | None = None,
    lifetime_s: float = 600.0,
) -> context_pb2.UserExecutionContext:
    """A context with a session ticket."""
    ticket = identity().minter.mint_session(user, permissions, limits, lifetime_s)
    return context_pb2.UserExecutionContext(user_id=user, ticket=ticket)


def service_context(
    service: str = "gateway", *, permissions: Iterable[str] = (OPERATOR_READ,), lifetime_s: float = 600.0
) -> context_pb2.UserExecutionContext:
    """A context with a service ticket, by default with the operator's permission to read."""
    return context_pb2.UserExecutionContext(ticket=identity().minter.mint_service(service, permissions, lifetime_s))
