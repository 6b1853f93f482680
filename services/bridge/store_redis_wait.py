"""Waiting until replicas have what was written: for terminal events, where the operator asks for it.

On a connection of its own, since WAIT holds up whatever follows it: a small write there comes after the appends in the
replication stream, so replicas that have it have them. Whoever asks while one wait is under way shares the next.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any

from services.bridge.store_redis_connection import Address, ConnectOptions, RedisConnection, pack
from services.bridge.store_redis_errors import refused, unavailable

__all__ = ["ReplicaWait", "WaitOptions"]


@dataclass(frozen=True, slots=True)
class WaitOptions:
    """``replicas`` must have a terminal event within ``timeout_s`` before it is acknowledged; 0 for none."""

    replicas: int = 0
    timeout_s: float = 1.0


class ReplicaWait:
    """Open it with ``ReplicaWait.open``."""

    def __init__(self, connection: RedisConnection, options: WaitOptions) -> None:
        self.connection = connection
        self._options = options
        self._next: list[asyncio.Future[None]] = []
        self._key = ""
        self._under_way = False

    @classmethod
    async def open(cls, address: Address, connect: ConnectOptions, options: WaitOptions) -> ReplicaWait:
        """Connect.

        Raises:
            StoreUnavailableError: Not possible now.
        """
        patient = replace(connect, timeout_s=connect.timeout_s + options.timeout_s)
        return cls(await RedisConnection.open(address, patient), options)

    def reached(self, key: str) -> asyncio.Future[None]:
        """Ends when the replicas have all that was answered before; fails when they do not in time.

        Args:
            key: One that may be written, of the user's slot.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._next.append(future)
        self._key = key
        if not self._under_way:
            self._go()
        return future

    def _go(self) -> None:
        served, self._next = self._next, []
        wanted = self._options.replicas

        def took(answer: Any) -> None:
            self._under_way = False
            if isinstance(answer, int) and answer >= wanted:
                _settle(served, None)
            else:
                error = answer if isinstance(answer, Exception) else _too_few(int(answer), wanted)
                _settle(served, error)
            if self._next:
                self._go()

        commands: list[tuple[str | int, ...]] = [
            ("SET", self._key, "1", "PX", 60_000),
            ("WAIT", wanted, int(self._options.timeout_s * 1000)),
        ]
        self._under_way = True
        try:
            self.connection.send([pack(*command) for command in commands], [_ignore, took])
        except Exception as error:  # noqa: BLE001 -- told to those who wait
            self._under_way = False
            _settle(served, error)


def _settle(futures: list[asyncio.Future[None]], error: Exception | None) -> None:
    for future in futures:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(refused(error))


def _too_few(reached: int, wanted: int) -> Exception:
    return unavailable(
        f"{reached} of {wanted} replicas have what was written",
        "bring the replicas back, or lower CARREL_BRIDGE_LOG__MIN_REPLICAS",
    )


def _ignore(_answer: object) -> None:
    return
