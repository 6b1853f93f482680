"""How a client's connection stands, as values for whoever shows it. What brings them about is ``websocket.py``'s."""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["ConnectionState", "Phase"]


class Phase(enum.StrEnum):
    """What a client is doing about its connection."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    WAITING = "waiting"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """How the connection stands. ``reason`` is for a person; ``retry_s`` the wait before the next attempt.

    ``failures`` counts attempts in a row that came to nothing.
    """

    phase: Phase
    reason: str = ""
    retry_s: float = 0.0
    failures: int = 0
