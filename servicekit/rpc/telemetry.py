"""The seam where traces and metrics hook into calls. Nothing is measured here; the default does nothing.

A ``Telemetry`` sees each call once at its beginning and once at its end, on the server outermost, so that refusals are
counted too. More than that (spans with context in metadata) goes in as interceptors of its own.
"""

from __future__ import annotations

from typing import Final, Protocol

from carrel.errors import Status

__all__ = ["NO_TELEMETRY", "Telemetry"]


class Telemetry(Protocol):
    """Told about each call. Must not raise and must not wait."""

    def call_started(self, method: str) -> None:
        """A call of this full method name (`/package.Service/Method`) has come in."""

    def call_ended(self, method: str, status: Status, seconds: float) -> None:
        """It has ended, with this status and after this time."""


class _NoTelemetry:
    def call_started(self, method: str) -> None: ...

    def call_ended(self, method: str, status: Status, seconds: float) -> None: ...


NO_TELEMETRY: Final[Telemetry] = _NoTelemetry()
