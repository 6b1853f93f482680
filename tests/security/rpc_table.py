"""Every RPC of the contract: who serves it, which scopes it takes, a request for it, and what a good caller is told.

Written from the comments in the .proto files, not from the services' own table: the two are compared by calling.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from carrel.v1 import agent_instance_pb2, bridge_pb2, context_pb2, emitter_pb2, execution_pb2

__all__ = [
    "ROWS",
    "SERVERS",
    "Row",
    "call",
    "context_field",
    "items_field",
    "methods",
    "request_for",
    "services",
    "unary_rows",
]

RUN: Final = frozenset({"run"})
SESSION: Final = frozenset({"session"})
SERVICE: Final = frozenset({"service"})
USER: Final = RUN | SESSION
ASKING: Final = SESSION | SERVICE
ANY: Final = RUN | SESSION | SERVICE

OK: Final = grpc.StatusCode.OK
NOT_FOUND: Final = grpc.StatusCode.NOT_FOUND

# Which process serves a service of the contract.
SERVERS: Final[Mapping[str, str]] = {
    "carrel.v1.ExecutionService": "execution",
    "carrel.v1.AgentInstanceService": "agent_instance",
    "carrel.v1.EmitterService": "emitter",
    "carrel.v1.BridgeService": "bridge",
}
_FILES: Final = (execution_pb2, agent_instance_pb2, emitter_pb2, bridge_pb2)


@dataclass(frozen=True)
class Row:
    """One RPC. ``answer`` is the status for a good caller who asks for what does not exist, or for nothing much."""

    scopes: frozenset[str]
    fields: Mapping[str, Any] = field(default_factory=dict)
    answer: grpc.StatusCode = OK
    needs_operator: bool = False


_RUN_ID: Final = {"run_id": "run-1"}

ROWS: Final[Mapping[str, Row]] = {
    "carrel.v1.ExecutionService.CreateEngine": Row(SESSION),
    "carrel.v1.ExecutionService.ExecutePipeline": Row(RUN, {"message": "hello", "pipeline": ["echo"]}),
    "carrel.v1.ExecutionService.WatchRun": Row(USER, _RUN_ID, NOT_FOUND),
    "carrel.v1.ExecutionService.GetRun": Row(USER, _RUN_ID, NOT_FOUND),
    "carrel.v1.ExecutionService.ListRuns": Row(SESSION),
    "carrel.v1.ExecutionService.CancelRun": Row(USER, _RUN_ID, NOT_FOUND),
    "carrel.v1.ExecutionService.ProvideInput": Row(
        USER, {**_RUN_ID, "input_id": "input-1", "value_json": b"true"}, NOT_FOUND
    ),
    "carrel.v1.ExecutionService.CleanupEngine": Row(SESSION, {"engine_id": "eng-1"}),
    "carrel.v1.ExecutionService.ListEngines": Row(ASKING, needs_operator=True),
    "carrel.v1.ExecutionService.ListThreads": Row(SESSION),
    "carrel.v1.ExecutionService.GetThread": Row(SESSION, {"thread_id": "thread-1"}, NOT_FOUND),
    "carrel.v1.ExecutionService.DeleteThread": Row(SESSION, {"thread_id": "thread-1"}),
    "carrel.v1.ExecutionService.GetArtifact": Row(USER, {**_RUN_ID, "name": "report.md"}, NOT_FOUND),
    "carrel.v1.ExecutionService.ListAuditRecords": Row(ASKING, needs_operator=True),
    "carrel.v1.ExecutionService.GetFactoryMetrics": Row(SERVICE, needs_operator=True),
    "carrel.v1.ExecutionService.ClaimOnce": Row(
        SERVICE, {"name": "token-1", "expires_at": Timestamp(seconds=1_700_000_000)}
    ),
    "carrel.v1.ExecutionService.RevokeUser": Row(SERVICE, {"user_id": "nobody"}, needs_operator=True),
    "carrel.v1.ExecutionService.ListRevocations": Row(SERVICE, needs_operator=True),
    # A ticket that was minted from no login names nothing to sign out.
    "carrel.v1.ExecutionService.SignOut": Row(
        SESSION, {"expires_at": Timestamp(seconds=1_700_000_000)}, grpc.StatusCode.INVALID_ARGUMENT
    ),
    "carrel.v1.ExecutionService.RecordAudit": Row(
        SERVICE, {"user_id": "nobody", "action": "test.act"}, needs_operator=True
    ),
    "carrel.v1.AgentInstanceService.GetLoad": Row(RUN),
    "carrel.v1.AgentInstanceService.ListAgents": Row(ANY),
    "carrel.v1.AgentInstanceService.CreateInstance": Row(RUN, {"agent_name": "nobody"}, NOT_FOUND),
    "carrel.v1.AgentInstanceService.RunInstance": Row(RUN),
    "carrel.v1.AgentInstanceService.ReleaseInstance": Row(RUN, {"instance_id": "inst-1"}),
    "carrel.v1.AgentInstanceService.GetPoolStatistics": Row(SERVICE, needs_operator=True),
    "carrel.v1.EmitterService.Emit": Row(RUN),
    "carrel.v1.EmitterService.Notify": Row(
        RUN,
        {
            "idempotency_key": "key-1",
            "event_type": "agent_thinking",
            "agent_name": "echo",
            "data_json": b'{"text":"hello"}',
        },
    ),
    "carrel.v1.EmitterService.GetEmitterStatistics": Row(SERVICE, needs_operator=True),
    # Execution's own ticket alone says what is revoked; nobody's run is enough.
    "carrel.v1.EmitterService.Revoke": Row(RUN, {}, grpc.StatusCode.PERMISSION_DENIED),
    "carrel.v1.BridgeService.Revoke": Row(RUN, {}, grpc.StatusCode.PERMISSION_DENIED),
    "carrel.v1.BridgeService.Publish": Row(RUN),
    "carrel.v1.BridgeService.Attach": Row(SERVICE),
    "carrel.v1.BridgeService.ReadEvents": Row(USER, _RUN_ID, NOT_FOUND),
    "carrel.v1.BridgeService.ResolveRun": Row(USER, _RUN_ID, NOT_FOUND),
    "carrel.v1.BridgeService.GetState": Row(SERVICE, needs_operator=True),
}


def services() -> Iterator[ServiceDescriptor]:
    """Every service that the contract's files define."""
    for file in _FILES:
        yield from file.DESCRIPTOR.services_by_name.values()


def methods() -> dict[str, MethodDescriptor]:
    """Every RPC of the contract by its full name."""
    return {method.full_name: method for service in services() for method in service.methods}


def unary_rows() -> list[str]:
    """The RPCs with one request: answered by one response or by a stream."""
    return sorted(name for name, method in methods().items() if not method.client_streaming)


def context_field(message: Descriptor) -> FieldDescriptor | None:
    """The message's field 1, if it is a context called ``context``."""
    found = message.fields_by_number.get(1)
    if found is None or found.name != "context" or found.message_type is None or found.is_repeated:
        return None
    return found if found.message_type.full_name == "carrel.v1.UserExecutionContext" else None


def items_field(message: Descriptor) -> FieldDescriptor | None:
    """The message's field 1, if it is a batch of items."""
    found = message.fields_by_number.get(1)
    return found if found is not None and found.is_repeated and found.message_type is not None else None


def request_for(name: str, context: context_pb2.UserExecutionContext | None, /, **changes: Any) -> Message:
    """The row's request under a context."""
    kind = message_factory.GetMessageClass(methods()[name].input_type)
    return kind(context=context, **(dict(ROWS[name].fields) | changes))


async def call(
    channel: aio.Channel, name: str, request: Message, timeout: float | None = 10.0
) -> tuple[grpc.StatusCode, list[Any], grpc.RpcError | None]:
    """Call an RPC that takes one request; its status, what it answered, and the error."""
    method = methods()[name]
    path = f"/{method.containing_service.full_name}/{method.name}"
    response = message_factory.GetMessageClass(method.output_type)
    open_call: Any = channel.unary_stream if method.server_streaming else channel.unary_unary
    stub = open_call(
        path, request_serializer=type(request).SerializeToString, response_deserializer=response.FromString
    )
    running = stub(request, timeout=timeout)
    try:
        if method.server_streaming:
            return OK, [answer async for answer in running], None
        return OK, [await running], None
    except aio.AioRpcError as error:
        return error.code(), [], error
