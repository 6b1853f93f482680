"""The upgrade of an HTTP request to a WebSocket: what is checked, what is answered. RFC 6455 §4.2, RFC 7692 §7.

Not who may connect: that is the handshake's.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from aiohttp import hdrs, web

from carrel.errors import InvalidRequestError
from gateway.rest.http import query

__all__ = ["DEFLATE", "SUBPROTOCOL", "Upgrade", "check_upgrade"]

SUBPROTOCOL: Final = "carrel.v1"
# The query parameter and the header by which a client asks for permessage-deflate beside offering it.
DEFLATE: Final = "deflate"
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_EXTENSION: Final = "permessage-deflate"
_NO_TAKEOVER: Final = ("server_no_context_takeover", "client_no_context_takeover")


@dataclass(frozen=True, slots=True)
class Upgrade:
    """A request that can be upgraded.

    Args:
        accept: The value of Sec-WebSocket-Accept.
        subprotocol: Ours when the client offers it, else empty.
        deflate_bits: The window of permessage-deflate when that is agreed on, else 0.
        names_bits: Whether the answer must name the window, since the offer did.
    """

    accept: str
    subprotocol: str = ""
    deflate_bits: int = 0
    names_bits: bool = False

    def response(self, headers: Mapping[str, str]) -> bytes:
        """The answer that makes the connection a WebSocket."""
        lines = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Accept": self.accept,
            **({"Sec-WebSocket-Protocol": self.subprotocol} if self.subprotocol else {}),
            **({"Sec-WebSocket-Extensions": self._extension()} if self.deflate_bits else {}),
            **headers,
        }
        text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return f"HTTP/1.1 101 Switching Protocols\r\n{text}\r\n".encode()

    def _extension(self) -> str:
        bits = (f"server_max_window_bits={self.deflate_bits}",) if self.names_bits else ()
        return "; ".join((_EXTENSION, *_NO_TAKEOVER, *bits))


def check_upgrade(request: web.BaseRequest, *, allow_deflate: bool) -> Upgrade:
    """What the request asks for.

    Raises:
        InvalidRequestError: It is no request for a WebSocket of version 13, or has wrong parameters.
    """
    headers = request.headers
    connection = {part.strip().lower() for part in headers.get(hdrs.CONNECTION, "").split(",")}
    key = _key(headers.get(hdrs.SEC_WEBSOCKET_KEY, ""))
    if (
        headers.get(hdrs.UPGRADE, "").strip().lower() != "websocket"
        or "upgrade" not in connection
        or headers.get(hdrs.SEC_WEBSOCKET_VERSION, "").strip() != "13"
        or key is None
    ):
        raise InvalidRequestError(
            "this address takes WebSocket connections only", advice="open it with a WebSocket client, version 13"
        )
    # SHA-1 as the RFC has it: it proves that the answer is to this request, and guards nothing.
    accept = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest()).decode()
    offered = {part.strip() for value in headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, ()) for part in value.split(",")}
    asked = _asks_deflate(request)
    bits, named = (
        _deflate_bits(headers.getall(hdrs.SEC_WEBSOCKET_EXTENSIONS, ())) if allow_deflate and asked else (0, False)
    )
    return Upgrade(accept, SUBPROTOCOL if SUBPROTOCOL in offered else "", bits, named)


def _asks_deflate(request: web.BaseRequest) -> bool:
    """Whether the client wants permessage-deflate, by the address or a header.

    Raises:
        InvalidRequestError: What it says of it is neither yes nor no, or the address has other parameters.
    """
    given = query(request, (DEFLATE,))
    said = {value for value in (given.get(DEFLATE), request.headers.get(DEFLATE)) if value is not None}
    if wrong := said - {"0", "1"}:
        problem = "must be 1 or 0"
        raise InvalidRequestError(f"{DEFLATE} {problem}, not {min(wrong)[:40]!r}", fields={DEFLATE: problem})
    return "1" in said


def _key(text: str) -> bytes | None:
    text = text.strip()
    try:
        return text.encode("ascii") if len(base64.b64decode(text, validate=True)) == 16 else None
    except (binascii.Error, ValueError):
        return None


def _deflate_bits(values: list[str] | tuple[str, ...]) -> tuple[int, bool]:
    """The window of the first offer of permessage-deflate that can be met, and whether the offer names it."""
    for offer in (offer for value in values for offer in value.split(",")):
        name, *parameters = (part.strip() for part in offer.split(";"))
        if name != _EXTENSION:
            continue
        given = dict(_parameter(text) for text in parameters)
        if given.keys() - {*_NO_TAKEOVER, "client_max_window_bits", "server_max_window_bits"}:
            continue
        if "server_max_window_bits" not in given:
            return zlib.MAX_WBITS, False
        bits = given["server_max_window_bits"]
        # zlib has no raw stream with a window of 8 bits.
        if bits.isdigit() and 9 <= int(bits) <= zlib.MAX_WBITS:
            return int(bits), True
    return 0, False


def _parameter(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name.strip(), value.strip().strip('"')
