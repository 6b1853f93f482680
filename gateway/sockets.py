"""An upgraded connection: how a message is read as a frame, and how the connection is closed within a known time.

aiohttp's own close waits for a peer that may never answer, behind a buffer that it may never empty; here it is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any, Final, Protocol

from aiohttp import WSMessage, WSMsgType, web

from carrel.errors import CarrelError, FrameError
from gateway.close_codes import CloseCode
from gateway.encoding import control
from gateway.frames import Inbound, parse_frame

__all__ = ["MAX_MESSAGE_BYTES", "SUBPROTOCOL", "Ending", "Socket", "close_socket", "error_fields", "read_frame"]

SUBPROTOCOL: Final = "carrel.v1"
# Above our own bound, so that a frame that is too large gets an answer that says where it belongs.
MAX_MESSAGE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Socket:
    """aiohttp's view of the connection, and the transport below it, which takes frames that are encoded already."""

    ws: web.WebSocketResponse
    transport: asyncio.Transport


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a connection ends."""

    code: CloseCode
    error: CarrelError | None = None
    retry_ms: int = 0


class Unsent(Protocol):
    """Frames that were said and not yet written."""

    def take_rest(self) -> bytes: ...


def read_frame(message: WSMessage) -> Inbound:
    """A message of the socket as a frame.

    Raises:
        CarrelError: It is binary, too large, or no frame of the protocol.
    """
    if message.type is not WSMsgType.TEXT:
        raise FrameError("binary messages are not part of the protocol", advice="send JSON as text")
    return parse_frame(message.data)


def error_fields(error: CarrelError) -> dict[str, Any]:
    """An error as the fields of an ``error`` frame."""
    return error.to_dict()


async def close_socket(socket: Socket, ending: Ending, unsent: Unsent | None = None, within_s: float = 2.0) -> None:
    """Say why, close, and cut the connection if the peer does not answer in time. A stalled peer is cut at once."""
    transport = socket.transport
    if ending.code is not CloseCode.SLOW and not transport.is_closing():
        transport.write((unsent.take_rest() if unsent else b"") + _last_words(ending))
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(within_s):
                await socket.ws.close(code=int(ending.code), message=ending.code.name.lower().encode())
    transport.abort()


def _last_words(ending: Ending) -> bytes:
    code = ending.code
    error = control("error", error_fields(ending.error)) if ending.error else b""
    retry_ms = ending.retry_ms if code.reconnect else None
    return error + control(
        "bye", {"code": int(code), "reason": code.name.lower(), "reconnect": code.reconnect, "retry_ms": retry_ms}
    )
