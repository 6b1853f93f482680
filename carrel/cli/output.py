"""Lines for a terminal: prefixed logs of several processes, errors with what to do. Colour only where it is seen.

Events of a run are ``render.py``'s.
"""

from __future__ import annotations

import json
import math
import os
import sys
from typing import Final, TextIO

from carrel.errors import CarrelError, LimitExceededError, StartupError, Status

__all__ = [
    "EXIT_CONFIGURATION",
    "EXIT_FAILED",
    "EXIT_INTERRUPTED",
    "EXIT_OK",
    "EXIT_REFUSED",
    "EXIT_USAGE",
    "EXIT_WAITING",
    "JsonPrinter",
    "Printer",
    "exit_code_of",
]

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_REFUSED: Final = 3
EXIT_WAITING: Final = 4  # the run waits for an answer that nobody here gives
EXIT_CONFIGURATION: Final = 78  # EX_CONFIG of sysexits.h, as the services' own
EXIT_INTERRUPTED: Final = 130

_COLOURS: Final = {
    "gateway": "36",
    "execution": "32",
    "agent_instance": "35",
    "emitter": "33",
    "bridge": "34",
    "carrel": "1",
    "alice": "36",
    "bob": "35",
}
_SPARE: Final = ("36", "35", "33", "32", "34")
_FAILURES: Final = frozenset(
    {Status.UNAVAILABLE, Status.DEADLINE_EXCEEDED, Status.INTERNAL, Status.UNKNOWN, Status.DATA_LOSS, Status.CANCELLED}
)


class Printer:
    """Prints lines with a prefix that says whose they are.

    Args:
        stream: Where to; standard output when None.
        width: Of the prefix.
    """

    def __init__(self, stream: TextIO | None = None, width: int = 14) -> None:
        self._stream = stream or sys.stdout
        self._width = width
        self.colour = _wants_colour(self._stream)

    def line(self, name: str, text: str) -> None:
        """One line, or several, of one process or user."""
        prefix = self.paint(f"{name:<{self._width}}", _COLOURS.get(name) or _SPARE[len(name) % len(_SPARE)])
        for part in text.split("\n"):
            self.say(f"{prefix} │ {part}" if part else prefix + " │")

    def say(self, text: str = "") -> None:
        """A line as it is."""
        self.put(text + "\n")

    def put(self, text: str) -> None:
        """Text as it is, with no line end after it."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:
            # Whoever read the output has gone (`carrel up | head`); what happens goes on without being told.
            self._stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 -- until the process ends
        except OSError:
            # Standard output on a full disk: what is said is lost, and nobody's process ends for it.
            return

    def error(self, error: CarrelError) -> None:
        """An error, and what to do about it, on standard error."""
        text = f"{self.paint('error:', '1;31')} {error.message}"
        if isinstance(error, LimitExceededError) and error.limit:
            text += f"\n  limit: {error.limit} is {error.limit_value}, in use: {error.use}"
        if error.advice:
            text += f"\n  {self.paint('to do:', '1')} {error.advice}"
        if error.retry_after_s is not None:
            text += f"\n  try again in {max(1, math.ceil(error.retry_after_s))} s"
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def paint(self, text: str, code: str) -> str:
        """The text in a colour, where colours are shown."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text else text


class JsonPrinter(Printer):
    """Prints processes' JSON logs as they are, and makes what is said otherwise one object a line, too."""

    def line(self, name: str, text: str) -> None:
        """One line, or several, of one process."""
        for part in text.split("\n"):
            self.say(part if _is_object(part) else json.dumps({"service": name, "event": part}, ensure_ascii=False))

    def paint(self, text: str, code: str) -> str:
        """The text: what reads JSON wants no colours."""
        return text


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def exit_code_of(error: CarrelError) -> int:
    """78 for wrong settings, 3 when somebody refused the request as it is, 1 when something did not work."""
    if isinstance(error, StartupError) and error.phase == "CONFIGURATION":
        return EXIT_CONFIGURATION
    return EXIT_FAILED if error.status in _FAILURES or error.code == "STARTUP" else EXIT_REFUSED


def _wants_colour(stream: TextIO) -> bool:
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or stream.isatty()
