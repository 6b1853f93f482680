"""Contexts under tickets of execution's own: for runs that it owns, and for its question to agent_instance."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final
from weakref import WeakValueDictionary

from carrel.context import UserExecutionContext
from carrel.ids import new_id
from carrel.v1 import context_pb2
from carrel.wire import context_to_proto
from servicekit.identity.principals import EXECUTION_ITSELF
from servicekit.identity.tickets import TicketMinter
from services.execution.models import Micros, RunIdentity, UserKey

__all__ = ["OUTLIVES_S", "RunContext", "RunContexts", "asking_context"]

# A run ticket outlives its run's deadline by this, so that the last events still travel under it.
OUTLIVES_S: Final = 900.0
# Renewed this long before it ends.
_MARGIN_S: Final = 120.0
_ASKING_S: Final = 60.0


class RunContext:
    """The context of one run, under a ticket minted from what was verified at admission. Call it for a fresh one."""

    def __init__(
        self,
        minter: TicketMinter,
        identity: RunIdentity,
        deadline_at: Micros,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._minter = minter
        self._identity = identity
        self.deadline_at = deadline_at
        self._deadline = deadline_at / 1_000_000
        self._clock = clock
        self._message = _message(identity)
        self._since = self._ends = 0.0
        self._kid = ""

    def __call__(self) -> context_pb2.UserExecutionContext:
        """The context; its ticket is good for ``_MARGIN_S`` at least, and of the key that signs now."""
        now, kid = self._clock(), self._minter.kid
        # A clock that was set back makes a ticket of before one that is not valid yet, and refused until it is.
        if kid != self._kid or not self._since <= now < self._ends - _MARGIN_S:
            identity = self._identity
            lifetime = max(0.0, self._deadline - now) + OUTLIVES_S
            # A new message: the former one may still wait to be sent.
            fresh = context_pb2.UserExecutionContext()
            fresh.CopyFrom(self._message)
            fresh.ticket = self._minter.mint_run(
                identity.user,
                identity.thread_id,
                identity.run_id,
                identity.request_id,
                identity.permissions,
                identity.limits,
                lifetime,
            )
            self._message, self._since, self._ends, self._kid = fresh, now, now + lifetime, kid
        return self._message


class RunContexts:
    """One ``RunContext`` per run, shared by all that speak for it: each ticket costs a signature here and a check at
    every service that it meets."""

    def __init__(self, minter: TicketMinter) -> None:
        self._minter = minter
        # Held by those who use them: the outbox's channel and the attempts.
        self._known: WeakValueDictionary[tuple[UserKey, str], RunContext] = WeakValueDictionary()
        self._asking: context_pb2.UserExecutionContext | None = None
        self._asking_until = 0.0
        self._asking_kid = ""

    def of(self, identity: RunIdentity, deadline_at: Micros) -> RunContext:
        """The run's context."""
        key = (identity.user, identity.run_id)
        context = self._known.get(key)
        if context is None or context.deadline_at != deadline_at:  # a run that waited has another one
            context = self._known[key] = RunContext(self._minter, identity, deadline_at)
        return context

    def asking_again(self) -> context_pb2.UserExecutionContext:
        """The same for questions that are asked every second: a new one only when the former is about to end, or the
        key that signs is another."""
        now, kid = time.monotonic(), self._minter.kid
        if self._asking is None or kid != self._asking_kid or now >= self._asking_until:
            self._asking, self._asking_until, self._asking_kid = self.asking(), now + _ASKING_S / 2, kid
        return self._asking

    def asking(self) -> context_pb2.UserExecutionContext:
        """See ``asking_context``."""
        return asking_context(self._minter)


def asking_context(minter: TicketMinter) -> context_pb2.UserExecutionContext:
    """A context to ask agent_instance for its registry with, which no user's request stands behind.

    Execution's key signs tickets of runs only, so this names a run that does not exist, of a user that nobody is.
    """
    user, thread, run, request = EXECUTION_ITSELF, new_id("thread"), new_id("run"), new_id("req")
    ticket = minter.mint_run(user, thread, run, request, lifetime_s=_ASKING_S)
    return context_pb2.UserExecutionContext(
        user_id=user, thread_id=thread, run_id=run, request_id=request, ticket=ticket
    )


def _message(identity: RunIdentity) -> context_pb2.UserExecutionContext:
    return context_to_proto(
        UserExecutionContext(
            user_id=identity.user,
            thread_id=identity.thread_id,
            run_id=identity.run_id,
            request_id=identity.request_id,
            websocket_client_id=identity.websocket_client_id or None,
            created_at=datetime.fromtimestamp(identity.created_at / 1_000_000, UTC),
            agent_context=identity.agent_context,
            audit_metadata=identity.audit_metadata,
        )
    )
