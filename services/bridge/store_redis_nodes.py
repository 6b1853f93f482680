"""Which Redis servers hold the log, and the connections to them: one server, Sentinels' master, or a Cluster.

A set of nodes is found, used until something of it fails, and found again as a whole by ``ready``. Nothing here retries
a command: the log's callers do, and every append may be repeated.
"""

from __future__ import annotations

import asyncio
import binascii
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from carrel.errors import StartupError, StoreUnavailableError
from servicekit.logs import get_logger
from services.bridge.config_redis import RedisUrl
from services.bridge.store_redis_connection import Address, ConnectOptions, RedisConnection, ReplyError
from services.bridge.store_redis_errors import refused, unavailable
from services.bridge.store_redis_scripts import ScriptLane, script_texts
from services.bridge.store_redis_wait import ReplicaWait, WaitOptions

__all__ = ["Node", "NodeSet", "Nodes", "slot_of"]

SLOTS: Final = 16_384
_OLDEST: Final = (6, 2)
_OLDEST_CLUSTER: Final = (7, 0)
# After these answers the servers are looked for again.
_ELSEWHERE: Final = ("MOVED", "ASK", "TRYAGAIN", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "LOADING")
_AGAIN_S: Final = 0.25  # after a failed attempt, those that follow at once get its error
_T = TypeVar("_T")
_log = get_logger("services.bridge")


def slot_of(tag: str) -> int:
    """The Cluster's slot of every key with this hash tag."""
    return binascii.crc_hqx(tag.encode(), 0) % SLOTS


class Node:
    """One server: a connection for appends, one for everything that reads, one for waiting for replicas."""

    def __init__(
        self, address: Address, writes: RedisConnection, reads: RedisConnection, wait: ReplicaWait | None
    ) -> None:
        self.address = address
        self.writes = ScriptLane(writes)
        self.reads = ScriptLane(reads)
        self.wait = wait

        self.connections = [writes, reads] if wait is None else [writes, reads, wait.connection]

    @property
    def usable(self) -> bool:
        """Whether its connections are there."""
        return all(connection.usable for connection in self.connections)

    def abort(self) -> None:
        """Lose its connections."""
        for connection in self.connections:
            connection.abort()


class NodeSet:
    """The servers that hold the log, as they were found together."""

    def __init__(self, nodes: list[Node], slots: list[int] | None = None) -> None:
        self.nodes = nodes
        self._slots = slots
        self.stale = False

    def of(self, slot: int) -> Node:
        """The server of a slot.

        Raises:
            StoreUnavailableError: The Cluster has none for it.
        """
        if self._slots is None:
            return self.nodes[0]
        index = self._slots[slot]
        if index < 0:
            raise unavailable("no node of the Redis Cluster has this slot", "see CLUSTER INFO on its nodes")
        return self.nodes[index]

    def note(self, error: BaseException | None) -> None:
        """An error reply to a command; after some, the servers are to be found anew."""
        if isinstance(error, ReplyError):
            text = str(error)
            self.stale = self.stale or text.startswith(_ELSEWHERE) or "-READONLY " in text

    @property
    def layout(self) -> tuple[list[Address], list[int] | None]:
        """For comparing two of them."""
        return [node.address for node in self.nodes], self._slots

    @property
    def usable(self) -> bool:
        """Whether everything can be reached, as far as is known."""
        return not self.stale and all(node.usable for node in self.nodes)


class Nodes:
    """Finds the servers and keeps the connections.

    Args:
        url: Where they are.
        options: How connections are made.
        wait: Replicas to wait for.
        production: Whether settings that may lose entries are refused instead of warned of.
    """

    def __init__(self, url: RedisUrl, options: ConnectOptions, wait: WaitOptions, *, production: bool) -> None:
        self.url = url
        self.options = options
        self._wait = wait
        self._production = production
        self._current: NodeSet | None = None
        self._lock = asyncio.Lock()
        self._failed: tuple[float, StoreUnavailableError] | None = None
        self._warned = False
        self._closed = False
        self.on_lost: Callable[[], None] = lambda: None  # a connection of theirs is lost
        self.on_found: Callable[[], None] = lambda: None  # they are all connected, for the first time or again

    @property
    def sharded(self) -> bool:
        """Whether Pub/Sub is the sharded kind."""
        return self.url.kind == "cluster"

    def now(self) -> NodeSet:
        """The servers, at once.

        Raises:
            StoreUnavailableError: They are not all known and connected.
        """
        current = self._current
        if current is None or not current.usable:
            raise refused(self._failed[1] if self._failed else unavailable("not connected"))
        return current

    async def ready(self) -> NodeSet:
        """The servers, found and connected if need be.

        Raises:
            StoreUnavailableError: Not possible now.
            StartupError: They are not fit for the log.
        """
        current = self._current
        if current is not None and current.usable:
            return current
        async with self._lock:
            if self._closed:
                raise unavailable("it is closed")
            if self._current is not None and self._current.usable:
                return self._current
            if self._failed is not None and time.monotonic() - self._failed[0] < _AGAIN_S:
                raise refused(self._failed[1])
            self._drop()
            try:
                self._current = await self._find()
            except StoreUnavailableError as error:
                self._failed = (time.monotonic(), error)
                raise
            self._failed = None
            for connection in (c for node in self._current.nodes for c in node.connections):
                connection.on_lost = self._lost
            self.on_found()
            return self._current

    async def verify(self) -> None:
        """Look whether they are still the ones that hold the log; after that, ``ready`` finds those that do.

        Raises:
            StoreUnavailableError: Not possible now.
        """
        current = await self.ready()
        if self.url.kind == "sentinel":
            with contextlib.suppress(StoreUnavailableError):
                if await self._master() != current.nodes[0].address:
                    current.stale = True
        elif self.url.kind == "cluster":
            told = await current.nodes[0].reads.connection.ask("CLUSTER", "SLOTS")
            if _slots(told, current.nodes[0].address) != current.layout:
                current.stale = True
        await self.ready()

    def _lost(self) -> None:
        self.on_lost()

    async def close(self) -> None:
        """Lose every connection. Idempotent."""
        self._closed = True
        self._drop()

    def _drop(self) -> None:
        current, self._current = self._current, None
        if current is not None:
            for node in current.nodes:
                node.abort()

    async def _find(self) -> NodeSet:
        if self.url.kind == "single":
            return NodeSet([await self._open(self.url.addresses[0])])
        if self.url.kind == "sentinel":
            return NodeSet([await self._open(await self._master())])
        return await self._first_of(self.url.addresses, self._cluster)

    async def _master(self) -> Address:
        return await self._first_of(self.url.addresses, self._ask_sentinel)

    async def _first_of(self, addresses: tuple[Address, ...], ask: Callable[[Address], Awaitable[_T]]) -> _T:
        failure = unavailable("no address is given")
        for address in addresses:
            try:
                return await ask(address)
            except StoreUnavailableError as error:
                failure = error
        raise failure

    async def _ask_sentinel(self, address: Address) -> Address:
        # Sentinels have passwords of their own, if any; the URL's is the servers'.
        sentinel = await RedisConnection.open(
            address, ConnectOptions(tls=self.options.tls, timeout_s=self.options.timeout_s)
        )
        try:
            told = await sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.url.service)
        finally:
            sentinel.abort()
        if told is None:
            raise unavailable(
                f"the Sentinel {address[0]}:{address[1]} knows no master {self.url.service}",
                "correct the name in CARREL_BRIDGE_LOG__URL",
            )
        return told[0].decode(), int(told[1])

    async def _cluster(self, seed: Address) -> NodeSet:
        asked = await RedisConnection.open(seed, self.options)
        try:
            await self._judge(asked, seed, any_role=True)
            addresses, slots = _slots(await asked.ask("CLUSTER", "SLOTS"), seed)
        finally:
            asked.abort()
        nodes: list[Node] = []
        try:
            for address in addresses:
                nodes.append(await self._open(address))  # noqa: PERF401 -- those before a failure are to be closed
        except BaseException:
            for node in nodes:
                node.abort()
            raise
        if not nodes:
            raise unavailable("the Redis Cluster has no slots assigned", "see CLUSTER INFO on its nodes")
        return NodeSet(nodes, slots)

    async def _open(self, address: Address) -> Node:
        opened: list[RedisConnection] = []
        try:
            for _ in range(2):
                opened.append(await RedisConnection.open(address, self.options))  # noqa: PERF401 -- as above
            await self._judge(opened[1], address)
            for text in script_texts():
                await opened[0].ask("SCRIPT", "LOAD", text)
            wait = await ReplicaWait.open(address, self.options, self._wait) if self._wait.replicas else None
        except BaseException:
            for connection in opened:
                connection.abort()
            raise
        return Node(address, opened[0], opened[1], wait)

    async def _judge(self, connection: RedisConnection, address: Address, *, any_role: bool = False) -> None:
        """Whether a server can hold the log.

        Raises:
            StoreUnavailableError: Not now.
            StartupError: Not as it is.
        """
        told = _info((await connection.ask("INFO")).decode("utf-8", "replace"))
        where = f"{address[0]}:{address[1]}"
        if told.get("loading") == "1":
            raise unavailable(f"{where} is loading its data", "nothing: it is tried again")
        if not any_role and told.get("role") != "master":
            raise unavailable(f"{where} is a replica", "name the master, or the Sentinels (redis+sentinel://…)")
        cluster = told.get("cluster_enabled") == "1"
        if cluster != (self.url.kind == "cluster"):
            form = "redis+cluster://" if cluster else "redis://"
            raise StartupError(
                f"{where} is {'a' if cluster else 'no'} node of a Redis Cluster",
                advice=f"write CARREL_BRIDGE_LOG__URL={form}…",
            )
        oldest = _OLDEST_CLUSTER if cluster else _OLDEST
        if _version(told.get("redis_version", "")) < oldest:
            raise StartupError(
                f"{where} is Redis {told.get('redis_version', 'of an unknown version')}",
                advice=f"use Redis {oldest[0]}.{oldest[1]} or later",
            )
        self._judge_eviction(where, told.get("maxmemory_policy", "noeviction"))

    def _judge_eviction(self, where: str, policy: str) -> None:
        if policy == "noeviction":
            return
        message = f"{where} may evict entries that were acknowledged: its maxmemory-policy is {policy}"
        advice = "set maxmemory-policy noeviction in Redis's configuration: when it is full, producers wait"
        if self._production:
            raise StartupError(message, advice=advice)
        if not self._warned:
            self._warned = True
            _log.warning("Redis may lose events", reason=message, advice=advice)


def _slots(told: list[Any], asked: Address) -> tuple[list[Address], list[int]]:
    """CLUSTER SLOTS as addresses and, for each slot, the index of its own; -1 for none."""
    addresses: list[Address] = []
    slots = [-1] * SLOTS
    for first, last, master, *_ in sorted(told, key=lambda row: row[0]):
        # A node that does not know its own name leaves it out: then it is where it was asked.
        address = (master[0].decode() if master[0] else asked[0], int(master[1]))
        if address not in addresses:
            addresses.append(address)
        slots[first : last + 1] = [addresses.index(address)] * (last - first + 1)
    return addresses, slots


def _info(text: str) -> dict[str, str]:
    rows = (line.partition(":") for line in text.splitlines())
    return {name: value for name, colon, value in rows if colon}


def _version(text: str) -> tuple[int, int]:
    parts = text.split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (IndexError, ValueError):
        return 0, 0
