"""The log's Lua scripts, and a connection that runs them by their digest whatever the server has forgotten."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

from services.bridge.store_redis_connection import Argument, RedisConnection, ReplyError, Taker, pack

__all__ = ["ScriptLane", "digest", "script_call", "script_texts"]

_FOLDER: Final = Path(__file__).with_name("lua")
_NAMES: Final = ("append", "look", "read", "run", "sweep")


@cache
def _scripts() -> dict[str, tuple[str, bytes]]:
    common = (_FOLDER / "common.lua").read_bytes()
    texts = {name: common + (_FOLDER / f"{name}.lua").read_bytes() for name in _NAMES}
    return {name: (hashlib.sha1(text).hexdigest(), text) for name, text in texts.items()}  # noqa: S324 -- Redis's own


def digest(name: str) -> str:
    """By what EVALSHA knows the script."""
    return _scripts()[name][0]


def script_texts() -> list[bytes]:
    """What SCRIPT LOAD takes, of every script."""
    return [text for _, text in _scripts().values()]


def script_call(name: str, keys: Sequence[str], *arguments: Argument) -> bytes:
    """One packed call of a script."""
    return pack("EVALSHA", digest(name), len(keys), *keys, *arguments)


class ScriptLane:
    """Calls of scripts on one connection, in the order they were made, also when the server lost its scripts.

    A call that the server does not know the script of has had no effect. From then on calls are held back until all
    that are under way are answered; then the scripts are loaded, and everything is sent in its order.

    Args:
        connection: Its own, but for commands that may overtake calls.
    """

    def __init__(self, connection: RedisConnection) -> None:
        self.connection = connection
        self._under_way = 0
        self._unknown: list[tuple[bytes, Taker]] = []
        self._held: list[tuple[bytes, Taker]] = []

    def send(self, packed: list[bytes], takers: list[Taker]) -> None:
        """Call; each taker is told the answer, an exception as a value.

        Raises:
            StoreUnavailableError: Nothing was sent.
        """
        if self._unknown:
            self._held += zip(packed, takers, strict=True)
            return
        self.connection.send(packed, list(map(partial, (self._took,) * len(packed), packed, takers)))
        self._under_way += len(packed)

    def _took(self, packed: bytes, taker: Taker, answer: Any) -> None:
        self._under_way -= 1
        if isinstance(answer, Exception):
            if isinstance(answer, ReplyError) and str(answer).startswith("NOSCRIPT"):
                self._unknown.append((packed, taker))
            else:
                taker(answer)
                if not self.connection.usable:
                    self._fail(answer)
        else:
            taker(answer)
        if self._unknown and not self._under_way and self.connection.usable:
            again, self._unknown, self._held = self._unknown + self._held, [], []
            loads = [pack("SCRIPT", "LOAD", text) for text in script_texts()]
            takers: list[Taker] = [_ignore] * len(loads)
            takers += (partial(self._took, packed, taker) for packed, taker in again)
            self._under_way = len(again)
            self.connection.send([*loads, *(packed for packed, _ in again)], takers)

    def _fail(self, error: Exception) -> None:
        lost, self._unknown, self._held = self._unknown + self._held, [], []
        for _, taker in lost:
            taker(error)


def _ignore(_answer: object) -> None:
    return
