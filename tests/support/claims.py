"""Names that are given once, in memory: what execution does for gateways, for tests without it."""

from __future__ import annotations

__all__ = ["MemoryClaims"]


class MemoryClaims:
    """A ``Claim``: the first who asks for a name gets it."""

    def __init__(self) -> None:
        self.names: dict[str, float] = {}

    async def __call__(self, name: str, expires_at: float) -> bool:
        """Whether nobody has asked for it before."""
        known = name in self.names
        self.names[name] = expires_at
        return not known
