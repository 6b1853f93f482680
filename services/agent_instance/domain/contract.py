"""What decides the clauses of the instance layer's contract; its text is in ``servicekit.layers``."""

from __future__ import annotations

from typing import Final

from servicekit.layers import layer_contract

__all__ = ["AGENT_INSTANCE"]

AGENT_INSTANCE: Final = layer_contract(
    "agent_instance",
    {
        "needs.run": lambda caller: caller.context.scope == "run",
        "gives.owner": lambda item: bool(item.user_id and item.run_id),
        "gives.fresh": lambda item: not item.running,
    },
)
