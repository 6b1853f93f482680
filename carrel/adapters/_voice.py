"""``Voice``: what an agent of another library says and does, as events of its context.

Text as it streams becomes ``agent_message`` or ``agent_thinking``, joined as the host joins a model's. Calls of the
library's own tools become ``tool_executing`` and ``tool_completed``, which the host marks ``reported``; those that pass
the dispatcher are told by the host, and left out here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal

from carrel.adapters._values import shown
from carrel.agent_context import AgentContext
from carrel.frozen import JSON
from carrel.function_names import function_names
from carrel.speech import Speech

__all__ = ["Voice", "voice_of"]

Kind = Literal["message", "thinking"]
Status = Literal["error", "timeout", "cancelled"]


class Voice:
    """One agent's. Made by ``voice_of``."""

    def __init__(self, ctx: AgentContext, told_by_host: Collection[str] = ()) -> None:
        self._ctx = ctx
        self._told_by_host = frozenset([*ctx.tools, *function_names(ctx.tools), *told_by_host])
        self._speech: Speech | None = None
        self._about: tuple[Kind, str] | None = None
        self._message_id: str | None = None
        self._calls: dict[str, tuple[str, str, float]] = {}
        self._last = 0
        self._lock = asyncio.Lock()

    async def say(self, piece: str, kind: Kind = "message", part: str = "") -> None:
        """A piece of text. One of another kind, or of another ``part``, begins anew."""
        if not piece:
            return
        async with self._lock:
            if self._about != (kind, part):
                await self._end()
                self._about, self._message_id = (kind, part), None
                self._speech = await Speech(self._think if kind == "thinking" else self._tell).__aenter__()
            assert self._speech is not None
            await self._speech.add(piece)

    async def think(self, text: str, **data: JSON) -> None:
        """Say at once what is going on."""
        await self.pause()
        await self._ctx.thinking(text, **data)

    async def pause(self) -> None:
        """Say all that has been added; what comes then begins anew."""
        async with self._lock:
            await self._end()

    async def called(self, call_id: str, name: str, arguments: object) -> None:
        """A tool of the library's own is about to run."""
        if name in self._told_by_host:
            return
        await self.pause()
        self._last += 1
        # Some models number their calls anew in each answer.
        own_id = f"{self._last}-{call_id}"
        self._calls[call_id] = (own_id, name, time.monotonic())
        told = shown(arguments)
        data = {"tool_name": name, "tool_call_id": own_id, "arguments": told if isinstance(told, dict) else {"…": told}}
        await self._ctx._emit("tool_executing", data)  # noqa: SLF001  (one library in two parts)

    async def returned(
        self, call_id: str, result: object = None, *, error: str | None = None, status: Status = "error"
    ) -> None:
        """A call that ``called`` has told of has ended; with an ``error``, ``status`` says how."""
        if (call := self._calls.pop(call_id, None)) is None:
            return
        own_id, name, began = call
        seconds = time.monotonic() - began
        data: dict[str, Any] = {"tool_name": name, "tool_call_id": own_id, "duration_ms": round(seconds * 1000, 3)}
        if error is None:
            data |= {"status": "ok", "result": shown(result)}
        else:
            data |= {"status": status, "error": {"code": "TOOL_FAILED", "message": str(shown(error))[:2048]}}
        await self._ctx._emit("tool_completed", data)  # noqa: SLF001  (one library in two parts)

    async def _tell(self, text: str) -> None:
        begins = self._message_id is None
        # What an earlier attempt has said under this name is replaced, not continued in its middle.
        said: Mapping[str, str] = {"text" if begins and self._ctx.attempt > 1 else "delta": text}
        self._message_id = await self._ctx.message(**said, message_id=self._message_id)

    async def _think(self, text: str) -> None:
        await self._ctx.thinking(text, delta=True)

    async def _end(self, error: BaseException | None = None) -> None:
        speech, self._speech, self._about = self._speech, None, None
        if speech is not None:
            await speech.__aexit__(None if error is None else type(error), error, None)


@asynccontextmanager
async def voice_of(ctx: AgentContext, told_by_host: Collection[str] = ()) -> AsyncIterator[Voice]:
    """A voice for the length of the block; leaving it says the rest, unless an error leaves it.

    Args:
        told_by_host: Function names, beside the context's tools, whose calls the host tells.
    """
    voice = Voice(ctx, told_by_host)
    try:
        yield voice
    except BaseException as error:
        await voice._end(error)  # noqa: SLF001  (one class in two parts)
        raise
    await voice.pause()
