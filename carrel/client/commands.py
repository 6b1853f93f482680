"""Frames that wait for their answers: sent again on every connection until they are answered, told apart by client_ref.

Every command of the protocol is idempotent by its ``client_ref``, so sending it twice does it once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from carrel.client.backoff import Backoff
from carrel.error_base import from_dict
from carrel.errors import CarrelError, DeadlineError, Status

__all__ = ["Commands"]


@dataclass(slots=True)
class _Command:
    text: str
    answer: asyncio.Future[dict[str, Any]]


class Commands:
    """Args:
    send: Sends a text on the present connection, if there is one; what it cannot send is sent on the next.
    backoff: How often and how fast to ask again what a neighbour of the gateway's kept it from.
    why_waiting: What keeps answers from coming, as far as the client knows; for the error of one that never came.
    """

    def __init__(
        self, send: Callable[[str], Awaitable[None]], backoff: Backoff, why_waiting: Callable[[], str]
    ) -> None:
        self._send = send
        self._backoff = backoff
        self._why_waiting = why_waiting
        self._waiting: dict[str, _Command] = {}
        self._failure: CarrelError | None = None

    @property
    def texts(self) -> list[str]:
        """The frames without an answer, for a new connection."""
        return [command.text for command in self._waiting.values()]

    def answer(self, frame: Mapping[str, Any]) -> bool:
        """Whether the frame answers a command."""
        ref = frame.get("client_ref") if "type" in frame else None
        command = self._waiting.get(ref) if isinstance(ref, str) else None
        if command is None:
            return False
        if not command.answer.done():
            if frame["type"] == "error":
                command.answer.set_exception(from_dict(frame))
            else:
                command.answer.set_result(dict(frame))
        return True

    def fail(self, error: CarrelError) -> None:
        """No answer comes any more."""
        self._failure = error
        for command in self._waiting.values():
            if not command.answer.done():
                command.answer.set_exception(error)

    async def ask(self, ref: str, frame: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """The answer to a frame.

        Raises:
            CarrelError: It was refused, or not answered in time.
        """
        failures = 0
        last: CarrelError | None = None
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    try:
                        return await self._once(ref, frame)
                    except CarrelError as error:
                        # The gateway's own neighbours may be away for a moment; the same ref makes asking again safe.
                        if error.status is not Status.UNAVAILABLE or self._failure is not None:
                            raise
                        last = error
                        failures += 1
                        delay = self._backoff.delay_s(failures, error.retry_after_s or 0.0)
                        if delay is None:
                            raise
                        await asyncio.sleep(delay)
        except TimeoutError:
            if last is not None:
                # It was answered, and that says more than how long was waited.
                raise last from None
            why = self._why_waiting()
            raise DeadlineError(
                f"no answer to {frame['type']} came within {timeout_s:g} s" + (f": {why}" if why else "")
            ) from None

    async def _once(self, ref: str, frame: Mapping[str, Any]) -> dict[str, Any]:
        if self._failure is not None:
            raise self._failure
        command = _Command(
            orjson.dumps({**frame, "client_ref": ref}).decode(), asyncio.get_running_loop().create_future()
        )
        self._waiting[ref] = command
        try:
            await self._send(command.text)
            return await command.answer
        finally:
            if self._waiting.get(ref) is command:
                del self._waiting[ref]
