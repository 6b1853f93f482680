"""Names of keys and channels: all of one user's in one slot of a Cluster, no two users' the same."""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote

from services.bridge.store_redis_nodes import slot_of

__all__ = ["KeySpace", "Keys"]

_MAX_CACHED: Final = 20_000
# A tag ends at the first brace, so a user's own are written otherwise; the percent sign too, so that no two are alike.
_ESCAPES: Final = str.maketrans({"{": "%7B", "}": "%7D", "%": "%25"})


class Keys:
    """One user's."""

    __slots__ = ("_runs_and_producers", "channel", "meta", "slot", "stream", "wait")

    def __init__(self, prefix: str, user: str) -> None:
        tag = user.translate(_ESCAPES)
        base = f"{prefix}:{{{tag}}}:"
        self.slot = slot_of(tag)
        self.stream = f"{base}s"
        self.meta = f"{base}m"
        self.wait = f"{base}w"
        self.channel = f"{base}c"
        self._runs_and_producers = base

    def run(self, run_id: str) -> str:
        """A run's key."""
        return f"{self._runs_and_producers}r:{run_id}"

    def producer(self, producer_id: str) -> str:
        """A producer's key."""
        return f"{self._runs_and_producers}p:{producer_id}"


class KeySpace:
    """All users'.

    Args:
        prefix: What every name begins with; without braces.
        origin: This process's own name, for the keys of its probes.
    """

    def __init__(self, prefix: str, origin: str) -> None:
        self._prefix = prefix
        self._origin = origin
        self._cache: dict[str, Keys] = {}
        self._probes: dict[int, str] = {}
        self.metas = f"{prefix}:{{*}}:m"

    def of(self, user: str) -> Keys:
        """One user's."""
        keys = self._cache.get(user)
        if keys is None:
            if len(self._cache) >= _MAX_CACHED:
                self._cache.clear()
            keys = self._cache[user] = Keys(self._prefix, user)
        return keys

    def user_of_channel(self, channel: bytes) -> str:
        """Whose channel it is."""
        return unquote(channel.decode()[len(self._prefix) + 2 : -3])

    def stream_beside(self, meta: str) -> str:
        """The stream that belongs to a hash."""
        return f"{meta[:-1]}s"

    def probe(self, n: int) -> tuple[int, str]:
        """The n-th of this process's keys that mean nothing: its slot and name. They lie all over a Cluster."""
        tag = f"probe-{self._origin}-{n}"
        return slot_of(tag), f"{self._prefix}:{{{tag}}}:x"
