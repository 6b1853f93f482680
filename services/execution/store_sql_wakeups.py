"""Hints between execution processes, over PostgreSQL's LISTEN and NOTIFY, on one connection of each process.

They are sent after the transaction that they tell of, by a statement of their own: within it, NOTIFY would make every
commit of every process wait for one lock. What arrives while one is under way goes into the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any, Final, NoReturn

import orjson

from servicekit.logs import get_logger
from services.execution.models import UserKey
from services.execution.models_steps import Hints
from services.execution.store_sql_database import Connector

__all__ = ["PostgresWakeups"]

_log = get_logger("execution.wakeups")
_CHANNEL: Final = "carrel_runs"
_SEND: Final = "SELECT pg_notify($1, payload) FROM unnest($2::text[]) AS payload"
# PostgreSQL takes less than 8000 bytes in one.
_MAX_BYTES: Final = 7_000
# Beyond it the oldest are dropped, and the others told that something was.
_MAX_PENDING: Final = 10_000
# How long nothing may be heard of the server before it is asked for a sign of life, and how long that may take.
_QUIET_S: Final = 2.0
_ANSWER_S: Final = 2.0
_PAUSE_S: Final = (0.05, 1.0)


class PostgresWakeups:
    """See ``Wakeups``.

    Args:
        connect: Makes the connection.
        owner: This process, whose own hints it need not hear.
    """

    def __init__(self, connect: Connector, owner: str) -> None:
        self._connect = connect
        self._owner = owner
        # In the order in which they were told, each once.
        self._runs: dict[tuple[UserKey, str], None] = {}
        self._freed = self._lost = False
        self._ready = asyncio.Event()
        self._listening = False
        self._heard: Callable[[Hints], None] = lambda hints: None

    @property
    def listening(self) -> bool:
        """See ``Wakeups``."""
        return self._listening

    def changed(self, user: UserKey, run_id: str) -> None:
        """See ``Wakeups``."""
        if len(self._runs) >= _MAX_PENDING:
            del self._runs[next(iter(self._runs))]
            self._lost = True
        self._runs[user, run_id] = None
        self._ready.set()

    def freed(self) -> None:
        """See ``Wakeups``."""
        self._freed = True
        self._ready.set()

    async def listen(self, heard: Callable[[Hints], None]) -> NoReturn:
        """See ``Wakeups``."""
        self._heard = heard
        pause = _PAUSE_S[0]
        while True:
            raw = None
            try:
                raw = await self._connect()
                raw.add_termination_listener(self._ended)
                await raw.add_listener(_CHANNEL, self._notified)
                self._listening, pause = True, _PAUSE_S[0]
                heard(Hints(missed=True))
                await self._send_for_ever(raw)
            except (OSError, TimeoutError) as error:
                _log.warning("hints of other processes are not heard", reason=type(error).__name__)
            except Exception as error:
                if not type(error).__module__.startswith("asyncpg"):
                    raise
                _log.warning("hints of other processes are not heard", reason=type(error).__name__)
            finally:
                self._listening = False
                if raw is not None:
                    raw.terminate()
            # Spread, so that not all processes come back in one moment.
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 -- guards nothing
            pause = min(pause * 2, _PAUSE_S[1])

    async def _send_for_ever(self, raw: Any) -> NoReturn:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_QUIET_S):
                    await self._ready.wait()
            self._ready.clear()
            payloads = self._take()
            # With nothing to say it is the question whether anybody is there.
            await raw.fetch(_SEND, _CHANNEL, payloads, timeout=_ANSWER_S)

    def _take(self) -> list[str]:
        payloads: list[str] = []
        runs, self._runs = list(self._runs), {}
        freed, self._freed = self._freed, False
        lost, self._lost = self._lost, False
        while runs or freed or lost:
            some: list[tuple[UserKey, str]] = []
            size = 0
            while runs and size < _MAX_BYTES:
                size += len(orjson.dumps(runs[-1])) + 1
                if size < _MAX_BYTES or not some:
                    some.append(runs.pop())
            payloads.append(orjson.dumps({"owner": self._owner, "runs": some, "freed": freed, "missed": lost}).decode())
            freed = lost = False
        return payloads

    def _notified(self, _connection: Any, _pid: int, _channel: str, payload: object) -> None:
        told = orjson.loads(str(payload))
        if told["owner"] != self._owner:
            runs = tuple((UserKey(user), str(run_id)) for user, run_id in told["runs"])
            self._heard(Hints(runs, bool(told["freed"]), bool(told["missed"])))

    def _ended(self, _connection: Any) -> None:
        self._ready.set()
