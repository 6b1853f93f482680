"""What goes on by itself beside the runs: leases are renewed, orphaned runs taken over, what is left over removed."""

from __future__ import annotations

import asyncio
from typing import Final, NoReturn

from carrel.errors import CarrelError
from servicekit.logs import get_logger
from services.execution.domain.factory import ExecutionEngineFactory
from services.execution.domain.services import RunServices
from services.execution.domain.uploads import remove_unused
from services.execution.store import PageKey, RunStore

__all__ = [
    "clean_up",
    "clean_up_for_ever",
    "expire_artifacts",
    "expire_audit",
    "expire_memories",
    "keep_leases",
    "take_over",
]

_log = get_logger("execution.loops")
_SLICES: Final = 10


async def take_over(store: RunStore, factory: ExecutionEngineFactory) -> int:
    """Take up every run that nobody holds; how many there were."""
    total = 0
    while runs := await store.take_over():
        for run in runs:
            factory.resume(run)
        total += len(runs)
    if total:
        _log.info("runs taken over", runs=total)
    return total


async def keep_leases(store: RunStore, factory: ExecutionEngineFactory, lease_s: float) -> NoReturn:
    """Renew this process's lease and take over what others let expire, three times in ``lease_s``.

    When it could not renew for a whole lease (the store was away, this process stood still) the others may have been as
    unlucky and are about to renew: they get the time of a lease before anything of theirs counts as left.
    """
    loop = asyncio.get_running_loop()
    renewed_at = patient_until = loop.time()
    while True:
        await asyncio.sleep(lease_s / 3)
        try:
            await store.renew_leases()
            now = loop.time()
            if now - renewed_at >= lease_s:
                patient_until = now + lease_s
            renewed_at = now
            if now >= patient_until:
                await take_over(store, factory)
        except CarrelError as error:
            _log.warning("leases not renewed", code=error.code, reason=error.message)


async def clean_up(store: RunStore, factory: ExecutionEngineFactory) -> int:
    """Remove lapsed, orphaned and timed-out engines and old idempotency keys; how many of the first two."""
    swept = await store.sweep()
    for engine in swept.engines:
        factory.drop_engine(engine.user, engine.engine_id)
    for engine in swept.overdue:
        await factory.time_out(engine.user, engine.run_id)
    if swept.engines or swept.client_refs:
        _log.info("cleaned up", engines=len(swept.engines), client_refs=swept.client_refs)
    return len(swept.engines)


async def expire_artifacts(services: RunServices) -> int:
    """Remove artifacts that are past their retention; how many."""
    before = services.clock() - round(services.options.artifacts.retention_s * 1_000_000)
    total = 0
    while expired := await services.store.expire_artifacts(before):
        for user, artifact in expired:
            await remove_unused(services.store, services.folder, user, artifact.run_id, artifact.sha256)
        total += len(expired)
    return total


async def expire_audit(services: RunServices) -> int:
    """Remove audit records that are past their retention, if there is one; how many."""
    if not services.options.audit_retention_s:
        return 0
    before, total = services.clock() - round(services.options.audit_retention_s * 1_000_000), 0
    while expired := await services.store.expire_audit(before):
        total += expired
    return total


async def expire_memories(services: RunServices, after: PageKey | None) -> PageKey | None:
    """Remove what agents keep past its retention, or in no thread any more, from a place on; where to go on next time.

    They are looked at in turn, ten thousand at a time, so that no pass is long.
    """
    retention_s = services.options.memories.retention_s
    before = services.clock() - round(retention_s * 1_000_000) if retention_s else 0
    for _ in range(_SLICES):
        after = await services.store.expire_memories(before, after)
        if after is None:
            break
    return after


async def clean_up_for_ever(services: RunServices, factory: ExecutionEngineFactory, interval_s: float) -> NoReturn:
    """``clean_up`` every ``cleanup_interval`` seconds."""
    after: PageKey | None = None
    while True:
        await asyncio.sleep(interval_s)
        try:
            await clean_up(services.store, factory)
            await expire_artifacts(services)
            await expire_audit(services)
            after = await expire_memories(services, after)
        except CarrelError as error:
            _log.warning("clean-up failed", code=error.code, reason=error.message)
