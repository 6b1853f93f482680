"""Ends a caller's open streams when the ticket that opened them ends or is revoked, with an error that says so.

For streams that answer one request (``ReadEvents``, ``WatchRun``, …). Where items carry a context each, their handlers
verify each.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Final, TypeVar

from carrel.errors import TicketError
from servicekit.identity.principals import Principal
from servicekit.identity.tickets import TicketVerifier, expired_ticket, revoked_ticket
from servicekit.rpc.context import current_principal

__all__ = ["StreamGuard"]

T = TypeVar("T")
# What a timer takes at most; the clock is looked at again then.
_LONGEST_S: Final = 3600.0


class _Open:
    """One open stream. Its task is cancelled only while it is ours, never while it writes to the caller: what the
    library does then with a cancelled task would hide why."""

    def __init__(self, principal: Principal, task: asyncio.Task[Any]) -> None:
        self.principal = principal
        self.error: TicketError | None = None
        self.waits = True
        self._task = task

    def end(self, error: TicketError) -> None:
        if self.error is None:
            self.error = error
            if self.waits:
                self._task.cancel()

    def was_ours(self) -> bool:
        """Whether the cancellation that has come is the one above and no other."""
        return self.error is not None and self._task.uncancel() == 0


class StreamGuard:
    """The open streams of one server."""

    def __init__(self, verifier: TicketVerifier) -> None:
        self._verifier = verifier
        self._open: set[_Open] = set()

    def __len__(self) -> int:
        return len(self._open)

    def look(self) -> None:
        """Something was revoked: end what was opened under it."""
        is_revoked = self._verifier.is_revoked
        if is_revoked is not None:
            for stream in list(self._open):
                if is_revoked(stream.principal):
                    stream.end(revoked_ticket())

    async def guarded(self, responses: AsyncIterator[T]) -> AsyncGenerator[T]:
        """The responses of the call being served, until its caller's ticket is worth nothing.

        Raises:
            TicketExpiredError: It ended. A fresh ticket and the position of the last entry go on.
            TicketError: It was revoked.
        """
        task = asyncio.current_task()
        assert task is not None
        stream = _Open(current_principal(), task)
        self._open.add(stream)
        timer = self._until_its_end(stream)
        try:
            async with aclosing(responses) as opened:  # type: ignore[type-var]  # handlers are generators
                async for response in opened:
                    stream.waits = False
                    yield response
                    stream.waits = True
                    if stream.error is not None:
                        raise stream.error
        except asyncio.CancelledError:
            if not stream.was_ours():
                raise
            assert stream.error is not None
            raise stream.error from None
        finally:
            stream.waits = False
            self._open.discard(stream)
            timer[0].cancel()

    def _until_its_end(self, stream: _Open) -> list[asyncio.TimerHandle]:
        loop = asyncio.get_running_loop()
        ends = stream.principal.expires_at + self._verifier.leeway_s

        def look() -> None:
            left = ends - time.time()
            if left <= 0:
                stream.end(expired_ticket())
            else:
                timer[0] = loop.call_later(min(left, _LONGEST_S), look)

        timer = [loop.call_later(min(max(0.0, ends - time.time()), _LONGEST_S), look)]
        return timer
