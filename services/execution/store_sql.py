"""The run store in SQL: the same operations on SQLite, for one process, and on PostgreSQL, for several.

Operations live beside this file by theme (``store_sql_admission``, ``_queue``, ``_runs``, ``_waiting``, ``_leases``,
``_budgets``, ``_reads``, ``_care``), the access to the database in ``store_sql_database`` and ``store_sql_postgres``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from services.execution import store_sealing_check as sealing
from services.execution import store_sql_admission as admissions
from services.execution import store_sql_budgets as budgets
from services.execution import store_sql_care as care
from services.execution import store_sql_claims as claims
from services.execution import store_sql_keepers as keepers
from services.execution import store_sql_leases as leases
from services.execution import store_sql_queue as queue
from services.execution import store_sql_reads as reads
from services.execution import store_sql_runs as steps
from services.execution import store_sql_waiting as waiting
from services.execution.models import (
    ArtifactRecord,
    AuditEntry,
    EngineRecord,
    InputRecord,
    JournalItem,
    MessageRecord,
    Micros,
    OutboxEvent,
    Page,
    RunRecord,
    RunRef,
    RunState,
    ThreadRecord,
    UserKey,
)
from services.execution.models_steps import (
    ALWAYS,
    Admission,
    Admitted,
    Again,
    Budget,
    Checkpoint,
    Finish,
    Finished,
    Question,
    Revocations,
    SignedOut,
    Span,
    Step,
    Sweep,
    Unended,
)
from services.execution.store import PageKey
from services.execution.store_sql_backlog import read_backlog
from services.execution.store_sql_database import Database
from services.execution.store_sql_measured import MeasuredDatabase, StoreTimes
from services.execution.store_sql_memory import expire_memories, read_memory

__all__ = ["SqlRunStore", "wall_clock"]


def wall_clock() -> Micros:
    """Now, in microseconds since the epoch."""
    return time.time_ns() // 1000


class SqlRunStore:
    """``RunStore`` over a database.

    Args:
        database: Where the tables are; this store closes it.
        owner: The name this process holds leases under.
        engine_timeout_s: How long an engine lives at most.
        lease_s: How long a run stays this process's when it stops renewing.
        clock: Now in microseconds, for everything but leases (those are on the database's clock).
    """

    # Whether other processes may be on the same database at the same time.
    shared = False

    def __init__(
        self,
        database: Database,
        *,
        owner: str,
        engine_timeout_s: float = 300.0,
        lease_s: float = 15.0,
        clock: Callable[[], Micros] = wall_clock,
    ) -> None:
        self.times = StoreTimes()
        self._database = MeasuredDatabase(database, self.times)
        self._owner = owner
        self._lifetime = round(engine_timeout_s * 1_000_000)
        self._lease = round(lease_s * 1_000_000)
        self._clock = clock
        self._started = self._leased = False
        self._leasing = asyncio.Lock()

    @property
    def database(self) -> Database:
        """Where the tables are."""
        return self._database

    def now(self) -> Micros:
        """See ``RunStore``."""
        return self._clock()

    # Admission and engines

    async def admit(self, admission: Admission) -> Admitted:
        """See ``RunStore``."""
        if not self._leased:
            async with self._leasing:
                if not self._leased:
                    await self.renew_leases()
        return await self._database.write(
            lambda connection: admissions.admit(
                connection,
                admission,
                now=self._clock(),
                lifetime=self._lifetime,
                owner=self._owner,
            ),
            admission.identity.user,
        )

    async def promote(self, limit: int) -> tuple[Step, ...]:
        """See ``RunStore``."""
        return await self._database.write(
            lambda c: queue.promote(c, limit, owner=self._owner, now=self._clock(), lifetime=self._lifetime)
        )

    async def reserve_engine(self, user: UserKey, engine_id: str, max_engines: int) -> EngineRecord:
        """See ``RunStore``."""
        return await self._database.write(
            lambda connection: admissions.reserve_engine(
                connection, user, engine_id, max_engines, now=self._clock(), lifetime=self._lifetime
            ),
            user,
        )

    async def release_engine(self, user: UserKey, engine_id: str) -> bool:
        """See ``RunStore``."""
        return await self._database.write(lambda c: admissions.release_engine(c, user, engine_id), user)

    async def get_engine(self, user: UserKey, engine_id: str) -> EngineRecord | None:
        """See ``RunStore``."""
        return await self._database.read(lambda c: reads.read_engine(c, user, engine_id))

    async def list_engines(self, user: UserKey | None, limit: int, after: PageKey | None) -> Page[EngineRecord]:
        """See ``RunStore``."""
        return await self._database.read(lambda c: reads.list_engines(c, user, limit, after, self._clock()))

    # A run's way

    async def checkpoint(self, ref: RunRef, step: Checkpoint) -> RunRecord | None:
        """See ``RunStore``."""
        return await self._database.write(lambda c: steps.checkpoint(c, ref, step, now=self._clock()), ref.user)

    async def begin_attempt(self, ref: RunRef, stage: int, why: Again, *, lost: bool) -> Step | None:
        """See ``RunStore``."""
        return await self._database.write(
            lambda c: steps.begin_attempt(c, ref, stage, why, lost=lost, now=self._clock()), ref.user
        )

    async def suspend(self, ref: RunRef, question: Question, timeout_s: float) -> Step | None:
        """See ``RunStore``."""
        return await self._database.write(
            lambda c: waiting.suspend(c, ref, question, timeout_s, now=self._clock()), ref.user
        )

    async def provide_input(self, user: UserKey, run_id: str, input_id: str, value: bytes) -> RunRecord | None:
        """See ``RunStore``."""
        return await self._database.write(
            lambda c: waiting.provide_input(c, user, run_id, input_id, value, now=self._clock()), user
        )

    async def answers(self, user: UserKey, run_id: str, stage: int) -> tuple[InputRecord, ...]:
        """See ``RunStore``."""
        return await self._database.read(lambda c: reads.read_answers(c, user, run_id, stage))

    async def expired_inputs(self) -> tuple[RunRecord, ...]:
        """See ``RunStore``."""
        return await self._database.read(lambda c: waiting.expired_inputs(c, owner=self._owner, now=self._clock()))

    async def decided(self, runs: Sequence[tuple[UserKey, str]]) -> frozenset[tuple[UserKey, str]]:
        """See ``RunStore``."""
        if not runs:
            return frozenset()
        return await self._database.read(lambda c: leases.decided(c, runs, owner=self._owner))

    # Model budgets

    async def budget(self, user: UserKey, tokens: int, concurrency: int, period_s: float) -> Budget:
        """See ``RunStore``."""
        return await self._database.read(lambda c: budgets.read_budget(c, user, tokens, concurrency, period_s))

    async def use_budget(self, ref: RunRef, used: int, tokens: int, concurrency: int, period_s: float) -> Budget:
        """See ``RunStore``."""
        return await self._database.write(
            lambda c: budgets.use_budget(c, ref.user, used, tokens, concurrency, period_s), ref.user
        )

    async def finish(self, ref: RunRef, finish: Finish) -> Finished | None:
        """See ``RunStore``."""
        return await self._database.write(lambda c: steps.finish(c, ref, finish, now=self._clock()), ref.user)

    async def close_run(self, ref: RunRef) -> bool:
        """See ``RunStore``."""
        return await self._database.write(lambda c: steps.close_run(c, ref), ref.user)

    async def outbox(self, user: UserKey, run_id: str) -> tuple[OutboxEvent, ...]:
        """See ``RunStore``."""
        return await self._database.read(lambda c: reads.read_outbox(c, user, run_id))

    async def save_journal(self, ref: RunRef, stage: int, entries: Sequence[JournalItem]) -> bool:
        """See ``RunStore``."""
        return await self._database.write(lambda c: care.save_journal(c, ref, stage, entries), ref.user)

    async def journal(self, user: UserKey, run_id: str, stage: int) -> tuple[JournalItem, ...]:
        """See ``RunStore``."""
        return await self._database.read(lambda c: reads.read_journal(c, user, run_id, stage))

    async def memory(self, user: UserKey, thread_id: str, agent_name: str) -> bytes:
        """See ``RunStore``."""
        return await self._database.read(lambda c: read_memory(c, user, thread_id, agent_name))

    # Leases

    async def take_over(self) -> tuple[RunRecord, ...]:
        """See ``RunStore``."""
        taken: list[RunRecord] = []
        while True:
            some, more = await self._database.write(
                partial(leases.take_over, owner=self._owner, lease=self._lease, former=not self._started)
            )
            self._started = self._leased = True
            taken += some
            if not more:
                return tuple(taken)

    async def renew_leases(self) -> None:
        """See ``RunStore``."""
        await self._database.write(partial(leases.renew_leases, owner=self._owner, lease=self._lease), self._owner)
        self._leased = True

    async def release_leases(self) -> None:
        """See ``RunStore``."""
        await self._database.write(partial(leases.release_leases, owner=self._owner))

    async def place_attempt(self, ref: RunRef, address: str) -> bool:
        """See ``RunStore``."""
        return await self._database.write(lambda c: claims.place_attempt(c, ref, address))

    # Among all replicas

    async def claim_once(self, name: str, ttl_s: float) -> bool:
        """See ``RunStore``."""
        return await self._database.write(lambda c: claims.claim_once(c, name, round(ttl_s * 1_000_000)))

    async def revoke_user(self, user: UserKey, reason: str) -> Micros:
        """See ``RunStore``."""
        return await self._database.write(lambda c: claims.revoke_user(c, user, reason))

    async def revocations(self, after: Micros) -> Revocations:
        """See ``RunStore``."""
        return await self._database.read(lambda c: claims.list_revocations(c, after))

    async def sign_out(self, user: UserKey, login: str, expires_at: Micros) -> None:
        """See ``RunStore``."""
        await self._database.write(lambda c: claims.sign_out(c, user, login, expires_at), user)

    async def signed_out(self, after: Micros, limit: int, page: PageKey | None) -> Page[SignedOut]:
        """See ``RunStore``."""
        return await self._database.read(lambda c: claims.list_signed_out(c, after, limit, page))

    # Runs bound to their caller

    async def keep(self, user: UserKey, run_id: str) -> bool:
        """See ``RunStore``."""
        return await self._database.write(lambda c: keepers.keep(c, user, run_id, owner=self._owner), user)

    async def let_go(self, user: UserKey, run_id: str) -> bool:
        """See ``RunStore``."""
        return await self._database.write(lambda c: keepers.let_go(c, user, run_id, owner=self._owner), user)

    async def is_kept(self, user: UserKey, run_id: str) -> bool:
        """See ``RunStore``."""
        return await self._database.read(lambda c: keepers.is_kept(c, user, run_id))

    # Reading

    async def get_run(self, user: UserKey, run_id: str) -> RunRecord | None:
        """See ``RunStore``."""
        return await self._database.read(lambda c: reads.read_run(c, user, run_id))

    async def list_runs(
        self, user: UserKey, thread_id: str, states: frozenset[RunState], limit: int, after: PageKey | None
    ) -> Page[RunRecord]:
        """See ``RunStore``."""
        return await self._database.read(lambda c: reads.list_runs(c, user, thread_id, states, limit, after))

    async def history(self, user: UserKey, thread_id: str, before_run: str, limit: int) -> tuple[MessageRecord, ...]:
        """See ``RunStore``."""
        return await self._database.read(lambda c: reads.read_history(c, user, thread_id, before_run, limit))

    async def list_threads(self, user: UserKey, limit: int, after: PageKey | None) -> Page[ThreadRecord]:
        """See ``RunStore``."""
        return await self._database.read(lambda c: reads.list_threads(c, user, limit, after))

    async def get_thread(self, user: UserKey, thread_id: str) -> ThreadRecord | None:
        """See ``RunStore``."""
        return await self._database.read(lambda c: reads.read_thread(c, user, thread_id))

    async def messages(self, user: UserKey, thread_id: str, limit: int, after: PageKey | None) -> Page[MessageRecord]:
        """See ``RunStore``."""
        return await self._database.read(lambda c: reads.read_messages(c, user, thread_id, limit, after))

    async def delete_thread(self, user: UserKey, thread_id: str) -> tuple[str, ...] | None:
        """See ``RunStore``."""
        return await self._database.write(lambda c: care.delete_thread(c, user, thread_id), user)

    # Artifacts and audit

    async def save_artifact(self, ref: RunRef, artifact: ArtifactRecord, quota: int, per_run: int) -> bool:
        """See ``RunStore``."""
        return await self._database.write(lambda c: care.save_artifact(c, ref, artifact, quota, per_run), ref.user)

    async def get_artifact(self, user: UserKey, run_id: str, name: str) -> ArtifactRecord | None:
        """See ``RunStore``."""
        return await self._database.read(lambda c: reads.read_artifact(c, user, run_id, name))

    async def save_audit(self, entries: Sequence[AuditEntry]) -> None:
        """See ``RunStore``."""
        await self._database.write(lambda c: care.save_audit(c, entries))

    async def list_audit(
        self, user: UserKey | None, run_id: str, limit: int, after: PageKey | None, span: Span = ALWAYS
    ) -> Page[AuditEntry]:
        """See ``RunStore``."""
        return await self._database.read(lambda c: reads.list_audit(c, user, run_id, limit, after, span))

    async def expire_audit(self, before: Micros) -> int:
        """See ``RunStore``."""
        return await self._database.write(lambda c: care.expire_audit(c, before))

    # Care

    async def expire_artifacts(self, before: Micros) -> tuple[tuple[UserKey, ArtifactRecord], ...]:
        """See ``RunStore``."""
        return await self._database.write(lambda c: care.expire_artifacts(c, before))

    async def expire_memories(self, before: Micros, after: PageKey | None) -> PageKey | None:
        """See ``RunStore``."""
        return await self._database.write(lambda c: expire_memories(c, before, after))

    async def sweep(self) -> Sweep:
        """See ``RunStore``."""
        return await self._database.write(lambda c: care.sweep(c, now=self._clock()))

    async def check_keys(self) -> None:
        """See that every key is here that values may be sealed with; called once, after the opening.

        Raises:
            InvalidConfigurationError: One is missing, or is another key under the same name.
        """
        await self._database.write(lambda c: care.save_audit(c, sealing.check_keys(c)))

    async def forget_keys(self, newest: str) -> None:
        """Need no other key any more, after everything was rewritten under the newest one (or, without, plain)."""
        await self._database.write(lambda c: care.save_audit(c, sealing.forget_keys(c, but=newest)))

    async def backlog(self) -> Mapping[RunState, Unended]:
        """See ``RunStore``."""
        return await self._database.read(lambda c: read_backlog(c, self._clock()))

    async def probe(self) -> None:
        """See ``RunStore``."""
        await self._database.write(care.probe)

    async def close(self) -> None:
        """See ``RunStore``."""
        await self._database.close()
