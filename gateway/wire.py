"""WebSocket messages as bytes, RFC 6455 and 7692: what comes in is parsed and bounded here, control frames are built.

Instead of aiohttp's, whose objects and tasks hold 25 KB for each open connection. Pure state: no transport, no clock.
What text messages mean is frames'.
"""

from __future__ import annotations

import enum
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple

__all__ = ["PING", "Message", "MessageReader", "Opcode", "WireError", "close_frame", "deflated", "pong_frame"]

PING: Final = b"\x89\x00"
_FIN: Final = 0x80
_RSV1: Final = 0x40
_OTHER_RSV: Final = 0x30
_MOST_CONTROL: Final = 125
_NO_CODE: Final = 1005
# What RFC 7692 §7.2.1 cuts off each message.
_TAIL: Final = b"\x00\x00\xff\xff"
# Below this size a message is not worth compressing.
_LEAST_DEFLATED: Final = 128


class Opcode(enum.IntEnum):
    """RFC 6455 §5.2."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class Message(NamedTuple):
    """A whole message or a control frame. ``text`` is a text message's, ``data`` every other's; ``code`` a close's."""

    opcode: Opcode
    text: str = ""
    data: bytes = b""
    code: int = 0


class WireError(Exception):
    """The peer broke the protocol; nothing that follows can be understood. ``code`` is the close code for it."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


_OPCODES: Final = {int(opcode): opcode for opcode in Opcode}


class MessageReader:
    """Turns a client's bytes into messages.

    Args:
        most_bytes: How large a message may be, unpacked.
        deflate: Whether permessage-deflate was agreed on, without context takeover.
    """

    __slots__ = ("_at", "_buffer", "_deflate", "_deflated", "_kind", "_most", "_parts", "_size")

    def __init__(self, most_bytes: int, *, deflate: bool = False) -> None:
        self._most = most_bytes
        self._deflate = deflate
        # Nothing is held for a connection that is silent.
        self._buffer: bytes | bytearray | None = None
        # Where in it the next frame begins.
        self._at = 0
        self._parts: list[bytes] | None = None
        self._kind = Opcode.TEXT
        self._deflated = False
        self._size = 0

    def feed(self, data: bytes) -> None:
        """Take in what the peer has sent, for ``read``.

        Bounded by whoever calls: what is fed while ``read`` has not come to its end is held besides the one message of
        ``most_bytes`` that may be incomplete.
        """
        held = self._buffer
        if held is None:
            self._buffer = data
        elif isinstance(held, bytearray):
            held += data
        else:
            self._buffer = bytearray(held[self._at :]) + data
            self._at = 0

    def read(self) -> Iterator[Message | None]:
        """For each frame that has come whole, the message that it completes, or None if it completes none.

        It may be left at any frame; the next call goes on behind that one.

        Raises:
            WireError: After the messages before it.
        """
        while self._buffer is not None and (frame := self._frame(self._buffer, self._at)) is not None:
            first, payload, self._at = frame
            if self._at == len(self._buffer):
                self._buffer, self._at = None, 0
            yield self._message(first, payload)
        left = self._buffer
        if left is not None and (self._at or isinstance(left, bytes)):
            # It waits for its other part, without what was before it.
            self._buffer, self._at = bytearray(left[self._at :]) or None, 0

    def _frame(self, view: bytes | bytearray, at: int) -> tuple[int, bytes, int] | None:
        """The first byte of the frame at ``at``, its payload unmasked, and where the next begins; None when it is not
        whole yet."""
        if len(view) - at < 2:
            return None
        first, second = view[at], view[at + 1]
        size, start = second & 0x7F, at + 2
        self._check(first, masked=bool(second & 0x80), size=size)
        if size >= 126:
            length = 2 if size == 126 else 8
            if len(view) < start + length:
                return None
            size = int.from_bytes(view[start : start + length], "big")
            start += length
        if not first & 0x08 and self._size + size > self._most:
            raise WireError(1009, f"a message may have {self._most} bytes")
        end = start + 4 + size
        if len(view) < end:
            return None
        return first, _unmasked(bytes(view[start + 4 : end]), bytes(view[start : start + 4])), end

    def _check(self, first: int, *, masked: bool, size: int) -> None:
        opcode = _OPCODES.get(first & 0x0F)
        if opcode is None:
            raise WireError(1002, "the opcode is not known")
        if first & _OTHER_RSV or (first & _RSV1 and not (self._deflate and opcode in {Opcode.TEXT, Opcode.BINARY})):
            raise WireError(1002, "a reserved bit is set")
        if not masked:
            raise WireError(1002, "a client's frame must be masked")
        if opcode >= Opcode.CLOSE:
            if not first & _FIN or size > _MOST_CONTROL:
                raise WireError(1002, "a control frame is fragmented or too large")
        elif (opcode is Opcode.CONTINUATION) is (self._parts is None):
            raise WireError(1002, "a message's fragments are out of order")

    def _message(self, first: int, payload: bytes) -> Message | None:
        opcode = _OPCODES[first & 0x0F]
        if opcode is Opcode.CLOSE:
            return _close(payload)
        if opcode >= Opcode.CLOSE:
            return Message(opcode, data=payload)
        if opcode is not Opcode.CONTINUATION:
            self._kind, self._deflated = opcode, bool(first & _RSV1)
        if not first & _FIN:
            self._parts = [*(self._parts or ()), payload]
            self._size += len(payload)
            if len(self._parts) > 64:
                # Joined now and then: tiny fragments must not cost an object each.
                self._parts = [b"".join(self._parts)]
            return None
        if self._parts is not None:
            payload = b"".join((*self._parts, payload))
            self._parts, self._size = None, 0
        if self._deflated:
            payload = self._inflated(payload)
        if self._kind is Opcode.BINARY:
            return Message(Opcode.BINARY, data=payload)
        try:
            return Message(Opcode.TEXT, text=payload.decode())
        except UnicodeDecodeError:
            raise WireError(1007, "a text message is not UTF-8") from None

    def _inflated(self, payload: bytes) -> bytes:
        unpacking = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            whole = unpacking.decompress(payload + _TAIL, self._most + 1)
        except zlib.error:
            raise WireError(1007, "a message cannot be unpacked") from None
        if len(whole) > self._most:
            raise WireError(1009, f"a message may have {self._most} bytes")
        return whole


def close_frame(code: int, reason: str = "") -> bytes:
    """A server's close frame; without a code for 1005, which is never sent."""
    payload = b"" if code == _NO_CODE else code.to_bytes(2, "big") + reason.encode()[:123]
    return bytes((_FIN | Opcode.CLOSE, len(payload))) + payload


def pong_frame(data: bytes) -> bytes:
    """The answer to a ping."""
    return bytes((_FIN | Opcode.PONG, len(data))) + data


def deflated(wire: bytes, window_bits: int = zlib.MAX_WBITS) -> bytes:
    """A server's unfragmented text frame, compressed when that makes it smaller.

    Each message stands alone: a compressor that is kept costs 100 KB and more for each connection.
    """
    size = wire[1]
    head = 2 if size < 126 else 4 if size == 126 else 10
    if len(wire) - head < _LEAST_DEFLATED:
        return wire
    packing = zlib.compressobj(1, zlib.DEFLATED, -window_bits)
    packed = packing.compress(memoryview(wire)[head:]) + packing.flush(zlib.Z_SYNC_FLUSH)
    packed = packed[: -len(_TAIL)]
    if len(packed) >= len(wire) - head:
        return wire
    size = len(packed)
    first = bytes((wire[0] | _RSV1,))
    if size < 126:
        return first + bytes((size,)) + packed
    if size < 65536:
        return first + b"\x7e" + size.to_bytes(2, "big") + packed
    return first + b"\x7f" + size.to_bytes(8, "big") + packed


def _close(payload: bytes) -> Message:
    if not payload:
        return Message(Opcode.CLOSE, code=_NO_CODE)
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or not (code in {1000, 1001, 1002, 1003} or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        raise WireError(1002, "the close code is none that may be sent")
    try:
        return Message(Opcode.CLOSE, text=payload[2:].decode(), code=code)
    except UnicodeDecodeError:
        raise WireError(1007, "the close reason is not UTF-8") from None


def _unmasked(payload: bytes, key: bytes) -> bytes:
    size = len(payload)
    if key == b"\x00\x00\x00\x00" or not size:
        return payload
    # As two long numbers, which is 30 times as fast as byte by byte.
    mask = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(mask, "little")).to_bytes(size, "little")
