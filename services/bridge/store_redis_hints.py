"""News of what other bridges append: Pub/Sub channels of the users who are listened for, and cheap looks at standings.

A ``ChangeFeed``. Messages are hints: whatever is lost with a connection, each user listened for is told as missed once
the next one has subscribed again.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from carrel.errors import CarrelError
from servicekit.tasks import TaskOwner
from services.bridge.models import Change, Standing
from services.bridge.store_redis_connection import RedisConnection, pack
from services.bridge.store_redis_errors import is_of_one_log, refused
from services.bridge.store_redis_keys import KeySpace
from services.bridge.store_redis_nodes import Nodes, NodeSet

__all__ = ["RedisHints"]

_AGAIN_S: Final = 0.5  # between attempts to subscribe
_PING_S: Final = 3.0
_SILENT_S: Final = 10.0
_NOWHERE: Final = Standing("", 0, "", active=False)
_META: Final = re.compile(
    rb"[0-9a-f]+ ([0-9a-f]{16}) ([0-9]{1,15}) [0-9]{1,15} ([0-9]{1,15}) ([0-9]{1,15}) [0-9]{1,15} ([ -~]*)"
)
_HINT: Final = re.compile(rb"([0-9a-f]+) ([0-9a-f]{16}) ([0-9]{1,15}) ([ -~]*)")
_MESSAGES: Final = (b"message", b"smessage")
_SUBSCRIBED: Final = (b"subscribe", b"ssubscribe")
_ENDED: Final = (b"unsubscribe", b"sunsubscribe")


class RedisHints:
    """Start it with ``start``, end it with ``close``.

    Args:
        nodes: The servers.
        keys: Names of channels.
        origin: By what this process's own messages are known, which nobody needs to be told of.
    """

    def __init__(self, nodes: Nodes, keys: KeySpace, origin: str) -> None:
        self._nodes = nodes
        self._keys = keys
        self._origin = origin.encode()
        self._users: set[str] = set()
        self._current: NodeSet | None = None
        self._links: dict[int, RedisConnection] = {}
        self._told: Callable[[Change], None] = lambda change: None
        self._missed: Callable[[Sequence[str] | None], None] = lambda users: None
        self._broken = asyncio.Event()
        # When one connection is lost, the others may be as well, and somebody has to see to it before the next append.
        nodes.on_lost = lambda: self._broken.set()
        self._tasks = TaskOwner()
        sharded = nodes.sharded
        self._subscribe, self._unsubscribe = ("SSUBSCRIBE", "SUNSUBSCRIBE") if sharded else ("SUBSCRIBE", "UNSUBSCRIBE")

    def start(self) -> None:
        """Begin to stay subscribed."""
        _ = self._tasks.start(self._stay_subscribed(), "hints of the Redis log")

    async def close(self) -> None:
        """End. Idempotent."""
        await self._tasks.aclose()

    def follow(self, told: Callable[[Change], None], missed: Callable[[Sequence[str] | None], None]) -> None:
        self._told, self._missed = told, missed

    def on_return(self, told: Callable[[], None]) -> None:
        self._nodes.on_found = told

    def listen(self, user: str) -> None:
        self._users.add(user)
        self._say(self._subscribe, user)

    def unlisten(self, user: str) -> None:
        self._users.discard(user)
        self._say(self._unsubscribe, user)

    async def standings(self, users: Sequence[str]) -> list[Standing]:
        current = await self._nodes.ready()
        gathered = _Gathered(len(users))
        parcels: dict[int, tuple[RedisConnection, list[bytes], list[Callable[[Any], None]]]] = {}
        for index, user in enumerate(users):
            keys = self._keys.of(user)
            connection = current.of(keys.slot).reads.connection
            _, packed, takers = parcels.setdefault(id(connection), (connection, [], []))
            packed.append(pack("GET", keys.meta))
            takers.append(partial(gathered.took, index))
        for connection, packed, takers in parcels.values():
            connection.send(packed, takers)
        return [_standing(row) for row in await gathered.all()] if users else []

    def _say(self, command: str, user: str) -> None:
        if self._current is None:
            return
        keys = self._keys.of(user)
        try:
            node = self._current.of(keys.slot)
        except CarrelError:
            return
        link = self._links.get(id(node))
        if link is not None:
            link.tell(command, keys.channel)

    async def _stay_subscribed(self) -> None:
        while True:
            began = asyncio.get_running_loop().time()
            with contextlib.suppress(CarrelError):
                await self._stay(await self._nodes.ready())
            lasted = asyncio.get_running_loop().time() - began
            await asyncio.sleep(0.0 if lasted > _AGAIN_S else _AGAIN_S)

    async def _stay(self, current: NodeSet) -> None:
        """Subscribed at these servers, until one of the connections is lost or the servers are others."""
        broken = self._broken = asyncio.Event()
        links: dict[int, RedisConnection] = {}
        try:
            for node in current.nodes:
                link = await RedisConnection.open(node.address, self._nodes.options, partial(self._pushed, current))
                links[id(node)] = link
                link.on_lost = broken.set
                if not link.usable:
                    return
            self._current, self._links = current, links
            for user in self._users:
                self._say(self._subscribe, user)
            while not broken.is_set() and current.usable:
                for link in links.values():
                    link.tell("PING")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_PING_S):
                        await broken.wait()
                now = asyncio.get_running_loop().time()
                if any(now - link.heard_at > _SILENT_S for link in links.values()):
                    return
        finally:
            self._current, self._links = None, {}
            for link in links.values():
                link.abort()

    def _pushed(self, current: NodeSet, item: Any) -> None:
        if isinstance(item, Exception):
            # A channel's slot has moved, most likely.
            current.note(item)
            self._broken.set()
            return
        kind = item[0] if isinstance(item, list) else item  # PONG, before anything is subscribed to
        if kind in _MESSAGES:
            matched = _HINT.fullmatch(item[2])
            # What is no news of ours is none: positions are looked at all the same.
            if matched is not None and matched[1] != self._origin:
                _, epoch, top, mark = matched.groups()
                self._told(Change(self._keys.user_of_channel(item[1]), epoch.decode(), int(top), mark.decode()))
        elif kind in _SUBSCRIBED:
            self._missed((self._keys.user_of_channel(item[1]),))
        elif kind in _ENDED and self._keys.user_of_channel(item[1]) in self._users:
            current.stale = self._nodes.sharded
            self._broken.set()


class _Gathered:
    """Answers of several commands, as one future."""

    def __init__(self, count: int) -> None:
        self._rows: list[Any] = [None] * count
        self._left = count
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def took(self, index: int, answer: Any) -> None:
        """One of them."""
        self._rows[index] = answer
        self._left -= 1
        if self._left == 0 and not self._done.done():
            self._done.set_result(None)

    async def all(self) -> list[Any]:
        """All of them; None for a key that is no string.

        Raises:
            StoreUnavailableError: One is an error of the store's.
        """
        await self._done
        for index, row in enumerate(self._rows):
            if not isinstance(row, Exception):
                continue
            if not is_of_one_log(row):
                raise refused(row) from row
            self._rows[index] = None
        return self._rows


def _standing(packed: bytes | None) -> Standing:
    """Of a user's ``m``; see ``lua/common.lua``. What is nothing that was written there counts as not there."""
    if packed is None:
        return _NOWHERE
    matched = _META.fullmatch(packed)
    if matched is None:
        return _NOWHERE
    epoch, top, unended, at, last = matched.groups()
    mark = f"{last.decode()} {at.decode()}" if last else ""
    return Standing(epoch.decode(), int(top), mark, active=unended != b"0")
