"""Whether Redis really takes and gives back: a key of no meaning on every server that holds a part of the log."""

from __future__ import annotations

import secrets
from typing import Any, Final

from carrel.errors import StoreUnavailableError
from services.bridge.store_redis_errors import unavailable
from services.bridge.store_redis_keys import KeySpace
from services.bridge.store_redis_nodes import Node, NodeSet

__all__ = ["probe_keys"]

_TRIES: Final = 10_000
_KEPT_MS: Final = 60_000
# As much as a batch of events takes.
_FILLER: Final = b"x" * 4096


async def probe_keys(current: NodeSet, keys: KeySpace) -> None:
    """Write and read on each server; wait for its replicas where terminal events do.

    Raises:
        StoreUnavailableError: One of them does not work.
    """
    for node in current.nodes:
        key = _key_on(node, current, keys)
        value = secrets.token_hex(8).encode() + _FILLER
        try:
            await node.writes.connection.ask("SET", key, value, "PX", _KEPT_MS)
            read: Any = await node.reads.connection.ask("GET", key)
        except StoreUnavailableError as error:
            current.note(error.__cause__)
            raise
        if read != value:
            raise unavailable("what was written is not read back", "see that nobody else empties this Redis")
        if node.wait is not None:
            await node.wait.reached(key)


def _key_on(node: Node, current: NodeSet, keys: KeySpace) -> str:
    for n in range(_TRIES):
        slot, key = keys.probe(n)
        if current.of(slot) is node:
            return key
    raise unavailable("a node of the Redis Cluster holds hardly any slot", "see CLUSTER SLOTS")
