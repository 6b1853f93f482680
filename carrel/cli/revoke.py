"""``carrel revoke``: ends what a user has begun on this machine's stack, for whoever may read its keys."""

from __future__ import annotations

from typing import Final

import grpc

from carrel.cli.operators import execution_address, operator_channel, operator_ticket
from carrel.cli.output import EXIT_OK, Printer
from carrel.cli.state import StateFolder
from carrel.rpc_errors import from_rpc_error
from carrel.v1 import context_pb2, execution_pb2
from carrel.v1.execution_pb2_grpc import ExecutionServiceStub

__all__ = ["revoke_user"]

_CALL_S: Final = 10.0
_LIFETIME_S: Final = 60.0


async def revoke_user(state: StateFolder, user_id: str, reason: str) -> int:
    """Revoke the user's logins of before now and cancel their runs; the exit code.

    Raises:
        StartupError: No stack runs in the state folder.
        CarrelError: Execution refused or cannot be reached.
    """
    from servicekit.identity.principals import OPERATOR_REVOKE

    _ = execution_address(state)  # where no stack runs, that is what is said
    context = context_pb2.UserExecutionContext(ticket=operator_ticket(state, (OPERATOR_REVOKE,), _LIFETIME_S))
    request = execution_pb2.RevokeUserRequest(context=context, user_id=user_id, reason=reason)
    async with operator_channel(state) as channel:
        try:
            answer = await ExecutionServiceStub(channel).RevokeUser(request, timeout=_CALL_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
    runs = "1 run was" if answer.cancelled_runs == 1 else f"{answer.cancelled_runs} runs were"
    Printer().say(
        f"{user_id} is out: {runs} cancelled; within seconds every service refuses logins and tickets from before, "
        "and what was open under them ends."
    )
    return EXIT_OK
