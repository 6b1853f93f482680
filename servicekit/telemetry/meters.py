"""What the services count with. The default does nothing."""

from __future__ import annotations

from typing import Final

__all__ = ["NO_METERS", "Meters"]


class Meters:
    """Counts nothing."""

    __slots__ = ()


NO_METERS: Final = Meters()
