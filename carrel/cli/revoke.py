"""``carrel revoke``: ends what a user has begun until now, everywhere."""

from __future__ import annotations

from carrel.cli.operators import Operator
from carrel.cli.output import EXIT_OK, Printer

__all__ = ["revoke_user"]


async def revoke_user(operator: Operator, user_id: str, reason: str) -> int:
    """Revoke the user's logins of before now and cancel their runs; the exit code.

    Raises:
        CarrelError: The gateway or execution refused, or cannot be reached.
    """
    from servicekit.identity.principals import OPERATOR_REVOKE

    async with operator.calls(OPERATOR_REVOKE) as calls:
        answer = await calls.revoke_user(user_id, reason)
    runs = "1 run was" if answer.cancelled_runs == 1 else f"{answer.cancelled_runs} runs were"
    Printer().say(
        f"{user_id} is out: {runs} cancelled; within seconds every service refuses logins and tickets from before, "
        "and what was open under them ends."
    )
    return EXIT_OK
