"""How the end of a call to agent_instance is read: what it said, or that it is gone. And what is sent during one."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc
import pytest
from grpc import aio

from carrel.errors import InternalError, UnavailableError
from carrel.rpc_errors import to_status
from carrel.v1 import agent_instance_pb2 as ai
from servicekit.identity.keys import SigningKey, generate_key
from servicekit.identity.tickets import TicketMinter
from services.execution.client_agent_instance import _broken_off, _Stream
from services.execution.client_contexts import RunContexts
from services.execution.domain.ports import CancelStage
from services.execution.models import RunIdentity, UserKey


def _failure(code: grpc.StatusCode, *details: tuple[str, bytes]) -> aio.AioRpcError:
    return aio.AioRpcError(code, aio.Metadata(), aio.Metadata(*details), "Received RST_STREAM with error code 2")


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE], ids=lambda code: code.name
)
def test_a_call_that_ends_without_a_word_of_agent_instance_s_means_that_it_is_gone(code: grpc.StatusCode) -> None:
    assert isinstance(_broken_off(_failure(code)), UnavailableError)


def test_an_internal_error_of_agent_instance_s_own_is_no_loss() -> None:
    told = to_status(InternalError("a defect")).SerializeToString()
    error = _broken_off(_failure(grpc.StatusCode.INTERNAL, ("grpc-status-details-bin", told)))
    assert isinstance(error, InternalError)
    assert error.message == "a defect"


def test_a_refusal_keeps_its_kind() -> None:
    assert not isinstance(_broken_off(_failure(grpc.StatusCode.PERMISSION_DENIED)), UnavailableError)


class Exchanged:
    """A key that is exchanged while it is in use."""

    def __init__(self, key: SigningKey) -> None:
        self.key = key

    def current(self) -> SigningKey:
        return self.key


class Call:
    """A call that has heartbeats up, and keeps what goes down."""

    def __init__(self, beats: int) -> None:
        self.beats = beats
        self.sent: list[ai.RunInstanceRequest] = []

    async def write(self, request: ai.RunInstanceRequest) -> None:
        self.sent.append(request)

    async def __aiter__(self) -> AsyncIterator[ai.RunInstanceResponse]:
        for _ in range(self.beats):
            yield ai.RunInstanceResponse(heartbeat=ai.Heartbeat())


async def test_an_attempt_gets_a_ticket_of_the_new_key_with_the_next_heartbeat() -> None:
    signer, call = Exchanged(generate_key("old", issuer="execution")), Call(beats=4)
    run = RunIdentity(UserKey("alice"), "thread-1", "run-1", "req-1", created_at=int(time.time() * 1e6))
    context = RunContexts(TicketMinter(signer, "execution")).of(run, int((time.time() + 300) * 1e6))
    stream = _Stream(cast("Any", call), context, run)
    await stream.send(CancelStage("as any message", 1.0))
    kinds = []
    async for _ in stream:
        kinds.append([request.WhichOneof("message") for request in call.sent])
        if len(kinds) == 2:
            signer.key = generate_key("new", issuer="execution")
    assert kinds == [["cancel"], ["cancel"], ["cancel", "refresh"], ["cancel", "refresh"]]
    assert call.sent[0].context.ticket != call.sent[1].context.ticket == context().ticket
