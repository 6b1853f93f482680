"""Why a socket is closed: one table. 4000-4499 tell a client to come back, 4500-4999 that coming back changes nothing.

The numbers are part of the protocol (docs/protocol.md) and never change their meaning. Not here: HTTP status before
the upgrade, which is the error tree's own.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from carrel.errors import CarrelError, Status, TooLargeError

__all__ = ["CloseCode", "close_code_for"]


class CloseCode(enum.IntEnum):
    """A close code of ours."""

    DRAIN = 4000
    SLOW = 4001
    EXPIRED = 4002
    UPSTREAM = 4003
    INTERNAL = 4004
    ACK_TIMEOUT = 4005
    BAD_TOKEN = 4500
    BAD_FRAME = 4501
    FORBIDDEN = 4503
    LIMIT = 4504
    HANDSHAKE_TIMEOUT = 4505

    @property
    def reconnect(self) -> bool:
        """Whether the client is to come back with its position."""
        return self < 4500


_BY_STATUS: Final[Mapping[Status, CloseCode]] = {
    Status.UNAUTHENTICATED: CloseCode.BAD_TOKEN,
    Status.PERMISSION_DENIED: CloseCode.FORBIDDEN,
    Status.INVALID_ARGUMENT: CloseCode.BAD_FRAME,
    Status.RESOURCE_EXHAUSTED: CloseCode.LIMIT,
    Status.UNAVAILABLE: CloseCode.UPSTREAM,
    Status.DEADLINE_EXCEEDED: CloseCode.UPSTREAM,
}


def close_code_for(error: CarrelError) -> CloseCode:
    """The code that ends a connection on which nothing else can follow this error."""
    if isinstance(error, TooLargeError):
        return CloseCode.BAD_FRAME
    return _BY_STATUS.get(error.status, CloseCode.INTERNAL)
