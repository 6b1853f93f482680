"""Who is at the other end of a connection, by its certificate, and whether that service may call a method.

The table is ``servicekit.identity.callers``. That the certificate is good, TLS has seen to.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from grpc import aio

from carrel.errors import InternalError, PermissionDeniedError
from servicekit.logs import get_logger
from servicekit.tls.files import service_named
from servicekit.tls.settings import IDENTITIES

__all__ = ["CallerCheck"]

_log: Final = get_logger("servicekit.rpc")
_SPIFFE: Final = "peer_spiffe_id"
_LOG_EVERY_S: Final = 1.0
_UNKNOWN: Final = "unknown"


class CallerCheck:
    """Holds calls to the table. ``refused`` counts by (caller, method): both are names of ours.

    ``refused_by_caller`` has every name from the beginning: what begins at 0 is seen to rise by its first refusal.

    Args:
        callers: Method → services; a method that is not in it is refused.
        trust_domain: In which callers must have their names.
    """

    def __init__(self, callers: Mapping[str, frozenset[str]], trust_domain: str) -> None:
        self._callers = callers
        self._domain = trust_domain
        self._names: dict[bytes, str] = {}
        self._next_line = 0.0
        self.refused: Counter[tuple[str, str]] = Counter()
        self.refused_by_caller: Counter[str] = Counter(dict.fromkeys((*IDENTITIES, _UNKNOWN), 0))

    def check(self, method: str, context: aio.ServicerContext[Any, Any]) -> None:
        """Raises:
        PermissionDeniedError: The caller's certificate names no service that may call the method.
        InternalError: The method is missing in the table.
        """
        allowed = self._callers.get(method)
        if allowed is None:
            raise InternalError(f"{method} is missing in METHOD_CALLERS")
        caller = self._caller(context)
        if caller not in allowed:
            raise self._refusal(caller or _UNKNOWN, method, allowed)

    def _caller(self, context: aio.ServicerContext[Any, Any]) -> str:
        # The library gives this property for a certificate with one SPIFFE URI, and for none with several.
        names = tuple(context.auth_context().get(_SPIFFE, ()))
        if len(names) != 1:
            return ""
        name = self._names.get(names[0])
        if name is None:
            name = service_named([names[0].decode("ascii", "replace")], self._domain)
            if name:
                self._names[names[0]] = name
        return name

    def _refusal(self, caller: str, method: str, allowed: frozenset[str]) -> PermissionDeniedError:
        self.refused[caller, method] += 1
        self.refused_by_caller[caller] += 1
        if (now := time.monotonic()) >= self._next_line:
            self._next_line = now + _LOG_EVERY_S
            _log.warning("a service called what it may not", caller=caller, method=method)
        return PermissionDeniedError(
            f"{caller} may not call {method.rpartition('/')[2]}: {', '.join(sorted(allowed))} may",
            advice="call with the certificate of a service that may; SECURITY.md has the table",
        )
