"""Frames between host and worker, and what a worker's port does with a message that is too large to travel: the error
that says so goes in its place.

Shared by every kind of worker, so that an oversize result reads the same whatever carries it.
"""

from __future__ import annotations

import struct
from typing import Final

from carrel.agent_codec import encode
from carrel.agent_messages import Failure, Result, ToolBodyResult, UpMessage
from carrel.errors import TooLargeError, ToolFailedError

__all__ = ["HEADER", "encode_fitting"]

# Before each message on a socket: how many bytes it has, at most ``MAX_MESSAGE_BYTES``.
HEADER: Final = struct.Struct("!I")


def encode_fitting(message: UpMessage) -> bytes:
    """The message as bytes; an end that is over the bound of a frame becomes the failure it is.

    Raises:
        TooLargeError: Another message is over the bound: its sender asked for it, and hears of it.
    """
    try:
        return encode(message)
    except TooLargeError as error:
        match message:
            case Result():
                return encode(Failure(error.to_dict()))
            case ToolBodyResult():
                failed = ToolFailedError(f"the tool's result cannot be passed on: {error.message}", advice=error.advice)
                return encode(ToolBodyResult(message.tool_call_id, error=failed.to_dict()))
            case _:
                raise
