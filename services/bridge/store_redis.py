"""The event log in Redis: one for any number of bridge processes. The methods' guarantees are ``store.EventLog``'s.

Each user's log is a stream with a hash beside it, in one slot (``lua/common.lua`` says what lies where); each append
is one call of a script. What an acknowledged event survives is Redis's own matter: with ``appendfsync always`` the
death of the machine, with ``everysec`` that of the process; a failover may lose what the replica had not got. A log
that lost its tail is noticed by the producers' numbers, by the newest position that an appender knows, and by readers,
who compare the event_id of what they saw last. Nothing is kept here that a crash could lose.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

from carrel.errors import QueueFullError, StartupError, StoreUnavailableError
from services.bridge.config_redis import RedisUrl
from services.bridge.models import (
    ONE_USER,
    Append,
    AppendResult,
    Position,
    ReadResult,
    Refusal,
    RefusalReason,
    ResumeCheck,
    ResumePoint,
    Retention,
    RunInfo,
)
from services.bridge.store_redis_batch import AppendBatch, AppendParcel
from services.bridge.store_redis_codec import entries_of, position_of, sound
from services.bridge.store_redis_connection import ConnectOptions
from services.bridge.store_redis_errors import refused, unavailable
from services.bridge.store_redis_hints import RedisHints
from services.bridge.store_redis_keys import Keys, KeySpace
from services.bridge.store_redis_nodes import Nodes, NodeSet
from services.bridge.store_redis_probe import probe_keys
from services.bridge.store_redis_scripts import ScriptLane, script_call
from services.bridge.store_redis_wait import WaitOptions
from services.bridge.store_rules import resume_reset

__all__ = ["RedisEventLog", "RedisOptions"]

_MAX_KNOWN: Final = 20_000  # users whose newest position is remembered
_MAX_INT: Final = (1 << 53) - 1  # what Lua's numbers hold exactly
_OVERHEAD: Final = 256  # about what an append takes beside its blobs
_CLOSE_S: Final = 3.0
_REASONS: Final = (
    None,
    RefusalReason.GAP,
    RefusalReason.STALE_FENCE,
    RefusalReason.FENCE,
    RefusalReason.SEALED,
    RefusalReason.MISMATCH,
)


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """How Redis is used.

    Args:
        url: Where it is.
        password: In the place of the URL's; empty for that one.
        prefix: What the names of keys and channels begin with.
        timeout_s: The longest silence of Redis while an answer is awaited.
        min_replicas: Replicas that must have a terminal event before it is acknowledged.
        min_replicas_timeout_s: How long they may take.
        max_queued_bytes: Beyond this, appends are refused instead of sent.
        ca_file: Who signs the servers' certificates; None for the system's authorities.
        production: Whether servers that may evict entries are refused.
    """

    url: RedisUrl
    password: str = field(default="", repr=False)
    prefix: str = "carrel"
    timeout_s: float = 3.0
    min_replicas: int = 0
    min_replicas_timeout_s: float = 1.0
    max_queued_bytes: int = 64 << 20
    ca_file: Path | None = None
    production: bool = False


class RedisEventLog:
    """An ``EventLog`` over Redis; open it with ``RedisEventLog.open``."""

    def __init__(
        self, options: RedisOptions, nodes: Nodes, retention: Retention, clock: Callable[[], float] | None
    ) -> None:
        self._nodes = nodes
        self._clock = clock
        self._origin = secrets.token_hex(6)
        self.keys = KeySpace(options.prefix, self._origin)
        self._hints = RedisHints(nodes, self.keys, self._origin)
        self._max_queued = options.max_queued_bytes
        self._queued = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._known: dict[str, tuple[str, int, str]] = {}
        self._retention = retention
        idle_ms = int(max(retention.idle_ttl_s, retention.max_age_s) * 1000)
        self._producer_ms = int(retention.producer_ttl_s * 1000)
        self._idle_ms = idle_ms
        # An entry may outlive its age until its stream expires; a run must not be forgotten before its entries are.
        run_ms = min(idle_ms, int(2 * retention.max_age_s * 1000) + self._producer_ms)
        self._bounds = (
            retention.max_entries,
            int(retention.max_age_s * 1000),
            self._producer_ms,
            idle_ms,
            run_ms,
            "SPUBLISH" if nodes.sharded else "PUBLISH",
        )
        self._closed = False
        self.commits = 0

    @classmethod
    async def open(
        cls,
        options: RedisOptions,
        *,
        retention: Retention | None = None,
        clock: Callable[[], float] | None = None,
    ) -> Self:
        """Connect.

        Args:
            options: How Redis is used.
            retention: How much is kept.
            clock: Wall clock in seconds; Redis's own when None, which all bridges share.

        Raises:
            StoreUnavailableError: It cannot be reached now.
            StartupError: It is not fit for the log; with what to do.
        """
        url = options.url
        connect = ConnectOptions(
            username=url.username,
            password=options.password or url.password,
            db=url.db,
            tls=_tls(options.ca_file) if url.tls else None,
            timeout_s=options.timeout_s,
        )
        wait = WaitOptions(options.min_replicas, options.min_replicas_timeout_s)
        nodes = Nodes(url, connect, wait, production=options.production)
        log = cls(options, nodes, retention or Retention(), clock)
        try:
            await nodes.ready()
        except BaseException:
            await log.close()
            raise
        log._hints.start()
        return log

    @property
    def changes(self) -> RedisHints:
        """News of others' appends."""
        return self._hints

    def append(self, batches: Sequence[Append]) -> asyncio.Future[list[AppendResult]]:
        self._check_open()
        cost = sum(len(event.blob) + _OVERHEAD for append in batches for event in append.events)
        if self._queued + cost > self._max_queued and self._queued:
            raise QueueFullError(
                "too much is on its way to the event log",
                retry_after_s=0.1,
                limit="log_queue_bytes",
                limit_value=self._max_queued,
                use=self._queued,
            )
        current = self._nodes.now()
        batch = AppendBatch(current, batches, self._result_of, partial(self._settled, cost))
        parcels: dict[object, AppendParcel] = {}
        for index, append in enumerate(batches):
            keys = self.keys.of(append.user)
            node = current.of(keys.slot)
            # One script's keys must lie in one slot of a Cluster, and are better many than few elsewhere.
            where: object = keys.slot if self._nodes.sharded else node
            parcel = parcels.get(where)
            if parcel is None:
                parcel = parcels[where] = AppendParcel(node, (self._now(), *self._bounds, self._origin), batch)
            parcel.add(index, append, keys, self._known.get(append.user))
            if append.terminal and node.wait is not None:
                batch.waits.append((node, keys.wait))
        self._queued += cost
        self._idle.clear()
        if not batches:
            batch.finish()
        for parcel in parcels.values():
            parcel.send()
        return batch.future

    def _result_of(self, append: Append, answer: list[Any]) -> AppendResult:
        code, through_text, epoch_text, first, stored, before, newest = answer
        through, epoch = int(through_text), epoch_text.decode()
        if code:
            reason = _REASONS[code]
            assert reason is not None
            return AppendResult(through, epoch, 0, (), Refusal(reason, through))
        if not stored:
            return AppendResult(through, epoch, 0, ())
        known = self._known
        known.pop(append.user, None)  # so that it goes to the end: the first ones are forgotten first
        known[append.user] = (epoch, first + stored - 1, newest.decode())
        if len(known) > _MAX_KNOWN:
            del known[next(iter(known))]
        events = append.events if append.gap is None else (append.gap, *append.events)
        return AppendResult(
            through, epoch, first, events[len(events) - stored :], None, before.decode(), newest.decode()
        )

    def _settled(self, cost: int) -> None:
        self.commits += 1
        self._queued -= cost
        if not self._queued:
            self._idle.set()

    async def read(self, user: str, after: int, limit: int, max_bytes: int = 1 << 20) -> ReadResult:
        keys = self.keys.of(user)
        after = min(after, _MAX_INT)
        answer = await self._call(keys, "read", (keys.stream, keys.meta), after, max(limit, 0), max(max_bytes, 1))
        with sound():
            position = position_of(answer)
            trimmed = bool(position.epoch) and after + 1 < position.oldest
            entries, mark = entries_of(answer[6:], max_bytes)
            return ReadResult(entries, position, trimmed, answer[5].decode(), mark)

    async def position(self, user: str) -> Position:
        keys = self.keys.of(user)
        answer = await self._look(keys, "")
        with sound():
            return position_of(answer)

    async def check_resume(self, user: str, point: ResumePoint) -> ResumeCheck:
        keys = self.keys.of(user)
        answer = await self._look(keys, point.offset if 0 < point.offset <= _MAX_INT else "")
        with sound():
            position, mark, there = position_of(answer), answer[5], answer[6]
            reset = resume_reset(position, point, None if there is None else there.decode())
            return ResumeCheck(position, reset, mark.decode())

    async def _look(self, keys: Keys, offset: int | str) -> list[Any]:
        fresh = os.urandom(8).hex()
        answer: list[Any] = await self._call(
            keys, "look", (keys.stream, keys.meta), self._now(), fresh, self._idle_ms, offset
        )
        return answer

    async def resolve_run(self, user: str, run_id: str) -> RunInfo | None:
        keys = self.keys.of(user)
        names = (keys.stream, keys.meta, keys.run(run_id))
        answer = await self._call(keys, "run", names, self._now(), self._producer_ms)
        if answer is None:
            return None
        with sound():
            thread, fence, first, last, sealed = answer
            return RunInfo(run_id, thread.decode(), int(fence), first, last, bool(sealed))

    async def sweep(self) -> int:
        removed = 0
        bounds = (self._retention.max_entries, int(self._retention.max_age_s * 1000), self._idle_ms)
        for node in (await self._ready()).nodes:
            cursor = b"0"
            while True:
                found = await node.reads.connection.ask("SCAN", cursor, "MATCH", self.keys.metas, "COUNT", 500)
                cursor, names = found
                for name in names:
                    meta = name.decode()
                    keys = (self.keys.stream_beside(meta), meta)
                    removed += await self._sweep_one(node.writes, script_call("sweep", keys, self._now(), *bounds))
                if cursor == b"0":
                    break
        return removed

    async def _sweep_one(self, lane: ScriptLane, packed: bytes) -> int:
        try:
            removed: int = await self._ask(lane, packed)
        except StoreUnavailableError as error:
            if error.details.get("scope") != ONE_USER:
                raise
            return 0
        return removed

    async def probe(self) -> None:
        self._check_open()
        try:
            await self._nodes.verify()
        except StartupError as error:
            raise unavailable(error.message, error.advice) from error
        await probe_keys(await self._ready(), self.keys)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._idle.wait()
        except TimeoutError:
            pass
        finally:
            await self._hints.close()
            await self._nodes.close()

    def _check_open(self) -> None:
        if self._closed:
            raise unavailable("it is closed", "nothing: this process is ending")

    def _now(self) -> int | str:
        return int(self._clock() * 1000) if self._clock is not None else ""

    async def _ready(self) -> NodeSet:
        self._check_open()
        try:
            return await self._nodes.ready()
        except StartupError as error:
            # At the start this ends the process; later it is one more reason why the log cannot be used.
            raise unavailable(error.message, error.advice) from error

    async def _call(self, keys: Keys, script: str, names: tuple[str, ...], *arguments: str | int) -> Any:
        current = await self._ready()
        packed = script_call(script, names, *arguments)
        try:
            return await self._ask(current.of(keys.slot).reads, packed)
        except StoreUnavailableError as error:
            current.note(error.__cause__)
            raise

    async def _ask(self, lane: ScriptLane, packed: bytes) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def took(answer: Any) -> None:
            if not future.done():
                future.set_result(answer)

        lane.send([packed], [took])
        answer = await future
        if isinstance(answer, Exception):
            raise refused(answer) from answer
        return answer


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise StartupError(
            f"{ca_file} holds no certificates", advice="write the PEM file of who signs Redis's certificate"
        ) from error
