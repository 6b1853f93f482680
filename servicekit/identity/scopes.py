"""One table: which scopes of ticket each RPC of the four services takes, and what a service ticket needs for it.

The server's interceptor enforces it for calls that begin with one request. On the bidirectional streams, whose items
carry a context each, the handler passes its method's entry (or a part of it) to the verifier for every item.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from servicekit.identity.principals import ANY_SCOPE, AUDIT_WRITE, OPERATOR_READ, OPERATOR_REVOKE, Scope

__all__ = ["METHOD_SCOPES", "SERVICE_PERMISSIONS", "Scope"]

_RUN: Final = frozenset({Scope.RUN})
_SESSION: Final = frozenset({Scope.SESSION})
_SERVICE: Final = frozenset({Scope.SERVICE})
_USER: Final = frozenset({Scope.SESSION, Scope.RUN})
_ASKING: Final = frozenset({Scope.SESSION, Scope.SERVICE})

_EXECUTION: Final = "/carrel.v1.ExecutionService/"
_INSTANCE: Final = "/carrel.v1.AgentInstanceService/"
_EMITTER: Final = "/carrel.v1.EmitterService/"
_BRIDGE: Final = "/carrel.v1.BridgeService/"

METHOD_SCOPES: Final[Mapping[str, frozenset[Scope]]] = {
    _EXECUTION + "CreateEngine": _SESSION,
    _EXECUTION + "ExecutePipeline": _RUN,
    _EXECUTION + "WatchRun": _USER,
    _EXECUTION + "GetRun": _USER,
    _EXECUTION + "ListRuns": _SESSION,
    _EXECUTION + "CancelRun": _USER,
    _EXECUTION + "ProvideInput": _USER,
    _EXECUTION + "CleanupEngine": _SESSION,
    _EXECUTION + "ListEngines": _ASKING,
    _EXECUTION + "ListThreads": _SESSION,
    _EXECUTION + "GetThread": _SESSION,
    _EXECUTION + "DeleteThread": _SESSION,
    _EXECUTION + "GetArtifact": _USER,
    _EXECUTION + "ListAuditRecords": _ASKING,
    _EXECUTION + "GetFactoryMetrics": _SERVICE,
    _EXECUTION + "ClaimOnce": _SERVICE,
    _EXECUTION + "RevokeUser": _SERVICE,
    _EXECUTION + "ListRevocations": _SERVICE,
    _EXECUTION + "SignOut": _SESSION,
    _EXECUTION + "RecordAudit": _SERVICE,
    _INSTANCE + "ListAgents": ANY_SCOPE,
    _INSTANCE + "CreateInstance": _RUN,
    _INSTANCE + "RunInstance": _RUN,
    _INSTANCE + "ReleaseInstance": _RUN,
    _INSTANCE + "GetPoolStatistics": _SERVICE,
    _INSTANCE + "GetLoad": _RUN,
    _EMITTER + "Emit": _RUN,
    _EMITTER + "Notify": _RUN,
    _EMITTER + "GetEmitterStatistics": _SERVICE,
    _BRIDGE + "Publish": _RUN,
    # The gateway's own ticket for `hello`; each user's for the rest. The handler tells them apart.
    _BRIDGE + "Attach": ANY_SCOPE,
    _BRIDGE + "ReadEvents": _USER,
    _BRIDGE + "ResolveRun": _USER,
    _BRIDGE + "GetState": _SERVICE,
}

# What a service ticket must hold, beyond being one. A method that is not here asks for nothing more.
SERVICE_PERMISSIONS: Final[Mapping[str, str]] = {
    _EXECUTION + "ListEngines": OPERATOR_READ,
    _EXECUTION + "ListAuditRecords": OPERATOR_READ,
    _EXECUTION + "GetFactoryMetrics": OPERATOR_READ,
    _EXECUTION + "RevokeUser": OPERATOR_REVOKE,
    _EXECUTION + "ListRevocations": OPERATOR_READ,
    _EXECUTION + "RecordAudit": AUDIT_WRITE,
    _INSTANCE + "GetPoolStatistics": OPERATOR_READ,
    _EMITTER + "GetEmitterStatistics": OPERATOR_READ,
    _BRIDGE + "GetState": OPERATOR_READ,
}
