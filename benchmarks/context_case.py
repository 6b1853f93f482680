"""The context alone: bytes on the wire, and the microseconds that checking it costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from carrel.context import UserExecutionContext
from carrel.ids import new_id
from carrel.wire import context_from_proto, context_to_proto
from servicekit.identity.keys import KeySet, generate_key
from servicekit.identity.tickets import TicketMinter, TicketVerifier

__all__ = ["context"]

_ROUNDS: Final = 20_000


async def context() -> dict[str, float]:
    """``wire_bytes`` beside the ticket; ``verify_us`` of a ticket seen before, ``verify_first_us`` of a new one."""
    key = generate_key(issuer="gateway")
    minter, verifier = TicketMinter(key, "gateway"), TicketVerifier(KeySet([key]))
    made = UserExecutionContext(
        user_id="alice@example.org",
        thread_id=new_id("thread"),
        run_id=new_id("run"),
        request_id=new_id("req"),
        websocket_client_id=new_id("conn"),
        agent_context={"locale": "en", "channel": "socket"},
        audit_metadata={"client": "carrel-cli", "address_hash": "0" * 16},
    )
    message = context_to_proto(made.with_ticket(_ticket(minter, made)))
    strangers = [context_to_proto(made.with_ticket(_ticket(minter, made))) for _ in range(200)]
    began = time.perf_counter()
    for stranger in strangers:
        verifier.verify(stranger)
    first_us = (time.perf_counter() - began) / len(strangers) * 1e6
    return {
        "wire_bytes": message.ByteSize() - len(message.ticket),
        "ticket_bytes": len(message.ticket),
        "validate_us": _each_us(lambda: context_from_proto(message)),
        "verify_us": _each_us(lambda: verifier.verify(message)),
        "verify_first_us": first_us,
    }


def _ticket(minter: TicketMinter, made: UserExecutionContext) -> str:
    permissions = ["trace:read", "trace:query", "optimize:run", "report:write"]
    return minter.mint_run(made.user_id, made.thread_id, made.run_id, made.request_id, permissions)


def _each_us(work: Callable[[], object]) -> float:
    """The best of five rounds: what it costs when nothing else has the core."""
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(_ROUNDS // 5):
            work()
        best = min(best, (time.perf_counter() - began) / (_ROUNDS // 5))
    return best * 1e6
