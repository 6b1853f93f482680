"""A database whose reads and writes are timed: what operators see of the run store. It changes nothing of them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TypeVar

from carrel.errors import StoreUnavailableError
from servicekit.telemetry.buckets import Buckets
from services.execution.store_sql_database import Database, Operation

__all__ = ["MeasuredDatabase", "StoreTimes"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class StoreTimes:
    """Seconds of reads and writes, waiting included, and how many of each the store failed."""

    seconds: dict[str, Buckets] = field(default_factory=lambda: {"read": Buckets(), "write": Buckets()})
    errors: dict[str, int] = field(default_factory=lambda: {"read": 0, "write": 0})


class MeasuredDatabase:
    """``Database`` over another one."""

    def __init__(self, database: Database, times: StoreTimes) -> None:
        self.inner = database
        self._times = times

    async def write(self, operation: Operation[_T], key: str = "") -> _T:
        """See ``Database``."""
        began = time.perf_counter()
        try:
            return await self.inner.write(operation, key)
        except StoreUnavailableError:
            self._times.errors["write"] += 1
            raise
        finally:
            self._times.seconds["write"].add(time.perf_counter() - began)

    async def read(self, operation: Operation[_T]) -> _T:
        """See ``Database``."""
        began = time.perf_counter()
        try:
            return await self.inner.read(operation)
        except StoreUnavailableError:
            self._times.errors["read"] += 1
            raise
        finally:
            self._times.seconds["read"].add(time.perf_counter() - began)

    async def close(self) -> None:
        """See ``Database``."""
        await self.inner.close()
