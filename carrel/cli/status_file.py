"""Keeps the state folder's status file up to date while a stack runs. A disk without room never ends the stack.

Not what the file says (``stack``) nor where it is (``state``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from carrel.cli.state import StateFolder
from carrel.cli.supervisor import LogLine

__all__ = ["StatusFile"]

_AGAIN_S: Final = 1.0


class StatusFile:
    """The file, written at each change; a write that fails is told once and tried again until one succeeds.

    Args:
        state: The folder.
        facts: What to write, asked anew each time.
        log_line: Told of the first failure of a row, and of the success after it.
        again_s: Seconds until the next try.
    """

    def __init__(
        self, state: StateFolder, facts: Callable[[], dict[str, Any]], log_line: LogLine, again_s: float = _AGAIN_S
    ) -> None:
        self._state = state
        self._facts = facts
        self._log = log_line
        self._again_s = again_s
        self._failed = False
        self._again: asyncio.TimerHandle | None = None

    def write(self) -> None:
        """Write it now, or later when that fails."""
        self.close()
        try:
            self._state.write_stack(self._facts())
        except OSError as error:
            self._again = asyncio.get_running_loop().call_later(self._again_s, self.write)
            if not self._failed:
                self._log("carrel", f"{self._state.stack_file} can't be written: {error.strerror}; trying again")
            self._failed = True
            return
        if self._failed:
            self._log("carrel", f"{self._state.stack_file} is written again")
            self._failed = False

    def close(self) -> None:
        """Try no more."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
