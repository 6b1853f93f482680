"""``ctx.memory``: what an agent keeps from one run of a thread to the next. One per user, thread and agent class::

    seen = json.loads(ctx.memory.data or b"[]")
    ctx.memory.keep(json.dumps([*seen, request.message]))

It is stored together with the stage's result, and counts once the whole run has succeeded: a run that fails, is
cancelled or taken back leaves what was there. Not a file of the user's: those are ``ctx.artifacts``.
"""

from __future__ import annotations

from typing import Final

from carrel.errors import InvalidRequestError, TooLargeError

__all__ = ["MAX_MEMORY_BYTES", "Memory"]

MAX_MEMORY_BYTES: Final = 256 * 1024


class Memory:
    """Made by the runtime; shared by all contexts of an attempt.

    Attributes:
        data: What was kept last in this thread, in a run that succeeded; empty in its first run, once it has ended
            (the deployment says after how long), and where there is no memory.
        available: Whether ``keep`` keeps: in the stage's own agent; not in a sub-agent, nor in a fallback.
    """

    def __init__(self, data: bytes = b"", *, available: bool = False) -> None:
        self.data = data
        self.available = available
        self.kept = b""

    def keep(self, data: bytes | str) -> None:
        """Keep this when the run succeeds, in the place of what was kept before; text as UTF-8. The last one counts.

        The run fails with ``QuotaError`` when all that the user's agents keep would be too much.

        Raises:
            TooLargeError: It is over 256 KiB.
            InvalidRequestError: It is empty, or there is no memory here.
        """
        content = data.encode() if isinstance(data, str) else bytes(data)
        if not self.available:
            raise InvalidRequestError(
                "there is no memory here", advice="keep it in the stage's own agent, not in a sub-agent or a fallback"
            )
        if not content:
            raise InvalidRequestError("there is nothing to keep", fields={"data": "is empty"})
        if len(content) > MAX_MEMORY_BYTES:
            raise TooLargeError(
                f"what is to be kept is {len(content)} bytes; at most {MAX_MEMORY_BYTES} are",
                advice="keep less: the newest messages, or references to artifacts",
                limit="memory_bytes",
                limit_value=MAX_MEMORY_BYTES,
                use=len(content),
            )
        self.kept = content
