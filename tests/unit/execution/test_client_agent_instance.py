"""How the end of a call to agent_instance is read: what it said, or that it is gone."""

from __future__ import annotations

import grpc
import pytest
from grpc import aio

from carrel.errors import InternalError, UnavailableError
from carrel.rpc_errors import to_status
from services.execution.client_agent_instance import _broken_off


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
