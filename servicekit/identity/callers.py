"""One table: which services may call each RPC, by their certificates. Beside tickets, not instead of them.

It is the chain's edges, method by method, and nothing more: what a service never calls it may not call. "client" is an
internal service of the deployment's owner, "operator" a person with an operator's certificate, "doctor" is
``carrel doctor``. The interceptor holds calls to it where there is TLS. Pure Python: no grpc.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["METHOD_CALLERS"]

_EXECUTION: Final = "/carrel.v1.ExecutionService/"
_INSTANCE: Final = "/carrel.v1.AgentInstanceService/"
_EMITTER: Final = "/carrel.v1.EmitterService/"
_BRIDGE: Final = "/carrel.v1.BridgeService/"

_GATEWAY: Final = frozenset({"gateway"})
_FROM_EXECUTION: Final = frozenset({"execution"})
_CLIENT: Final = frozenset({"client"})
# In a user's name: the gateway for people, internal services for themselves.
_USERS: Final = frozenset({"gateway", "client"})
_OPERATORS: Final = frozenset({"operator", "doctor"})

METHOD_CALLERS: Final[Mapping[str, frozenset[str]]] = {
    _EXECUTION + "CreateEngine": _CLIENT,
    _EXECUTION + "ExecutePipeline": _USERS,
    _EXECUTION + "WatchRun": _USERS,
    _EXECUTION + "GetRun": _USERS,
    _EXECUTION + "ListRuns": _USERS,
    _EXECUTION + "CancelRun": _USERS,
    _EXECUTION + "ProvideInput": _USERS,
    _EXECUTION + "CleanupEngine": _CLIENT,
    _EXECUTION + "ListEngines": _CLIENT | _OPERATORS,
    _EXECUTION + "ListThreads": _USERS,
    _EXECUTION + "GetThread": _USERS,
    _EXECUTION + "DeleteThread": _USERS,
    _EXECUTION + "GetArtifact": _USERS,
    _EXECUTION + "ListAuditRecords": _CLIENT | _OPERATORS,
    # The gateway reads counts for people with an operator's token.
    _EXECUTION + "GetFactoryMetrics": _GATEWAY | _OPERATORS,
    _EXECUTION + "ClaimOnce": _GATEWAY,
    _EXECUTION + "RevokeUser": frozenset({"operator"}),
    _EXECUTION + "ListRevocations": frozenset({"gateway", "operator"}),
    _EXECUTION + "SignOut": _GATEWAY,
    _EXECUTION + "RecordAudit": _GATEWAY,
    _INSTANCE + "ListAgents": frozenset({"gateway", "execution"}),
    _INSTANCE + "CreateInstance": _FROM_EXECUTION,
    _INSTANCE + "RunInstance": _FROM_EXECUTION,
    _INSTANCE + "ReleaseInstance": _FROM_EXECUTION,
    _INSTANCE + "GetPoolStatistics": _GATEWAY | _OPERATORS,
    _INSTANCE + "GetLoad": _FROM_EXECUTION,
    _EMITTER + "Emit": frozenset({"execution", "agent_instance"}),
    _EMITTER + "Notify": _CLIENT,
    _EMITTER + "GetEmitterStatistics": _OPERATORS,
    _EMITTER + "Revoke": _FROM_EXECUTION,
    _BRIDGE + "Publish": frozenset({"emitter"}),
    _BRIDGE + "Attach": _GATEWAY,
    # Execution reads for those who watch a run.
    _BRIDGE + "ReadEvents": frozenset({"gateway", "execution", "client"}),
    # The emitter asks for a run's fence, for Notify.
    _BRIDGE + "ResolveRun": frozenset({"gateway", "emitter", "client"}),
    # Gateways ask how many others a bridge has, to spread out.
    _BRIDGE + "GetState": _GATEWAY | _OPERATORS,
    _BRIDGE + "Revoke": _FROM_EXECUTION,
}
