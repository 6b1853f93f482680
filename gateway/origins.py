"""Which browser pages may talk to the gateway: an Origin allow-list, for sockets before the upgrade and for REST.

A request without Origin does not come from a page and passes: it needs a token like every other. Cookies are not used.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final
from urllib.parse import urlsplit

from carrel.errors import OriginError

__all__ = ["Origins", "normal_origin"]

_LOCAL: Final = frozenset({"localhost", "127.0.0.1", "::1"})
# urlsplit() leaves out tabs and line ends, wherever they stand.
_PRINTED: Final = re.compile(r"[!-~]{1,512}")
_METHODS: Final = "GET, POST, DELETE, OPTIONS"
_HEADERS: Final = "Authorization, Content-Type, Idempotency-Key, Prefer, thread-id, Last-Event-ID"
_EXPOSED: Final = "Location, Retry-After, Content-Disposition, Preference-Applied"


class Origins:
    """The allow-list. ``allow_local`` takes pages of this machine on any port (development)."""

    def __init__(self, allowed: Collection[str], allow_local: bool) -> None:
        self._allowed = frozenset(normal_origin(origin) for origin in allowed)
        self._allow_local = allow_local

    def allows(self, origin: str | None) -> bool:
        """Whether a request with this Origin header may pass."""
        if origin is None:
            return True
        if not _PRINTED.fullmatch(origin):
            return False
        try:
            normal = normal_origin(origin)
            host = urlsplit(normal).hostname
        except ValueError:
            return False
        return normal in self._allowed or (self._allow_local and host in _LOCAL)

    def check(self, origin: str | None) -> None:
        """Raises:
        OriginError: The page's origin is not on the list.
        """
        if not self.allows(origin):
            raise OriginError(
                "pages of this origin may not use this gateway",
                advice="add the origin to CARREL_GATEWAY_ALLOWED_ORIGINS",
            )

    def headers(self, origin: str | None) -> Mapping[str, str]:
        """What a response must carry for a page of this origin to read it."""
        if origin is None or not self.allows(origin):
            return {"Vary": "Origin"}
        return {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": _EXPOSED, "Vary": "Origin"}

    def preflight(self, origin: str | None) -> Mapping[str, str]:
        """The answer to a browser that asks before it sends."""
        self.check(origin)
        return {
            **self.headers(origin),
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Allow-Headers": _HEADERS,
            "Access-Control-Max-Age": "600",
        }


def normal_origin(origin: str) -> str:
    """An origin as ``scheme://host[:port]`` in lower case, without the scheme's own port.

    Raises:
        ValueError: It is none (a path, a wildcard, the opaque ``null``).
    """
    parts = urlsplit(origin.strip().lower())
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path not in {"", "/"}:
        raise ValueError("an origin is written scheme://host[:port]")
    if parts.query or parts.fragment or "@" in parts.netloc or "*" in parts.netloc:
        raise ValueError("an origin is written scheme://host[:port]")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    port = parts.port
    # Older Pythons let anything follow the bracket: the hostname of "[::1].evil.example" is "::1" to them.
    if parts.netloc.removesuffix("" if port is None else f":{port}").removesuffix(":") != host:
        raise ValueError("an origin is written scheme://host[:port]")
    if port is None or (parts.scheme, port) in {("http", 80), ("https", 443)}:
        return f"{parts.scheme}://{host}"
    return f"{parts.scheme}://{host}:{port}"
