"""How often ``carrel run`` and ``carrel watch`` connect again when their connection is lost, and how fast."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from carrel.client import Backoff
from carrel.errors import StartupError

__all__ = ["DEFAULT_RECONNECTS", "RECONNECTS_NAME", "reconnect_backoff", "reconnects"]

# The name that the design documents give it.
RECONNECTS_NAME: Final = "WEBSOCKET_MAX_RECONNECT_ATTEMPTS"
DEFAULT_RECONNECTS: Final = 3
_MOST: Final = 10_000


def reconnects(environ: Mapping[str, str] | None = None) -> int:
    """How many attempts in a row may fail.

    Raises:
        StartupError: What is set is no such number.
    """
    environ = os.environ if environ is None else environ
    text = environ.get(RECONNECTS_NAME, "").strip()
    if not text:
        return DEFAULT_RECONNECTS
    if text.isascii() and text.isdigit() and len(text) <= len(str(_MOST)) and int(text) <= _MOST:
        return int(text)
    raise StartupError(
        f"{RECONNECTS_NAME}={text[:80]} is wrong: write a whole number from 0 to {_MOST}, "
        f"for example {DEFAULT_RECONNECTS}",
        advice=f"correct or remove {RECONNECTS_NAME}",
        phase="CONFIGURATION",
    )


def reconnect_backoff(environ: Mapping[str, str] | None = None) -> Backoff:
    """The waits: so few attempts are to outlast a gateway that is started anew, so they are well apart.

    Raises:
        StartupError: As for ``reconnects``.
    """
    # The loss of the connection counts as the first failure.
    return Backoff(attempts=reconnects(environ) + 1, first_s=0.5, longest_s=15.0, factor=4.0, steady=0.5)
